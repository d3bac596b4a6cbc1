"""The figures against hand-worked numbers, what a window may learn from, and coverage after calibration."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import calibration
from app.domain.evaluation import Trial, judge, pooled_scores, seasonal_scale, server_scores, tallies
from app.domain.panel import Array, Frequency, Panel
from app.domain.tally import Pooled, pool

BASE = (0.1, 0.5, 0.9)
SCORES = {"smape", "mase", "mae", "rmse", "wql", "coverage"}


def trial(
    servers: int = 40,
    horizon: int = 28,
    windows: int = 4,
    levels: tuple[float, ...] = BASE,
    width: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
) -> tuple[Trial, Array]:
    """Values of mean 50 and each server's own deviation, forecasts `width` times as wide as they should be; and
    what comes after the last row."""
    random = np.random.default_rng(seed)
    deviation = random.gamma(3, 1, servers)
    values = 50 + deviation[:, None] * random.normal(size=(windows + 1, servers, horizon))
    z = calibration.normal_scores_of(levels)
    raw = np.broadcast_to(
        50 + shift * deviation[:, None, None] + width * deviation[:, None, None] * z,
        (windows + 1, servers, horizon, len(levels)),
    )
    scale = np.broadcast_to(deviation, (windows + 1, servers))
    bounds = np.zeros(servers), np.full(servers, 100.0)
    return Trial(levels, raw.copy(), values[1:].copy(), scale.copy(), *bounds, reported=1), values[0]


def coverage(values: Array, levels: tuple[float, ...], actual: Array) -> float:
    low, high = values[..., levels.index(0.1)], values[..., levels.index(0.9)]
    return float(np.mean((low <= actual) & (actual <= high)))


def panel(values: Array) -> Panel:
    servers, steps = values.shape
    return Panel(
        tuple(map(str, range(servers))),
        np.datetime64("2024-01-01T00:00:00"),
        Frequency.DAILY,
        values,
        np.zeros(servers, dtype=np.int64),
        np.full(servers, steps - 1),
        np.zeros(servers),
        np.full(servers, 100.0),
    )


class TestFigures:
    """One window; server 0: actual 10, 20 against p10, p50, p90 = 8, 12, 14 and 18, 18, 19. Server 1: 0, missing."""

    base = np.array([[[[8.0, 12, 14], [18, 18, 19]], [[0, 0, 0], [1, 2, 3]]]])
    actual = np.array([[[10.0, 20], [0, np.nan]]])
    scale = np.array([[4.0, 0.0]])

    def test_pooled(self) -> None:
        scores = pooled_scores(self.base, self.actual, self.scale)
        assert scores is not None
        assert scores.smape == pytest.approx((200 * 2 / 22 + 200 * 2 / 38 + 0) / 3)
        assert scores.mase == pytest.approx((2 / 4 + 2 / 4) / 2)  # a scale of zero is left out
        assert scores.mae == pytest.approx(4 / 3)
        assert scores.rmse == pytest.approx(np.sqrt(8 / 3))
        # pinball: .1·2, .5·2, .1·4 and .1·2, .5·2, .9·1; twice their mean over three levels, over Σ|y| = 30
        assert scores.wql == pytest.approx(2 * (0.2 + 1.0 + 0.4 + 0.2 + 1.0 + 0.9) / 3 / 30)
        assert scores.coverage == pytest.approx(2 / 3)

    def test_per_server(self) -> None:
        scores = server_scores(self.base, self.actual, self.scale)
        assert set(scores) == SCORES
        assert scores["mae"].tolist() == [2.0, 0.0]
        assert scores["smape"][1] == 0.0
        assert np.isnan(scores["mase"][1])
        assert np.isnan(scores["wql"][1])
        assert scores["coverage"].tolist() == [0.5, 1.0]

    def test_sums_that_any_group_is_pooled_from(self) -> None:
        sums = tallies(self.base, self.actual, self.scale, period=1)
        assert sums.shape == (2, 2, 5)
        whole, scores = pool(sums), pooled_scores(self.base, self.actual, self.scale)
        assert scores is not None
        assert (whole.servers, whole.smape, whole.wql, whole.coverage) == pytest.approx(
            (2, scores.smape, scores.wql, scores.coverage)
        )
        second = pool(sums[:, 1:])
        assert (second.servers, second.coverage) == (1, 0.0)
        assert second.wql == pytest.approx(2 * (0.2 + 1.0 + 0.9) / 3 / 20)
        assert pool(sums[1:]) == Pooled(1, 0.0, None, 1.0)
        assert pool(sums[1:, 1:]) == Pooled(0, None, None, None)

    def test_a_perfect_forecast_covers_what_it_foresaw(self) -> None:
        """Quantiles are served in single precision, the actuals lie in double: 42.2 is not below 42.2."""
        actual = np.concatenate([np.full(28, 42.2), np.tile([10.01, 20.07, 30.13, 40.49, 50.61, 60.77, 70.93], 4)])
        base = np.repeat(actual[:, None], 3, axis=1).astype(np.float32)
        for served in (base, base.astype(np.float64)):
            scores = pooled_scores(served[None, None], actual[None, None], np.ones((1, 1)))
            assert scores is not None
            assert (scores.coverage, scores.mae, scores.wql) == (1.0, 0.0, 0.0)

    def test_nothing_to_score(self) -> None:
        assert pooled_scores(self.base, np.full_like(self.actual, np.nan), self.scale) is None
        assert np.isnan(server_scores(self.base, np.full_like(self.actual, np.nan), self.scale)["mae"]).all()

    def test_undefined_figures_are_none(self) -> None:
        scores = pooled_scores(self.base, np.zeros_like(self.actual), np.zeros_like(self.scale))
        assert scores is not None
        assert scores.mase is None
        assert scores.wql is None

    def test_seasonal_scale_leaves_missing_pairs_out(self) -> None:
        values = np.arange(20.0)[None].repeat(3, axis=0)
        values[1, 10:] = np.nan
        values[2, 7:] = np.nan
        assert seasonal_scale(panel(values), 7)[:2].tolist() == [7.0, 7.0]
        assert np.isnan(seasonal_scale(panel(values), 7)[2])
        assert np.isnan(seasonal_scale(panel(values[:, :5]), 7)).all()

    def test_rounding_is_no_scale(self) -> None:
        """A week that repeats itself has the scale of a constant: in double precision, summed up, and in single."""
        days = np.arange(140)
        once = np.array([[1e-9], [40.0], [3e12]]) * (1 + 0.3 * np.sin(2 * np.pi * days / 7))
        summed = once[:, :1] + np.cumsum(np.diff(once, axis=1, prepend=once[:, :1]), axis=1)
        single = once.astype(np.float32) * (1 + np.float32(1e-7) * (days % 2))
        for values in (once, summed, single):
            assert (np.diff(values[:, ::7], axis=1) != 0).any()
            assert (seasonal_scale(panel(values.astype(np.float64)), 7) == 0).all()
        grown = once * (1 + 1e-4 * days / 140)
        assert (seasonal_scale(panel(grown), 7) > 0).all()

    def test_a_week_that_repeats_itself_has_no_mase(self) -> None:
        values = 40 + 10 * np.sin(2 * np.pi * np.arange(154) / 7)[None] * np.ones((2, 1))
        values[1] += np.random.default_rng(0).normal(size=154)
        history, actual = panel(values[:, :140]), values[None, :, 140:]
        base = np.stack([actual - 1, actual + 0.1, actual + 1], axis=-1)
        scale = seasonal_scale(history, 7)[None]
        pooled, apart = pooled_scores(base, actual, scale), server_scores(base, actual, scale)["mase"]
        assert np.isnan(apart[0])
        assert pooled is not None
        assert pooled.mase == pytest.approx(apart[1])
        assert 0.01 < apart[1] < 1
        alone = pooled_scores(base[:, :1], actual[:, :1], scale[:, :1])
        assert alone is not None
        assert alone.mase is None


def test_what_is_stored_keeps_its_bounds() -> None:
    given, _ = trial(width=9.0)
    verdict = judge(replace(given, lower=np.full(40, 49.3), upper=np.full(40, 50.7)))
    stored = verdict.values.astype(np.float32)
    assert (stored == verdict.values).all()
    assert (stored.min(), stored.max()) == (np.float32(49.3), np.float32(50.7))


class TestWhatAWindowMayLearnFrom:
    @pytest.mark.parametrize("window", [1, 2, 3])
    def test_its_own_data_and_newer_ones_change_nothing(self, window: int) -> None:
        before, _ = trial(width=0.5, shift=0.4)
        before = replace(before, reported=3)
        random = np.random.default_rng(1)
        actual, raw = before.actual.copy(), before.raw.copy()
        actual[: window - 1] = random.uniform(0, 100, actual[: window - 1].shape)
        raw[:window] += random.normal(0, 9, raw[:window].shape)
        after = replace(before, actual=actual, raw=raw)
        # The scores of the window under its own calibrated forecast tell all of that forecast.
        assert np.array_equal(judge(before).normal_scores[window - 1], judge(after).normal_scores[window - 1])

    def test_its_own_data_do_not_move_its_forecast(self) -> None:
        """Twice as far from a forecast that stayed is twice the score."""
        before, _ = trial(width=0.5)
        far = replace(before, actual=before.actual.copy())
        far.actual[0] = 50 + 2 * (before.actual[0] - 50)
        assert judge(far).normal_scores[0] == pytest.approx(2 * judge(before).normal_scores[0], abs=1e-3)

    def test_the_forecast_learns_from_every_window(self) -> None:
        before, _ = trial()
        for window in range(4):
            other = replace(before, actual=before.actual.copy())
            other.actual[window] = 50 + 3 * (other.actual[window] - 50)
            assert not np.array_equal(judge(before).values, judge(other).values)

    def test_the_oldest_window_stays_raw(self) -> None:
        given_, _ = trial(width=0.3, windows=1)
        scores = judge(given_).scores
        assert scores is not None
        assert scores.coverage == pytest.approx(coverage(given_.raw[1], BASE, given_.actual[0]))

    def test_no_window_leaves_the_forecast_raw(self) -> None:
        given_, _ = trial(width=0.3, windows=0)
        verdict = judge(replace(given_, reported=0))
        assert np.array_equal(verdict.values, given_.raw[0].astype(np.float32))
        assert verdict.scores is None
        assert verdict.normal_scores.shape == (0, 40, 28)
        assert set(verdict.per_server) == SCORES
        assert np.isnan(verdict.per_server["wql"]).all()


class TestCoverage:
    @pytest.mark.parametrize("width", [0.15, 0.5, 1.0, 2.0, 6.0])
    @pytest.mark.parametrize("windows", [2, 4])
    def test_spread_is_mended(self, width: float, windows: int) -> None:
        given_, future = trial(servers=120, width=width, windows=windows)
        verdict = judge(given_)
        assert coverage(verdict.values, BASE, future) == pytest.approx(0.8, abs=0.05)
        assert verdict.scores is not None
        assert verdict.scores.coverage == pytest.approx(0.8, abs=0.07)

    def test_other_levels_hold_too(self) -> None:
        levels = (0.01, 0.1, 0.25, 0.5, 0.9, 0.975)
        given_, future = trial(servers=200, width=0.3, levels=levels)
        below = (future[..., None] <= judge(given_).values).mean(axis=(0, 1))
        assert below == pytest.approx(levels, abs=0.03)

    def test_a_server_unlike_the_fleet_gets_its_own_scale(self) -> None:
        given_, future = trial(servers=60, horizon=40)
        raw = given_.raw.copy()
        raw[:, :20] = 50 + (raw[:, :20] - 50) / 4
        values = judge(replace(given_, raw=raw)).values
        assert coverage(values[:20], BASE, future[:20]) > 0.6
        assert coverage(values[20:], BASE, future[20:]) < 0.95

    def test_a_shock_to_the_whole_fleet_in_one_window_hardly_moves_the_median(self) -> None:
        given_, _ = trial(windows=1)
        values = judge(replace(given_, actual=given_.actual + 4.0)).values
        assert np.abs(values[..., 1] - 50).max() < 2.0


class TestAwkward:
    def test_missing_short_and_constant_servers(self) -> None:
        given_, _ = trial(servers=5, width=0.5)
        raw, actual, scale = given_.raw.copy(), given_.actual.copy(), given_.scale.copy()
        raw[2:, 0] = np.nan  # history too short for the older windows
        actual[:, 1] = np.nan  # nothing seen
        raw[:, 2], actual[:, 2], scale[:, 2] = 7.0, 7.0, 0.0  # constant
        raw[:, 3], scale[:, 3] = 50.0, 0.0  # no spread, and wrong
        scale[:, 4] = np.nan
        verdict = judge(replace(given_, raw=raw, actual=actual, scale=scale))
        assert np.isfinite(verdict.values).all()
        assert (verdict.values[2] == 7.0).all()
        assert np.isnan(verdict.per_server["mae"][1])
        assert verdict.per_server["mae"][2] == 0.0

    def test_a_spread_of_rounding_is_no_spread(self) -> None:
        """What a forecast that repeats a rhythm to the digit misses by rounding says nothing of anybody's spread."""
        given_, _ = trial(servers=5)
        raw, actual, scale = given_.raw.copy(), given_.actual.copy(), given_.scale.copy()
        raw[:, 0] = 42.2 + 1e-14 * calibration.normal_scores_of(BASE)
        actual[:, 0], scale[:, 0] = 42.2 + 1e-6, 0.0
        verdict = judge(replace(given_, raw=raw, actual=actual, scale=scale))
        assert np.isnan(verdict.normal_scores[:, 0]).all()
        unseen = actual.copy()
        unseen[:, 0] = np.nan
        assert np.array_equal(judge(replace(given_, raw=raw, actual=unseen, scale=scale)).values, verdict.values)

    @pytest.mark.parametrize("servers", [4, 6, 60])
    def test_one_odd_server_does_not_widen_the_others(self, servers: int) -> None:
        """Quiet under a wide forecast, but for some days on which it is a million times what was told."""
        levels = (0.025, 0.1, 0.5, 0.9, 0.975)
        given_, _ = trial(servers=servers, levels=levels)
        actual, raw = given_.actual.copy(), given_.raw.copy()
        raw[:, 0] = 50 + 20 * (raw[:, 0] - 50)
        actual[..., 0, ::3] *= 1e6
        upper = np.full(servers, 1e9)
        before, after = (
            judge(replace(given_, lower=-upper, upper=upper, raw=r, actual=a)).values[1:]
            for r, a in ((given_.raw, given_.actual), (raw, actual))
        )
        wider = (after[..., -1] - after[..., 0]).mean() / (before[..., -1] - before[..., 0]).mean()
        assert 0.9 < wider < 1.5

    def test_crossing_quantiles_are_sorted_and_counted(self) -> None:
        given_, _ = trial(servers=3, horizon=14)
        given_.raw[0, 1, 5] = [60, 50, 40]
        verdict = judge(given_)
        assert verdict.crossed == 1
        assert (np.diff(verdict.values, axis=-1) >= 0).all()

    def test_bounds_hold(self) -> None:
        given_, _ = trial(width=30)
        values = judge(replace(given_, upper=np.full(40, 55.0), lower=np.full(40, 45.0))).values
        assert values.min() >= 45
        assert values.max() <= 55

    def test_bounds_may_differ_by_origin(self) -> None:
        given_, _ = trial(width=30, windows=1)
        upper = np.array([[100.0] * 40, [20.0] * 40])
        verdict = judge(replace(given_, lower=np.zeros((2, 40)), upper=upper))
        assert verdict.values.max() > 20
        assert verdict.per_server["mae"] == pytest.approx(np.abs(given_.actual[0] - 20).mean(axis=1))

    @given(
        seed=st.integers(0, 10_000),
        servers=st.integers(1, 4),
        horizon=st.integers(1, 20),
        windows=st.integers(0, 3),
        levels=st.sets(st.sampled_from([0.01, 0.05, 0.3, 0.7, 0.975, 0.99])),
    )
    @settings(max_examples=60, deadline=None)
    def test_whatever_comes_in_is_finite_bounded_and_ascending(
        self, seed: int, servers: int, horizon: int, windows: int, levels: set[float]
    ) -> None:
        random = np.random.default_rng(seed)
        every = tuple(sorted({*levels, *BASE}))
        raw = random.normal(50, 30, (1 + windows, servers, horizon, len(every))).round(-1)
        actual = random.normal(50, 30, (windows, servers, horizon)).round(-1)
        actual[random.random(actual.shape) < 0.3] = np.nan
        scale = random.choice([0.0, np.nan, 5.0], (1 + windows, servers))
        given_ = Trial(every, raw, actual, scale, np.zeros(servers), np.full(servers, 100.0), min(windows, 2))
        verdict = judge(given_)
        assert np.isfinite(verdict.values).all()
        assert verdict.values.min() >= 0
        assert verdict.values.max() <= 100
        assert (np.diff(verdict.values, axis=-1) >= 0).all()


class TestReading:
    @given(
        quantiles=st.lists(st.floats(-100, 100), min_size=5, max_size=5, unique=True),
        score=st.floats(-5, 5),
    )
    @settings(max_examples=100, deadline=None)
    def test_a_value_read_at_a_score_has_that_score(self, quantiles: list[float], score: float) -> None:
        levels = (0.05, 0.1, 0.5, 0.9, 0.99)
        given_ = calibration.floored(np.sort(quantiles)[None, None], levels, np.array([1.0]))
        value = calibration.read(given_, levels, np.array([[[score]]]))[..., 0]
        back = calibration.read(given_, levels, calibration.scores(value, given_, levels)[..., None])[..., 0]
        assert back == pytest.approx(value, rel=1e-6, abs=1e-6)

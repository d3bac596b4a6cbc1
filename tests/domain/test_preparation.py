from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import calendar
from app.domain.panel import Array, Frequency, Panel
from app.domain.preparation import OUTLIER_Z, cap_outliers, fill_gaps, prepare, trend

RHYTHM = np.array([50, 52, 54, 52, 50, 30, 25.0])


def panel(values: Array, frequency: Frequency = Frequency.DAILY, start: str = "2023-01-04") -> Panel:
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    servers, steps = values.shape
    return Panel(
        servers=tuple(f"s{i}" for i in range(servers)),
        start=np.datetime64(start, "s"),
        frequency=frequency,
        values=values,
        first=np.zeros(servers, dtype=np.int64),
        last=np.full(servers, steps - 1),
        lower=np.zeros(servers),
        upper=np.full(servers, 100.0),
    )


def week_after_week(weeks: int, noise: float = 1.0, servers: int = 1, seed: int = 7) -> Array:
    """A clear weekday rhythm with a little noise: (servers, 7 · weeks)."""
    return np.tile(RHYTHM, (servers, weeks)) + np.random.default_rng(seed).normal(0, noise, (servers, 7 * weeks))


def with_missing(values: Array, *columns: int) -> Array:
    values = np.array(values, dtype=np.float64)
    values[..., list(columns)] = np.nan
    return values


def test_a_gap_takes_the_rhythm_of_its_own_weekday() -> None:
    rising = np.tile(RHYTHM, 8) + np.repeat(np.arange(8), 7)
    filled = fill_gaps(panel(with_missing(rising, 24, 26, 27, *range(35, 49))))
    assert filled.values[0] == pytest.approx(rising)


def test_a_gap_at_the_end_takes_the_last_values_of_its_weekdays_and_never_zero() -> None:
    values = np.tile(RHYTHM, 6)
    filled = fill_gaps(panel(with_missing(values, *range(33, 42))))
    assert filled.values[0] == pytest.approx(values)


def test_a_gap_in_hours_takes_the_hours_of_the_days_around() -> None:
    day = 40 + 20 * np.sin(np.arange(24) / 24 * 2 * np.pi)
    values = np.tile(day, 5)
    filled = fill_gaps(panel(with_missing(values, *range(50, 79)), Frequency.HOURLY))
    assert filled.values[0] == pytest.approx(values)


def test_a_weekday_never_seen_is_filled_along_time() -> None:
    filled = fill_gaps(panel(with_missing(np.arange(10, 31.0), 3, 10, 17)))
    assert filled.values[0] == pytest.approx(np.arange(10, 31.0))


def test_outside_of_the_first_and_last_row_nothing_is_made_up() -> None:
    values = with_missing(week_after_week(6, servers=2), 0, 1, 2, 20, 40, 41)
    ragged = replace(panel(values), first=np.array([2, 3]), last=np.array([39, 40]))
    prepared, changes = prepare(ragged)
    assert np.isnan(prepared.values[0, [0, 1, 40, 41]]).all()
    assert np.isfinite(prepared.values[0, 2:40]).all()
    assert np.isfinite(prepared.values[1, 3:41]).all()
    assert changes.filled.tolist() == [2, 2]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(14, 90),
    missing=st.floats(0, 0.9),
    frequency=st.sampled_from(Frequency),
    outlier_z=st.sampled_from([0.0, 3.0, OUTLIER_Z]),
    seed=st.integers(0, 2**32 - 1),
)
def test_prepared_is_complete_bounded_by_what_was_seen_and_counted(
    steps: int, missing: float, frequency: Frequency, outlier_z: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.gamma(2, 20, (3, steps))
    values[random.random(values.shape) < missing] = np.nan
    values[0] = np.nan
    given_panel = panel(values, frequency)
    prepared, changes = prepare(given_panel, outlier_z)
    seen = np.isfinite(values)
    for server in range(3):
        if not seen[server].any():
            assert np.isnan(prepared.values[server]).all()
            continue
        assert np.isfinite(prepared.values[server]).all()
        assert prepared.values[server].min() >= np.nanmin(values[server]) - 1e-9
        assert prepared.values[server].max() <= np.nanmax(values[server]) + 1e-9
        assert changes.filled[server] == steps - seen[server].sum()
        assert changes.capped[server] == (prepared.values[server] != values[server])[seen[server]].sum()
    assert changes.summary()["filled_values"] == changes.filled.sum()
    assert changes.summary()["capped_servers"] == (changes.capped > 0).sum()
    assert outlier_z > 0 or not changes.capped.any()
    assert np.array_equal(given_panel.values, values, equal_nan=True)


@pytest.mark.parametrize("value", [98.0, 0.0])
@pytest.mark.parametrize("column", [0, 200, 363])
def test_an_outlier_is_capped_near_its_weekday(value: float, column: int) -> None:
    values = week_after_week(52)
    values[0, column] = value
    prepared, changes = prepare(panel(values))
    assert changes.capped.tolist() == [1]
    assert prepared.values[0, column] == pytest.approx(RHYTHM[column % 7], abs=12)


def test_an_outlier_does_not_leak_into_a_gap() -> None:
    values = with_missing(week_after_week(20), 77)
    values[0, 70] = 1e6
    prepared, _ = prepare(panel(values))
    assert prepared.values[0, 77] == pytest.approx(RHYTHM[0], abs=8)


def test_one_glitch_of_a_constant_server_is_capped() -> None:
    values = np.full(200, 40.0)
    values[101] = 1000
    prepared, changes = prepare(panel(values))
    assert changes.capped.tolist() == [1]
    assert prepared.values[0, 101] < 600


@pytest.mark.parametrize("column", [180, 360], ids=["an ordinary day", "the end of a quarter"])
def test_one_glitch_of_a_server_that_repeats_itself_does_not_set_its_own_limit(column: int) -> None:
    values = np.tile(np.arange(1.0, 8.0), 58)[None]
    values[0, column] = 1e9
    prepared, changes = prepare(panel(values, start="2022-01-01"))
    assert changes.capped.tolist() == [1]
    assert prepared.values[0, column] < 100


def test_a_lower_limit_caps_more() -> None:
    values = panel(np.random.default_rng(3).standard_t(3, (20, 700)))
    capped = [prepare(values, z)[1].capped.sum() for z in (8.0, 6.0, 4.0)]
    assert 0 < capped[0] < capped[1] < capped[2] <= 0.02 * 20 * 700


def weekly_peak(values: Array) -> None:
    values[:, 2::7] += 40


def fortnightly_peak(values: Array) -> None:
    values[:, 2::14] += 40


def monthly_peak(values: Array) -> None:
    values[:, ::30] += 40


def level_shift(values: Array) -> None:
    values[:, 171:] += 30


def growth(values: Array) -> None:
    values += np.linspace(0, 60, values.shape[1])


def end_of_quarter(values: Array) -> None:
    last_days = calendar.end_of_quarter(panel(values).times, days=2)
    values[:, last_days] += 40


def a_busy_week(values: Array) -> None:
    values[:, 173:178] += 40


def holidays(values: Array) -> None:
    values[:, calendar.is_holiday(panel(values).times, "US")] -= 25


@pytest.mark.parametrize(
    "happens",
    [weekly_peak, level_shift, growth, end_of_quarter, a_busy_week, holidays],
    ids=lambda function: function.__name__,
)
def test_what_recurs_or_lasts_is_no_outlier(happens) -> None:  # type: ignore[no-untyped-def]
    values = week_after_week(104, servers=20)
    happens(values)
    capped = cap_outliers(panel(values)).values
    assert np.abs(capped - values).max() < 3


@pytest.mark.parametrize("happens", [fortnightly_peak, monthly_peak], ids=lambda function: function.__name__)
def test_a_rarer_peak_stays_a_peak(happens) -> None:  # type: ignore[no-untyped-def]
    values = week_after_week(104, servers=20)
    happens(values)
    capped = cap_outliers(panel(values)).values
    assert np.abs(capped - values).max() < 20
    assert np.abs(capped - values).mean() < 0.1


def test_trend_is_the_growth_per_day_despite_seasons_and_outliers() -> None:
    day = np.arange(3 * 364)
    values = 20 + 0.05 * day + 15 * np.sin(2 * np.pi * day / 364) + np.tile(RHYTHM, 156)
    values[::50] += 500
    assert trend(panel(values)) == pytest.approx([0.05], abs=1e-3)
    hours = np.arange(24 * 20)
    assert trend(panel(hours / 24.0 + 5 * (hours % 24 > 8), Frequency.HOURLY)) == pytest.approx([1.0])
    assert trend(panel(-0.5 * np.arange(14.0))) == pytest.approx([-0.5])


def test_trend_needs_two_values_a_season_apart() -> None:
    assert np.isnan(trend(panel(with_missing(np.arange(14.0), *range(7)))))
    short = replace(panel(np.arange(14.0)), last=np.array([4]))
    assert np.isnan(trend(short))


def test_an_empty_panel_stays_empty() -> None:
    empty = panel(np.zeros((0, 20)))
    prepared, changes = prepare(empty)
    assert len(prepared) == 0
    assert changes.summary() == {"filled_values": 0, "filled_servers": 0, "capped_values": 0, "capped_servers": 0}

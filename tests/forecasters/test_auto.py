"""Weights that prefer the better, learn from older windows alone, and leave nobody without a forecast."""

from dataclasses import replace

import numpy as np
import pytest

from app import forecasters
from app.domain.calibration import normal_scores_of
from app.domain.evaluation import Trial, judge
from app.forecasters.auto import FORECASTER

LEVELS = (0.1, 0.5, 0.9)


MEMBERS = ("structural", "gradient_boosting", "statistical")
Trials = dict[str, Trial]


def trials(errors: tuple[float, ...], servers: int = 30, windows: int = 4, horizon: int = 14) -> Trials:
    """One trial per member; member m is off by `errors[m]` at random, around values of 50 with deviation 1."""
    random = np.random.default_rng(0)
    actual = 50 + random.normal(size=(windows, servers, horizon))
    made = {}
    for member, error in zip(MEMBERS, errors, strict=True):
        centre = 50 + error * random.normal(size=(1 + windows, servers, 1, 1))
        raw = np.broadcast_to(centre + normal_scores_of(LEVELS), (1 + windows, servers, horizon, 3)).copy()
        scale = np.ones((1 + windows, servers))
        made[member] = Trial(LEVELS, raw, actual, scale, np.zeros(servers), np.full(servers, 100.0), 1)
    return made


def test_it_is_an_ensemble_of_models_that_exist() -> None:
    assert isinstance(forecasters.load("auto"), forecasters.Ensemble)
    assert set(FORECASTER.members(69)) < set(forecasters.names())


def test_a_large_fleet_does_without_the_member_that_takes_a_server_at_a_time() -> None:
    assert set(FORECASTER.members(69)) - set(FORECASTER.members(10_000)) == {"statistical"}


def test_a_bad_member_is_left_out_and_weights_add_up() -> None:
    weights = FORECASTER.weigh(trials((0.2, 8.0, 0.5)))
    assert weights.shape == (5, 3, 30)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert weights[0, 1].max() < 0.01
    assert (weights[0, 0] > weights[0, 2]).mean() > 0.8


def test_one_server_that_jumps_by_factors_does_not_choose_for_the_others() -> None:
    """It alone is better told by the last member, and its losses are a million times those of all others."""
    given = trials((0.2, 8.0, 0.5))
    odd = {name: replace(trial, raw=trial.raw.copy(), actual=trial.actual.copy()) for name, trial in given.items()}
    for (name, trial), off in zip(odd.items(), (1e7, 1e7, 1e6), strict=True):
        odd[name] = replace(trial, upper=np.where(np.arange(30) == 0, 1e9, 100.0))
        odd[name].actual[:, 0], odd[name].raw[:, 0] = 1e8, 1e8 + off
    weights = FORECASTER.weigh(odd)[0]
    assert weights[2, 0] > 0.5
    assert weights[:, 1:].mean(axis=1) == pytest.approx(FORECASTER.weigh(given)[0, :, 1:].mean(axis=1), abs=0.02)


def test_the_oldest_window_knows_only_the_prior() -> None:
    weights = FORECASTER.weigh(trials((0.2, 8.0, 0.5)))
    assert np.ptp(weights[4], axis=1) == pytest.approx(0.0)
    assert weights[4, 0, 0] > weights[4, 2, 0]


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_weights_of_a_window_use_older_windows_alone(window: int) -> None:
    before = trials((0.2, 1.0, 0.5))
    actual = before["structural"].actual.copy()
    actual[:window] = 80.0
    after = {name: replace(trial, actual=actual) for name, trial in before.items()}
    assert np.array_equal(FORECASTER.weigh(before)[window:], FORECASTER.weigh(after)[window:])
    assert not np.array_equal(FORECASTER.weigh(before)[0], FORECASTER.weigh(after)[0]) or window == 0


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_judged_ensemble_learns_from_older_windows_alone(window: int) -> None:
    before = trials((0.2, 1.0, 0.5))
    random = np.random.default_rng(7)
    after = {}
    newer = random.uniform(0, 100, (window - 1, *before["structural"].actual.shape[1:]))
    for name, trial in before.items():
        actual, raw = trial.actual.copy(), trial.raw.copy()
        actual[: window - 1] = newer
        raw[:window] += random.normal(0, 5, raw[:window].shape)
        after[name] = replace(trial, actual=actual, raw=raw)
    one, other = (judge(FORECASTER.combine(each).trial) for each in (before, after))
    assert np.array_equal(one.normal_scores[window - 1], other.normal_scores[window - 1])


def test_the_mean_of_good_members_beats_each() -> None:
    members = trials((1.0, 1.0, 1.0), servers=600)
    future = np.full((600, 14), 50.0)

    def error(trial: Trial) -> float:
        return float(np.abs(trial.raw[0, ..., 1] - future).mean())

    assert error(FORECASTER.combine(members).trial) < min(map(error, members.values()))


def test_a_server_is_weighed_by_its_own_misses_too() -> None:
    members = trials((0.2, 0.2, 0.2))
    members["structural"].raw[:, :5] += 6
    weights = FORECASTER.weigh(members)[0]
    assert weights[0, :5].max() < 0.1
    assert weights[0, 5:].min() > 10 * weights[0, :5].max()


def test_a_member_without_forecast_leaves_its_share_to_the_others() -> None:
    members = trials((0.2, 0.2, 0.2))
    members["structural"].raw[:, 3] = np.nan
    for member in members.values():
        member.raw[2:, 4] = np.nan  # a young server
    combined = FORECASTER.combine(members)
    assert np.isfinite(combined.trial.raw[0]).all()
    assert np.isnan(combined.trial.raw[2:, 4]).all()
    assert np.isfinite(judge(combined.trial).values).all()
    assert combined.weights.shape == (3, 30)


def test_no_window_is_no_obstacle() -> None:
    members = trials((0.2, 1.0, 0.5), windows=0)
    combined = FORECASTER.combine({name: replace(member, reported=0) for name, member in members.items()})
    assert np.isfinite(combined.trial.raw).all()
    assert combined.weights.sum(axis=0) == pytest.approx(1.0)


def test_all_zero_losses_are_no_division_by_zero() -> None:
    members = trials((0.0, 0.0, 0.0))
    for member in members.values():
        member.raw[:] = 0.0
        member.actual[:] = 0.0
    assert np.isfinite(FORECASTER.weigh(members)).all()

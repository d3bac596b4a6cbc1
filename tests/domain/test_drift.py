"""When what came is worse than was promised, and when it only looks so."""

import numpy as np
import pytest

from app.domain.drift import NOTHING, WORST, drift
from app.domain.panel import Array


def tally(servers: int, loss: float | Array = 1.0, coverage: float | Array = 0.8, values: float = 28) -> Array:
    """One stretch of the horizon: the loss per value, the share covered."""
    each = np.ones(servers)
    return np.stack([values * each, each, values * loss * each, 50 * values * each, values * coverage * each], axis=1)[
        :, None
    ]


def test_what_is_as_promised_does_not_drift() -> None:
    random = np.random.default_rng(1)
    flagged = [
        drift(
            tally(40, random.gamma(4, 0.25, 40), random.binomial(4, 0.8, 40) / 4),
            tally(40, random.gamma(4, 0.25, 40), random.binomial(4, 0.8, 40) / 4),
            7,
        ).flagged
        for _ in range(300)
    ]
    assert np.mean(flagged) <= 0.02


def test_a_worse_loss_on_most_servers_drifts() -> None:
    loss = np.r_[np.full(30, 1.6), np.full(10, 0.9)]
    found = drift(tally(40, loss), tally(40), 7)
    assert (found.flagged, len(found.reasons)) == (True, 1)
    assert found.loss_ratio == pytest.approx(loss.mean())
    assert "1.43 times" in found.reasons[0]


def test_neither_a_small_nor_a_chance_difference_drifts() -> None:
    assert not drift(tally(1_000, 1.1), tally(1_000), 7).flagged
    few = np.r_[np.full(5, 40.0), np.full(95, 0.9)]
    assert not drift(tally(100, few), tally(100), 7).flagged


def test_lost_coverage_drifts_and_gained_coverage_does_not() -> None:
    assert "covers 60%" in drift(tally(20, coverage=0.6), tally(20), 7).reasons[0]
    assert not drift(tally(20, coverage=1.0), tally(20), 7).flagged


def test_servers_that_drift_by_themselves_are_named_worst_first() -> None:
    loss, coverage = np.ones(50), np.full(50, 0.8)
    loss[:30], coverage[:30] = np.arange(30) + 2.0, 0.0
    coverage[29] = 0.8  # as much covered as promised
    found = drift(tally(50, loss, coverage), tally(50), 7)
    assert (found.compared, found.drifted, len(found.worst)) == (50, 29, WORST)
    assert [one.server for one in found.worst] == list(range(28, 28 - WORST, -1))


def test_of_a_few_servers_half_must_drift() -> None:
    bad = np.array([9.0, 9, 1, 1, 1, 1])
    assert not drift(tally(6, bad, (bad < 2) * 0.8), tally(6), 7).flagged
    bad[2] = 9
    assert drift(tally(6, bad, (bad < 2) * 0.8), tally(6), 7).flagged


def test_a_season_must_have_come_and_something_been_promised() -> None:
    assert drift(tally(9, 9.0, 0.0, values=6), tally(9), 7) == NOTHING
    assert drift(tally(9, 9.0, 0.0), tally(9, values=0), 7) == NOTHING
    assert drift(tally(1, 9.0, 0.0, values=13), tally(1), 7).drifted == 0


def test_stretches_are_compared_with_themselves() -> None:
    """The second month is promised to be ten times as hard, and has not come."""
    promised = np.concatenate([tally(20), tally(20, 10.0)], axis=1)
    live = np.concatenate([tally(20, 2.0), tally(20, values=0)], axis=1)
    assert drift(live, promised, 7).loss_ratio == pytest.approx(2)

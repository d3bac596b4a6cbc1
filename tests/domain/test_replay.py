"""How answers are scored: figures small enough to be counted by hand."""

import numpy as np
import pytest

from app.domain import replay
from app.domain.panel import Frequency, Panel
from app.domain.replay import Cases, Downsized
from app.domain.rightsizing import Rules

LATE = np.nan


def cases(told, breach, flagged=None, origin=None, p50=None) -> Cases:
    count = len(told)
    days = np.array(origin if origin is not None else [0] * count)
    return Cases(
        origin=np.datetime64("2024-01-31", "s") + days * np.timedelta64(86_400, "s"),
        threshold=np.full(count, 80.0),
        server=np.array([f"s{i}" for i in range(count)]),
        told=np.array(told, dtype=float),
        flagged=np.array(flagged if flagged is not None else [p >= 0.5 for p in told]),
        line=np.full(count, 0.5),
        naive=np.zeros(count),
        p10=np.full(count, np.nan),
        p50=np.array(p50 if p50 is not None else [np.nan] * count, dtype=float),
        breach=np.array(breach, dtype=float),
    )


def test_of_the_servers_told_so_much_how_many_breached():
    found = replay.reliability(np.array([0.0, 0.1, 0.2, 0.6, 1.0]), np.array([False, True, False, True, True]))
    assert [(one.start, one.stop, one.cases, one.happened) for one in found] == [
        (0.0, 0.2, 2, 0.5),
        (0.2, 0.4, 1, 0.0),
        (0.6, 0.8, 1, 1.0),
        (0.8, 1.0, 1, 1.0),
    ]
    assert found[0].told == pytest.approx(0.05)
    tenths = replay.reliability(np.array([0.0, 0.1, 0.3, 1.0]), np.array([False, True, True, True]), replay.TENTHS)
    assert [(one.start, one.stop, one.cases) for one in tenths] == [
        (0.0, 0.1, 1),
        (0.1, 0.2, 1),
        (0.3, 0.4, 1),
        (0.9, 1.0, 1),
    ]


def test_brier_scores_of_all_that_could_have_been_used():
    scored = replay.report(cases([0.8, 0.2, 0.6, 0.0], [5, LATE, LATE, 30]))
    assert scored.base_rate == 0.5
    assert scored.brier.headroom == pytest.approx((0.04 + 0.04 + 0.36 + 1.0) / 4)
    assert scored.brier.p90_rule == pytest.approx(0.5)
    assert scored.brier.p90_rule_recalibrated == pytest.approx(0.5)
    assert scored.brier.straight_line == pytest.approx(0.25)
    assert scored.brier.seasonal_naive == pytest.approx(0.5)
    assert scored.base_rates == {"80": 0.5}


def test_the_p90_rule_learns_from_earlier_origins_alone():
    flagged = [True, True, True, False, True, False]
    found = replay.recalibrated(cases([0.5] * 6, [1, LATE, 1, LATE, 9, 9], flagged, origin=[0, 0, 0, 0, 31, 31]))
    np.testing.assert_allclose(found, [1, 1, 1, 0, 2.5 / 4, 0.5 / 2])


def test_alarms_true_false_and_missing():
    scored = replay.report(cases([0.9, 0.7, 0.6, 0.1, 0.1], [10, 20, LATE, 40, LATE], flagged=[False] * 5))
    alarms = scored.alarms["P(breach) >= 0.5"]
    assert (alarms.alarms, alarms.true, alarms.false_per_100, alarms.lead_days) == (3, 2, 20.0, 15.0)
    assert alarms.missed == pytest.approx(1 / 3)
    silent = scored.alarms["p90 rule"]
    assert (silent.alarms, silent.missed, silent.lead_days) == (0, 1.0, None)


def test_a_date_is_true_when_the_breach_has_come_by_then():
    scored = replay.report(cases([0.6] * 4, [5, 20, LATE, 3], p50=[5, 19, 60, np.nan]))
    assert (scored.first_passage["p50"].told, scored.first_passage["p50"].happened) == (3, pytest.approx(1 / 3))
    assert scored.first_passage["p10"].happened is None


def test_without_a_case_nothing_is_scored():
    with pytest.raises(ValueError, match="below a threshold"):
        replay.report(cases([], []))


def test_downsizes_may_breach_as_often_as_chance_allows():
    assert Downsized(Rules().epsilon, 0, 0).share is None
    assert Downsized(0.05, 100, 7).share == 0.07
    assert Downsized(0.05, 100, 7).most == pytest.approx(0.05 + 2 * np.sqrt(0.05 * 0.95 / 100))


def test_a_straight_line_is_drawn_on_with_its_residuals():
    values = np.full((2, 40), np.nan)
    values[0, 10:] = 3.0 + 0.5 * np.arange(10, 40)
    values[1] = np.tile([9.0, 11.0], 20)
    panel = Panel(
        servers=("a", "b"),
        start=np.datetime64("2024-01-01", "s"),
        frequency=Frequency.DAILY,
        values=values,
        first=np.array([10, 0]),
        last=np.array([39, 39]),
        lower=np.zeros(2),
        upper=np.full(2, np.inf),
    )
    found = replay.straight_line(panel, 5, (0.1, 0.5, 0.9))
    np.testing.assert_allclose(found[0, :, 1], 3.0 + 0.5 * np.arange(40, 45))
    np.testing.assert_allclose(found[0, :, 2], found[0, :, 0], atol=1e-6)
    assert found[1, 0, 1] == pytest.approx(10, abs=0.3)
    assert found[1, 0, 2] - found[1, 0, 1] == pytest.approx(1.2816, abs=0.08)

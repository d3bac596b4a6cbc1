"""Which servers a rule is about, and what changed since the forecast before."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import alerts, paths, risk
from app.domain.alerts import DaysOver, LevelAtLeast, NotAnswerable, ProbabilityOver, RunwayUnder, Where
from app.domain.panel import Frequency
from app.domain.risk import Levels, Outlook

BASE = (0.1, 0.5, 0.9)
AT = datetime(2023, 1, 2, 8, tzinfo=UTC)
CONDITIONS = [
    LevelAtLeast("high"),
    RunwayUnder(30, "expected"),
    ProbabilityOver(0.5),
    DaysOver(3, 7, 0.9),
]


def outlook(p90, *, frequency=Frequency.DAILY):
    """Forecasts with this p90, and p50 and p10 10 and 20 below it."""
    p90 = np.asarray(p90, dtype=np.float64)
    values = np.stack([p90 - 20, p90 - 10, p90], axis=2)
    servers = len(p90)
    as_of = np.full(servers, np.datetime64("2022-12-31T00:00:00", "s"))
    return Outlook(values, BASE, as_of, frequency, "percent", np.zeros(servers), np.full(servers, 150.0))


def meets(condition, view, threshold=90.0):
    thresholds = np.full(len(view), threshold)
    found = risk.assess(view, thresholds, paths.autoregressive(view.horizon), Levels())
    return alerts.meets(condition, found, view, thresholds).tolist()


def test_a_level_is_met_by_itself_and_those_above() -> None:
    view = outlook([[91.0], [81.0], [80.0], [45.0]])
    assert meets(LevelAtLeast("high"), view) == [True, True, False, False]
    assert meets(LevelAtLeast("very_high"), view) == [True, False, False, False]


def test_a_runway_is_under_only_when_it_is_known_and_shorter() -> None:
    view = outlook([[80, 80, 91], [80, 91, 101], [80, 80, 80]])  # the third day, the second, never
    assert meets(RunwayUnder(3, "conservative"), view) == [False, True, False]
    assert meets(RunwayUnder(3.5, "conservative"), view) == [True, True, False]
    assert meets(RunwayUnder(3.5, "expected"), view) == [False, True, False]


def test_a_probability_must_be_passed() -> None:
    view = outlook([[90.0], [90.1], [95.0]])
    assert meets(ProbabilityOver(0.1), view) == [False, True, True]


@pytest.mark.parametrize(
    ("k", "of", "met"),
    [(1, 1, True), (2, 2, False), (2, 3, True), (3, 3, False), (3, 5, True), (4, 5, False), (4, 7, False)],
)
def test_days_over_are_counted_in_each_stretch(k: int, of: int, met: bool) -> None:
    assert meets(DaysOver(k, of, 0.9), outlook([[80, 91, 80, 91, 80, 91, 80, 90]])) == [met]


def test_a_stretch_may_reach_beyond_the_horizon() -> None:
    assert meets(DaysOver(2, 30, 0.9), outlook([[91, 80, 91]])) == [True]
    assert meets(DaysOver(3, 30, 0.9), outlook([[91, 80, 91]])) == [False]


def test_an_hour_over_makes_a_day_of_hourly_data() -> None:
    hours = np.full((2, 60), 80.0)
    hours[0, [3, 50]] = 91.0  # the first day and the third, which is not whole
    hours[1, [3, 4, 5]] = 91.0
    view = outlook(hours, frequency=Frequency.HOURLY)
    assert meets(DaysOver(2, 3, 0.9), view) == [True, False]
    assert meets(DaysOver(2, 2, 0.9), view) == [False, False]


def test_the_median_can_be_asked_for_and_a_level_that_is_not_there_cannot() -> None:
    view = outlook([[95.0], [101.0]])
    assert meets(DaysOver(1, 1, 0.5), view) == [False, True]
    with pytest.raises(NotAnswerable, match="the forecast has no p95; it has p10, p50, p90"):
        meets(DaysOver(1, 1, 0.95), view)


@given(
    over=st.lists(st.booleans(), min_size=1, max_size=30),
    of=st.integers(1, 12),
    k=st.integers(1, 12),
)
def test_days_over_are_what_counting_by_hand_finds(over: list[bool], of: int, k: int) -> None:
    by_hand = any(sum(over[start : start + of]) >= k for start in range(len(over)))
    view = outlook([[91.0 if one else 80.0 for one in over]])
    thresholds = np.array([90.0])
    assert alerts._days_over(k, of, 0.9, view, thresholds).tolist() == [by_hand]


def test_no_servers_are_no_trouble() -> None:
    view = outlook(np.empty((0, 3)))
    assert all(meets(condition, view) == [] for condition in CONDITIONS)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: type(condition).__name__)
def test_a_condition_is_written_and_read(condition: alerts.Condition) -> None:
    assert alerts.condition_from_json(alerts.condition_to_json(condition)) == condition


def test_where_takes_one_value_of_each() -> None:
    where = Where(region=("north", "east"), criticality=("1",))
    assert where.passes("a", {"region": "north", "criticality": 1})
    assert where.passes("a", {"region": "north", "criticality": "1.0"})
    assert not where.passes("a", {"region": "north", "criticality": "1.00"})
    assert not where.passes("a", {"region": "north"})
    assert not where.passes("a", {"region": "south", "criticality": "1"})
    assert Where(server_id=("a",)).passes("a", {})
    assert not Where(server_id=("a",)).passes("b", {})
    assert Where().passes("b", {"region": "anywhere"})
    assert Where.from_json(where.to_json()) == where


def test_what_changed_since_the_forecast_before() -> None:
    earlier = AT - timedelta(days=30)
    before = {"still": earlier, "left": earlier, "not-asked": earlier}
    change = alerts.changed(before, ["new", "still", "left", "never"], ["new", "still"], AT)
    assert change.entered == {"new": AT}
    assert change.still == {"still": earlier}
    assert change.left == {"left": earlier}
    assert change.after == {"not-asked": earlier, "still": earlier, "new": AT}


def test_a_secret_is_not_printed() -> None:
    rule = alerts.Rule(
        id=None, name="", metric=None, where=Where(), threshold=None, model=None, condition=CONDITIONS[0],
        only_changes=False, url="", secret="whsec_canary", enabled=True, created_at=AT,
    )  # fmt: skip
    assert "canary" not in repr(rule)

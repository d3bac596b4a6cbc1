"""What a scenario makes of a fleet is what judging the changed fleet by itself would say."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import paths, risk
from app.domain.dataset import Contents, Quality, Server, Unit
from app.domain.forecast import Forecast, ForecastRequest
from app.domain.panel import Frequency
from app.domain.risk import Levels, Risk
from app.domain.run import Run
from app.services.fleets import Fleet, Limits, judge
from app.services.scenarios import Capacity, Growth, NewThreshold, Retire, Where, outcome_of
from app.storage.results import SCORES, ResultMatrix

END = datetime(2022, 12, 31, tzinfo=UTC)
EVERYONE = Where()


def fleet(seed: int, unit: Unit) -> Fleet:
    """Eight servers in two regions; their capacities and maxima differ, and their last days."""
    random = np.random.default_rng(seed)
    names = tuple(f"SRV-{n}" for n in range(8))
    contents = Contents(
        8, 8, ("load",), {"load": unit}, ("region",), (), Frequency.DAILY, END, END, Quality(0, 0, 0, 0)
    )
    servers = tuple(
        Server(
            name, END, END, 100, {"load": 100}, {"load": 90.0 + 10 * n}, {"region": "ab"[n % 2], "capacity": 60.0 + n}
        )
        for n, name in enumerate(names)
    )
    ends = np.datetime64("2022-12-31T00:00:00", "s") - random.integers(0, 4, 8) * np.timedelta64(86_400, "s")
    found = ResultMatrix(
        server_ids=names,
        as_of=ends,
        frequency=Frequency.DAILY,
        levels=(0.1, 0.5, 0.9),
        values=np.sort(random.uniform(20, 90, (8, 12, 3)), axis=-1).astype(np.float32),
        fallback=(None,) * 8,
        scores={name: np.full(8, 0.8, np.float32) for name in SCORES},
    )
    new = uuid4()
    run = Run.queued(new, "auto", 0, 8)
    forecast = Forecast(new, ForecastRequest(uuid4(), "load", 12), "succeeded", (), "auto", (run,), 1, END, END)
    return Fleet(forecast, run, contents, found, servers, paths.autoregressive(12, 0.8))


def same(one: Risk, other: Risk, rows: np.ndarray) -> None:
    for field in fields(Risk):
        np.testing.assert_array_equal(getattr(one, field.name)[rows], getattr(other, field.name)[rows])


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(Unit)),
    st.floats(-50, 150),
    st.integers(-1, 15),
    st.floats(0.3, 3),
    st.floats(30, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_scenario_is_the_answer_of_the_changed_fleet(seed, unit, percent, days, factor, threshold):
    base_fleet = fleet(seed, unit)
    base = judge(base_fleet, Limits(70.0), Levels())
    in_a = np.array([value == "a" for value in base_fleet.attribute("region")])
    since = np.datetime64("2022-12-31", "s") + np.timedelta64(86_400, "s") * min(days, 8)
    found = outcome_of(
        base_fleet,
        base,
        [
            Growth(percent, since, Where(attributes=(("region", ("a",)),))),
            Capacity(factor, None, Where(("SRV-0", "SRV-1"))),
            NewThreshold(threshold, Where(("SRV-4",))),
            Retire(Where(("SRV-6", "SRV-7"))),
        ],
        Levels(),
    )
    times = base_fleet.matrix.as_of[:, None] + np.arange(1, 13) * np.timedelta64(86_400, "s")
    grown = np.where((times >= since) & in_a[:, None], 1 + percent / 100, 1.0)
    room = np.where(np.arange(8) < 2, factor, 1.0)
    limits = np.where(np.arange(8) == 4, threshold, 70.0) * (room if unit is Unit.ABSOLUTE else 1.0)
    values = (base_fleet.matrix.values * grown[..., None]).astype(np.float32)
    outlook = base_fleet.outlook()
    if unit is not Unit.ABSOLUTE:
        full = 100.0 if unit is Unit.PERCENT else 1.0
        upper = np.maximum(full, outlook.upper / room)
        values = (values / room[:, None, None]).astype(np.float32)
        touched = in_a | (np.arange(8) < 2)
        clipped = np.clip(values, 0, upper[:, None, None].astype(np.float32))
        values = np.where(touched[:, None, None], clipped, values)
        outlook = replace(outlook, upper=upper)
    direct = risk.assess(replace(outlook, values=values), limits, base_fleet.template, Levels())
    kept = np.arange(8) < 6
    assert found.kept.tolist() == kept.tolist()
    assert found.selected == [4, 2, 1, 2]
    np.testing.assert_allclose(found.thresholds, limits)
    untouched = np.flatnonzero([not (a or n < 2 or n == 4) and n < 6 for n, a in enumerate(in_a)])
    same(found.risk, base.risk, untouched)
    assert not found.changed[untouched].any()
    assert found.changed[6:].all()
    for name in ("max_p90", "mean_p50", "breach_probability", "expected_breach_days"):
        np.testing.assert_allclose(getattr(found.risk, name)[kept], getattr(direct, name)[kept], rtol=1e-5, atol=4e-3)


@given(st.integers(0, 2**32 - 1), st.sampled_from(list(Unit)), st.floats(0, 100), st.floats(1, 3))
@settings(max_examples=40, deadline=None)
def test_growth_never_helps_and_room_never_hurts(seed, unit, percent, factor):
    base_fleet = fleet(seed, unit)
    base = judge(base_fleet, Limits(70.0), Levels())
    more = outcome_of(base_fleet, base, [Growth(percent, None, EVERYONE)], Levels()).risk
    room = outcome_of(base_fleet, base, [Capacity(factor, None, EVERYONE)], Levels()).risk
    if unit is not Unit.RATIO:  # a ratio over 1 is clipped, and these are ratios of 20 to 90
        assert (more.breach_probability >= base.risk.breach_probability - 1e-9).all()
        assert (more.max_p90 >= base.risk.max_p90 * (1 - 1e-6)).all() or unit is Unit.PERCENT
    assert (room.breach_probability <= base.risk.breach_probability + 1e-9).all()


def test_room_and_load_that_grow_alike_change_nothing_of_a_share():
    base_fleet = fleet(3, Unit.PERCENT)
    base = judge(base_fleet, Limits(70.0), Levels())
    found = outcome_of(base_fleet, base, [Growth(100.0, None, EVERYONE), Capacity(2.0, None, EVERYONE)], Levels())
    bounded_alike = np.arange(2)  # the others were once over 100, and a bound above that shrinks as room grows
    same(found.risk, base.risk, bounded_alike)
    assert not found.changed[bounded_alike].any()

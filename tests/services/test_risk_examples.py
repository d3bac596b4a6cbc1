"""The examples of docs/risk.md that need more than one server, or more than one forecast, to the digit."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np

from app.domain import quantiles, totals
from app.domain.dataset import Contents, Quality, Server, Unit
from app.domain.forecast import Forecast, ForecastRequest
from app.domain.panel import Frequency
from app.domain.paths import Template
from app.domain.risk import Levels, Outlook, order_by
from app.domain.run import Run
from app.services.fleets import Fleet, Limits, judge
from app.services.risk_diff import difference_of
from app.services.scenarios import Capacity, Growth, Where, outcome_of
from app.storage.results import SCORES, ResultMatrix

TEXT = (Path(__file__).parents[2] / "docs" / "risk.md").read_text("utf-8")
END = datetime(2022, 12, 31, tzinfo=UTC)
DAY_0 = np.datetime64("2022-12-31T00:00:00", "s")
OLD = np.array([[[70, 80, 90], [74, 84, 94], [78, 88, 98]]], np.float32)


def fleet(values: np.ndarray, model: str = "old", as_of: np.datetime64 = DAY_0) -> Fleet:
    """One percent server whose past maximum is far above 100."""
    found = ResultMatrix(
        ("A",), np.array([as_of]), Frequency.DAILY, (0.1, 0.5, 0.9), values, (None,), {n: np.ones(1) for n in SCORES}
    )
    contents = Contents(1, 1, ("cpu",), {"cpu": Unit.PERCENT}, (), (), Frequency.DAILY, END, END, Quality(0, 0, 0, 0))
    run = Run.queued(uuid4(), model, 0, 1)
    request = ForecastRequest(uuid4(), "cpu", 3)
    forecast = Forecast(run.forecast_id, request, "succeeded", (), model, (run,), 1, END, END)
    ranks = np.tile(np.arange(10, dtype=np.uint16)[:, None], (1, 3))
    server = Server("A", END, END, 9, {"cpu": 9}, {"cpu": 900.0}, {})
    return Fleet(forecast, run, contents, found, (server,), Template(ranks, "by hand"))


def with_p90(*p90: float) -> np.ndarray:
    return (np.array(p90)[:, None] - np.array([20, 10, 0]))[None].astype(np.float32)


def test_when_to_order_and_what_is_usable() -> None:
    judged = judge(fleet(OLD), Limits(90.0), Levels()).risk
    found = order_by(np.array([DAY_0]), judged.runway_conservative, np.array([30.0]))
    assert found.astype(str).tolist() == ["2022-12-03"]
    assert judge(fleet(OLD), Limits(110.0), Levels()).risk.headroom_pct.tolist() == [12.0]
    assert f"= {7 / 100 * 64:.2f}." in TEXT


def test_the_total_of_two_servers() -> None:
    values = np.array([[[70, 80, 90]], [[34, 40, 46]]], np.float32)
    order = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 0, 5, 1, 2, 8, 4, 9, 6, 7]]
    levels, nowhere = (0.1, 0.5, 0.9), np.full(2, np.inf)
    outlook = Outlook(values, levels, np.full(2, DAY_0), Frequency.DAILY, "absolute", -nowhere, nowhere)
    ranks = np.array(order, np.uint16)[:, None, :]
    paths, p90s = totals.total(outlook, np.arange(2), np.ones(2), ranks, np.arange(2), DAY_0)
    for name, its, ranked in zip("XY", values[:, 0], order, strict=True):
        at = quantiles.interpolate(its.astype(float), levels, (np.arange(10) + 0.5) / 10)[ranked]
        p10, p50, p90 = its.astype(int)
        shown = (" ".join(map(str, ranked)), " ".join(f"{value:.2f}" for value in at))
        assert f"| {name} | {p10} | {p50} | {p90} | {shown[0]} | {shown[1]} |" in TEXT
    assert f"The totals are {' '.join(f'{value:.2f}' for value in paths[0])}." in TEXT
    p90 = totals.quantiles_of(paths, (0.9,)).item()
    assert f"= {p90:.2f}; the sum of the p90s is {p90s.item():.0f}." in TEXT
    assert f"`breach_probability` = {totals.passed_by(paths, 130.0).item()}." in TEXT


def test_growth_and_then_room() -> None:
    now = fleet(OLD)
    base = judge(now, Limits(90.0), Levels())
    growth = Growth(10.0, np.datetime64("2023-01-02", "s"), Where())
    grown = outcome_of(now, base, [growth], Levels()).risk
    assert (grown.runway_conservative.tolist(), grown.runway_expected.tolist()) == ([2.0], [2.0])
    np.testing.assert_allclose(grown.max_p90, [107.8], rtol=1e-6)
    np.testing.assert_allclose(grown.mean_p50, [(80 + 92.4 + 96.8) / 3], rtol=1e-6)
    roomy = outcome_of(now, base, [growth, Capacity(1.25, None, Where())], Levels()).risk
    assert np.isnan(roomy.runway_conservative).all()
    assert f"`headroom_pct` = {roomy.headroom_pct.item():.2f}." in TEXT


def test_why_a_breach_moved() -> None:
    old, other = fleet(OLD), fleet(with_p90(92, 96, 97), "new")
    new = fleet(with_p90(93, 94, 95), "new", DAY_0 + Frequency.DAILY.step)
    was, now = judge(old, Limits(90.0), Levels()), judge(new, Limits(95.0), Levels())
    found = difference_of(old, was, new, now, "in_from", other)
    (server,) = found.servers
    assert server.parts is not None
    assert server.censored == (False, True)
    shown = {name: f"`{name}` = {getattr(server.parts, name):.0f}".replace("-", "−") for name in vars(server.parts)}
    assert shown == {"threshold": "`threshold` = 1", "model": "`model` = −1", "data": "`data` = 2"}
    assert all(f"| {part} |" in TEXT for part in shown.values())
    assert f"moved by {server.parts.total:.0f} days" in TEXT

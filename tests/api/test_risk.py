"""The risk answer over HTTP, from results in a real database: all of it both from stored risk, and without."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.api.risk_models import _singles, rounded
from app.domain.dataset import Unit
from app.settings import Settings
from app.storage.database import Database
from tests.api.risk_world import MEDIANS, World


@pytest.fixture(params=["stored", "judged when asked"])
async def world(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    assert settings.database_url is not None
    database = Database(settings.database_url)
    yield World(database, stored=request.param == "stored")
    await database.close()


async def get(client: httpx.AsyncClient, path: str, status: int = 200, /, **parameters: Any) -> dict[str, Any]:
    answer = await client.get(f"/risk{path}", params=parameters)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def ids(client: httpx.AsyncClient, **parameters: Any) -> list[str]:
    return [item["server_id"] for item in (await get(client, "/servers", **parameters))["items"]]


async def test_a_server_at_risk_with_every_field(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset())
    body = await get(client, "/servers", forecast_id=str(forecast))
    assert {name: body[name] for name in ("forecast_id", "metric", "threshold", "as_of", "next_cursor")} == {
        "forecast_id": str(forecast),
        "metric": "cpu_p95",
        "threshold": 90.0,
        "as_of": "2022-12-31",
        "next_cursor": None,
    }
    second = body["items"][1]
    probability, days, severity = (second.pop(n) for n in ("breach_probability", "expected_breach_days", "severity"))
    assert second == {
        "server_id": "SRV-2",
        "model": "auto",
        "threshold": 90.0,
        "as_of": "2022-12-31",
        "level": "very_high",
        "risk_high": True,
        "max_p90": 91.0,
        "mean_p50": 86.0,
        "runway_days": {"conservative": 1, "expected": None},
        "first_breach": {"p10": "2023-01-01", "p50": second["first_breach"]["p50"]},
        "headroom_pct": 0.0,
        "usable_headroom_pct": 0.0,
        "usable_headroom": None,
        "lead_time_days": 30.0,
        "order_by": "2022-12-02",
        "overdue": True,
        "peaks": [],
        "fallback": True,
        "coverage": 0.75,
        "history_days": 1096,
        "quality": [],
        "level_shift_at": None,
        "attributes": {"region": "us"},
    }
    assert 0.1526 < probability < 10 * 0.1526  # P(N(86, 5/1.2816) > 90) of one day; of ten that depend on each other
    assert days == pytest.approx(10 * 0.15263, abs=1e-3)
    assert 0 < severity < 5
    behind = next(item for item in body["items"] if item["server_id"] == "SRV-1")
    assert behind["as_of"] == "2022-12-30"
    assert behind["coverage"] == 0.81
    assert behind["runway_days"] == {"conservative": None, "expected": None}
    assert behind["first_breach"] == {"p10": None, "p50": None}
    assert behind["headroom_pct"] == 25.0
    assert "stale" in behind["quality"]
    assert "gaps" in next(item for item in body["items"] if item["server_id"] == "SRV-4")["quality"]


async def test_sorting_filters_and_thresholds(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset())
    assert await ids(client) == ["SRV-3", "SRV-2", "SRV-5", "SRV-1", "SRV-4"]
    assert await ids(client, sort="server_id") == sorted(MEDIANS)
    assert await ids(client, sort="max_p90") == ["SRV-3", "SRV-2", "SRV-5", "SRV-1", "SRV-4"]
    assert await ids(client, sort="breach_probability", limit=2) == ["SRV-3", "SRV-2"]
    assert await ids(client, region="eu") == ["SRV-3", "SRV-1"]
    assert await ids(client, region=["eu", "us"], level=["high", "underutilized"]) == ["SRV-5", "SRV-4"]
    assert await ids(client, business_unit="none has one") == []
    low = await get(client, "/servers", threshold=15)
    assert [item["runway_days"]["conservative"] for item in low["items"]] == [1] * 5
    assert low["threshold"] == 15


async def test_pages_join_without_a_gap_and_stay_with_their_forecast(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset()
    old = await world.forecast(dataset)
    seen, cursor = [], None
    while True:
        body = await get(client, "/servers", limit=2, **({"cursor": cursor} if cursor else {}))
        assert body["forecast_id"] == str(old)
        seen += [item["server_id"] for item in body["items"]]
        cursor = body["next_cursor"]
        if len(seen) == 2:
            await world.forecast(dataset, finished_at=datetime(2023, 1, 5, tzinfo=UTC))
        if cursor is None:
            break
    assert seen == ["SRV-3", "SRV-2", "SRV-5", "SRV-1", "SRV-4"]
    first = await get(client, "/servers", limit=2, region="us")
    problem = await get(client, "/servers", 400, limit=2, region="eu", cursor=first["next_cursor"])
    assert problem["type"] == "urn:headroom:problem:bad-cursor"


async def test_a_model_of_the_forecast_and_others(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset(), ["auto", "prophet"])
    best = await get(client, "/servers", forecast_id=str(forecast))
    other = await get(client, "/servers", forecast_id=str(forecast), model="prophet")
    assert {item["model"] for item in other["items"]} == {"prophet"}
    assert other["items"][0]["max_p90"] == best["items"][0]["max_p90"] + 1
    problem = await get(client, "/servers", 422, forecast_id=str(forecast), model="canvas")
    assert "auto, prophet" in problem["detail"]


async def test_a_server_s_own_threshold(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(threshold={"SRV-1": 50.0, "SRV-2": -1.0}))
    body = await get(client, "/servers", sort="server_id")
    assert body["threshold"] is None
    assert [item["threshold"] for item in body["items"]] == [50.0, 90.0, 90.0, 90.0, 90.0]
    assert body["items"][0]["risk_high"] is True
    asked = await get(client, "/servers", threshold=97)
    assert {item["threshold"] for item in asked["items"]} == {97.0}


async def test_when_to_order_and_what_is_left(client: httpx.AsyncClient, world: World) -> None:
    lead = {"SRV-2": 0, "SRV-3": 0.5, "SRV-4": -1}
    await world.forecast(await world.dataset(lead_time_days=lead, capacity={"SRV-1": 8.0}))
    body = await get(client, "/servers", sort="server_id")
    found = [(item["lead_time_days"], item["order_by"], item["overdue"]) for item in body["items"]]
    assert found == [
        (30.0, None, False),
        (0.0, "2023-01-01", False),
        (0.5, "2022-12-31", False),
        (30.0, None, False),
        (30.0, None, False),
    ]
    asked = await get(client, "/servers", sort="server_id", lead_time_days=2)
    assert asked["items"][1]["order_by"] == "2022-12-30"
    assert asked["items"][1]["overdue"] is True
    one = await get(client, "/servers/SRV-3", lead_time_days=10)
    assert one["items"][0]["order_by"] == "2022-12-22"
    assert [(item["usable_headroom_pct"], item["usable_headroom"]) for item in body["items"]] == [
        (25.0, 2.0),
        (0.0, None),
        (0.0, None),
        (65.0, None),
        (3.0, None),
    ]
    await get(client, "/servers", 422, lead_time_days=-1)


async def test_a_threshold_of_a_group_goes_before_that_of_all(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(criticality={"SRV-1": "a:b", "SRV-2": "low"}))
    asked = ["region:us:70", "criticality:low:60.5", "criticality:a:b:50"]
    body = await get(client, "/servers", sort="server_id", threshold=95, group_threshold=asked)
    assert [item["threshold"] for item in body["items"]] == [50.0, 60.5, 95.0, 70.0, 70.0]
    assert body["threshold"] is None
    summary = await get(client, "/summary", by="region", group_threshold="region:us:70")
    assert [group["risk_high"] for group in summary["items"]] == [1, 2]
    one = await get(client, "/servers/SRV-5", group_threshold="region:us:70")
    assert one["items"][0]["threshold"] == 70.0
    for wrong in ("region", "region:us", "region:us:high", ":us:3", "region:us:nan", "region:mars:80"):
        problem = await get(client, "/servers", 422, group_threshold=wrong)
        assert problem["errors"][0]["pointer"] == "?group_threshold", wrong


async def test_a_whole_number_is_asked_for_however_it_was_written(client: httpx.AsyncClient, world: World) -> None:
    """As text with .0, which is how a column with an empty cell comes out of most tools; and as a number."""
    prices = {"SRV-1": "50.0", "SRV-2": "50", "SRV-3": "50.5", "SRV-4": "050"}
    await world.forecast(await world.dataset(usd_per_month=prices, capacity={"SRV-5": 8.0}, criticality="1.0"))
    for price, size in (("50", "8"), ("50.0", "8.0")):
        asked = [f"usd_per_month:{price}:70", f"capacity:{size}:60"]
        body = await get(client, "/servers", sort="server_id", threshold=95, group_threshold=asked)
        assert [item["threshold"] for item in body["items"]] == [70.0, 70.0, 95.0, 95.0, 60.0]
    for level in ("1", "1.0"):
        assert len((await get(client, "/servers", criticality=level))["items"]) == 5
        assert len((await get(client, "/servers", criticality=level, threshold=61))["items"]) == 5
    assert (await get(client, "/servers", criticality="10"))["items"] == []


async def test_an_absolute_metric_needs_a_threshold_or_a_capacity(client: httpx.AsyncClient, world: World) -> None:
    without = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE))
    problem = await get(client, "/servers", 422, forecast_id=str(without))
    assert problem["type"] == "urn:headroom:problem:threshold-required"
    asked = await get(client, "/servers", forecast_id=str(without), threshold=200, sort="server_id")
    assert [item["level"] for item in asked["items"]] == [
        "underutilized",
        "normal",
        "normal",
        "underutilized",
        "normal",
    ]
    assert asked["items"][1]["headroom_pct"] == pytest.approx(54.5)
    for impossible in (0, 1e-300, 1e300):
        assert (await get(client, "/servers", 422, forecast_id=str(without), threshold=impossible))["errors"]
    with_capacity = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity=100.0))
    assert (await get(client, "/servers", forecast_id=str(with_capacity)))["threshold"] == 100.0


@pytest.mark.parametrize("unit", [Unit.PERCENT, Unit.RATIO, Unit.ABSOLUTE])
@pytest.mark.parametrize("threshold", [0, -5, 1e300])
async def test_a_threshold_is_above_0_wherever_it_is_asked_for(
    client: httpx.AsyncClient, world: World, unit: Unit, threshold: float
) -> None:
    forecast = str(await world.forecast(await world.dataset(unit=unit, capacity=100.0)))
    other = str(await world.forecast(await world.dataset(unit=unit, capacity=100.0)))
    grouped = f"region:eu:{threshold}"
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("/risk/servers", {"forecast_id": forecast, "threshold": threshold}, "?threshold"),
        ("/risk/servers", {"forecast_id": forecast, "group_threshold": grouped}, "?group_threshold"),
        ("/risk/servers/SRV-1", {"threshold": threshold}, "?threshold"),
        ("/risk/summary", {"by": "region", "forecast_id": forecast, "threshold": threshold}, "?threshold"),
        ("/risk/rollups", {"by": "region", "forecast_id": forecast, "threshold": threshold}, "?threshold"),
        ("/risk/rollups", {"by": "region", "forecast_id": forecast, "group_threshold": grouped}, "?group_threshold"),
        ("/risk/recommendations", {"forecast_id": forecast, "threshold": threshold}, "?threshold"),
        ("/risk/diff", {"from": forecast, "to": other, "threshold": threshold}, "?threshold"),
        ("/risk/diff", {"from": forecast, "to": other, "from_threshold": threshold}, "?from_threshold"),
        ("/risk/diff", {"from": forecast, "to": other, "to_threshold": threshold}, "?to_threshold"),
    ]
    for path, parameters, pointer in asked:
        answer = await client.get(path, params=parameters)
        assert answer.status_code == 422, (path, parameters, answer.text)
        [error] = answer.json()["errors"]
        assert (error["pointer"], "give a number above 0" in error["detail"]) == (pointer, True)
    changes = [{"kind": "growth", "percent": 10}]
    body: dict[str, Any] = {"forecast_id": forecast, "changes": changes}
    for more, pointer in (
        ({"threshold": threshold}, "/threshold"),
        ({"group_threshold": [grouped]}, "/group_threshold"),
    ):
        answer = await client.post("/risk/scenarios", json=body | more)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text


@pytest.mark.parametrize("threshold", ["nan", "inf", "high"])
async def test_a_threshold_is_a_number(client: httpx.AsyncClient, threshold: str) -> None:
    await get(client, "/servers", 422, threshold=threshold)


async def test_forecasts_that_have_no_answer(client: httpx.AsyncClient, world: World) -> None:
    assert (await get(client, "/servers", 404))["type"] == "urn:headroom:problem:not-found"
    assert "mem" in (await get(client, "/servers", 404, metric="mem"))["detail"]
    await get(client, "/servers", 404, forecast_id=str(uuid4()))
    await get(client, "/servers", 422, forecast_id="nonsense")
    dataset = await world.dataset()
    waiting = await world.forecast(dataset, status="running", run_status="running")
    problem = await get(client, "/servers", 409, forecast_id=str(waiting))
    assert problem["type"] == "urn:headroom:problem:forecast-not-ready"
    failed = await world.forecast(dataset, status="failed", run_status="failed")
    for parameters in ({}, {"model": "auto"}):
        problem = await get(client, "/servers", 409, forecast_id=str(failed), **parameters)
        assert problem["type"] == "urn:headroom:problem:no-results"
    good = await world.forecast(dataset)
    problem = await get(client, "/servers", 422, forecast_id=str(good), metric="mem")
    assert problem["errors"][0]["pointer"] == "?metric"


async def test_one_server_over_its_metrics(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset()
    await world.forecast(dataset, medians=MEDIANS | {"SRV-5": 10.0}, finished_at=datetime(2022, 1, 1, tzinfo=UTC))
    newest = await world.forecast(dataset)
    memory = await world.forecast(await world.dataset(metric="mem"), metric="mem", medians=MEDIANS | {"SRV-5": 93.0})
    await world.forecast(await world.dataset(metric="iops", unit=Unit.ABSOLUTE), metric="iops")
    body = await get(client, "/servers/SRV-5")
    assert body["bottleneck"] == "mem"
    assert [(item["metric"], item["forecast_id"]) for item in body["items"]] == [
        ("mem", str(memory)),
        ("cpu_p95", str(newest)),
    ]
    assert body["without_threshold"] == ["iops"]
    listed = await get(client, "/servers", metric="cpu_p95", sort="server_id")
    shared = {name: value for name, value in body["items"][1].items() if name not in ("metric", "forecast_id")}
    assert shared == listed["items"][4]
    assert (await get(client, "/servers/SRV-4"))["bottleneck"] is None
    await get(client, "/servers/unknown", 404)
    rack = await world.dataset(names=["rack-1/unit 2"])
    await world.forecast(rack, medians={"rack-1/unit 2": 50.0})
    assert (await get(client, "/servers/rack-1/unit 2"))["server_id"] == "rack-1/unit 2"
    assert (await get(client, "/servers/rack-1/unit 2", 422, surprise=1))["type"].endswith("unknown-field")


async def test_the_summary_adds_up(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(business_unit={"SRV-1": "shop", "SRV-2": "shop"}))
    body = await get(client, "/summary", by="region")
    assert body["total"] == {
        "servers": 5, "risk_high": 2, "very_high": 2, "high": 1, "normal": 1, "underutilized": 1,
    }  # fmt: skip
    assert [(group["group"], group["servers"]) for group in body["items"]] == [("eu", 2), ("us", 3)]
    for name, total in body["total"].items():
        assert sum(group[name] for group in body["items"]) == total
    units = await get(client, "/summary", by="business_unit", limit=1)
    rest = await get(client, "/summary", by="business_unit", limit=1, cursor=units["next_cursor"])
    assert [page["items"][0]["group"] for page in (units, rest)] == ["shop", None]
    assert rest["next_cursor"] is None
    await get(client, "/summary", 422)
    await get(client, "/summary", 422, by="shoe_size")


async def test_an_answer_that_failed_is_made_again(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity=100.0))
    await get(client, "/servers", 422, forecast_id=str(forecast), threshold=-5)
    await get(client, "/servers", 422, forecast_id=str(forecast), threshold=-5)
    await get(client, "/servers", forecast_id=str(forecast), threshold=5)


@pytest.mark.parametrize("value", [0.0, 96.19839, 1 / 3, 16_777_217.0, 1e20, 1e-40, 3.4e38])
def test_figures_of_a_page_are_rounded_as_any_other(value: float) -> None:
    assert _singles([value, None]) == [rounded(value), None]

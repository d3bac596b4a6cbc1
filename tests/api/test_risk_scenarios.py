"""What-if over HTTP."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from app.domain.dataset import Unit
from tests.api.risk_world import MEDIANS, World

BODY = dict[str, Any]


async def ask(client: httpx.AsyncClient, changes: list[BODY], status: int = 200, /, **asked: Any) -> BODY:
    query = asked.pop("query", {})
    answer = await client.post("/risk/scenarios", json={"changes": changes} | asked, params=query)
    assert answer.status_code == status, answer.text
    body: BODY = answer.json()
    return body


def by_id(body: BODY) -> dict[str, BODY]:
    return {item["server_id"]: item for item in body["items"]}


async def test_growth_of_a_group_from_a_date(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset())
    growth = {"kind": "growth", "percent": 10, "from": "2023-01-04", "where": {"region": "us"}}
    body = await ask(client, [growth], forecast_id=str(forecast), lead_time_days=2)
    assert body["selected"] == [3]
    found = by_id(body)
    base = (await client.get("/risk/servers", params={"lead_time_days": 2})).json()
    for listed in base["items"]:
        its = found[listed["server_id"]]["base"]
        assert its == {name: listed[name] for name in its}
    assert {name for name, item in found.items() if item["changed"]} == {"SRV-2", "SRV-4", "SRV-5"}
    for name in ("SRV-1", "SRV-3"):
        assert found[name]["scenario"] == found[name]["base"]
    grown = found["SRV-5"]
    assert grown["base"]["runway_days"] == {"conservative": None, "expected": None}
    assert grown["scenario"]["runway_days"] == {"conservative": 4, "expected": 4}
    assert grown["scenario"]["max_p90"] == pytest.approx(87 * 1.1)
    assert (grown["scenario"]["level"], grown["scenario"]["order_by"]) == ("very_high", "2023-01-02")
    assert grown["scenario"]["breach_probability"] > grown["base"]["breach_probability"]
    # 91 · 1.1 = 100.1: nothing of a percentage lies beyond 100.
    assert found["SRV-2"]["scenario"]["max_p90"] == 100.0
    assert {name: body["base"][name] for name in ("servers", "risk_high", "very_high", "high")} == {
        "servers": 5,
        "risk_high": 2,
        "very_high": 2,
        "high": 1,
    }
    assert {name: body["scenario"][name] for name in ("servers", "risk_high", "very_high", "high")} == {
        "servers": 5,
        "risk_high": 3,
        "very_high": 3,
        "high": 0,
    }
    expected = sum(item["scenario"]["breach_probability"] for item in found.values())
    assert body["scenario"]["expected_breaches"] == pytest.approx(expected, abs=1e-3)


async def test_a_growth_of_nothing_changes_nothing(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset())
    nothing: list[BODY] = [{"kind": "growth", "percent": 0}, {"kind": "capacity", "factor": 1}]
    body = await ask(client, nothing)
    assert body["base"] == body["scenario"]
    assert not any(item["changed"] for item in body["items"])
    assert (await ask(client, nothing, query={"changed": "true"}))["items"] == []


async def test_room_divides_utilisation_and_lifts_the_threshold_of_what_is_absolute(
    client: httpx.AsyncClient, world: World
) -> None:
    dataset = await world.dataset(capacity={"SRV-3": 20.0})
    percent = await world.forecast(dataset)
    double: BODY = {"kind": "capacity", "factor": 2, "where": {"server_ids": ["SRV-3"]}}
    added = {"kind": "capacity", "add": 20, "where": {"server_ids": ["SRV-3"]}}
    for change in (double, added):
        its = by_id(await ask(client, [change], forecast_id=str(percent)))["SRV-3"]["scenario"]
        assert (its["max_p90"], its["runway_days"]["conservative"], its["threshold"]) == (50.0, None, 90.0)
    # Room added twice: 20 + 20 + 20 over 20.
    its = by_id(await ask(client, [added, added], forecast_id=str(percent)))["SRV-3"]["scenario"]
    assert its["max_p90"] == pytest.approx(100 / 3)
    problem = await ask(client, [added | {"where": {"region": "eu"}}], 422, forecast_id=str(percent))
    assert problem["type"] == "urn:headroom:problem:capacity-required"
    problem = await ask(client, [added | {"add": -20}], 422, forecast_id=str(percent))
    assert problem["errors"][0]["pointer"] == "/changes/0/add"

    absolute = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity=100.0))
    its = by_id(await ask(client, [double], forecast_id=str(absolute)))["SRV-3"]
    assert (its["base"]["threshold"], its["scenario"]["threshold"]) == (100.0, 200.0)
    assert its["scenario"]["max_p90"] == its["base"]["max_p90"] == 100.0
    assert its["scenario"]["headroom_pct"] == 50.0


async def test_a_shrunken_room_is_bounded_by_what_it_can_hold(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(maximum=130.0))
    halved = by_id(await ask(client, [{"kind": "capacity", "factor": 0.5}], threshold=90))
    assert halved["SRV-4"]["scenario"]["max_p90"] == 50.0
    assert halved["SRV-3"]["scenario"]["max_p90"] == 200.0
    tight = by_id(await ask(client, [{"kind": "growth", "percent": 100}], threshold=90))
    assert tight["SRV-3"]["scenario"]["max_p90"] == 130.0


async def test_thresholds_move_and_servers_leave(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset())
    changes: list[BODY] = [
        {"kind": "retire", "where": {"server_ids": ["SRV-3"], "region": ["eu", "us"]}},
        {"kind": "threshold", "value": 60, "where": {"region": "eu"}},
    ]
    body = await ask(client, changes, query={"sort": "server_id"})
    assert body["selected"] == [1, 1]  # who has left cannot be changed any more
    first, _, third, *_ = body["items"]
    assert (first["base"]["risk_high"], first["scenario"]["risk_high"]) == (False, True)
    assert (third["scenario"], third["changed"]) == (None, True)
    assert (body["base"]["threshold"], body["scenario"]["threshold"]) == (90.0, None)
    assert (body["base"]["servers"], body["scenario"]["servers"]) == (5, 4)
    everyone = await ask(client, [{"kind": "retire", "where": {"region": ["eu", "us"]}}])
    assert everyone["scenario"]["servers"] == everyone["scenario"]["expected_breaches"] == 0


async def test_who_comes_to_be_at_risk_and_who_no_longer_is(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset())
    changes: list[BODY] = [
        {"kind": "growth", "percent": 10, "where": {"server_ids": ["SRV-5"]}},
        {"kind": "growth", "percent": 1, "where": {"server_ids": ["SRV-1"]}},
        {"kind": "retire", "where": {"server_ids": ["SRV-3", "SRV-4"]}},
    ]
    body = await ask(client, changes)
    assert body["moved"] == {"entered": 1, "left": 1, "stayed": 2}
    listed = {
        moved: set(by_id(await ask(client, changes, query={"moved": moved}))) for moved in ("entered", "left", "stayed")
    }
    assert listed == {"entered": {"SRV-5"}, "left": {"SRV-3"}, "stayed": {"SRV-1", "SRV-4"}}
    changed = await ask(client, changes, query={"changed": "true"})
    assert set(by_id(changed)) == set().union(*listed.values())
    everybody = by_id(body)
    told = {(move["before"], move["after"]): move["servers"] for move in body["moves"]}
    seen = [(its["base"]["level"], (its["scenario"] or {"level": None})["level"]) for its in everybody.values()]
    assert told == {move: seen.count(move) for move in seen}
    assert sum(told.values()) == 5
    assert body["moves"][0] == {"before": "very_high", "after": "very_high", "servers": 1}
    await ask(client, changes, 422, query={"moved": "away"})


async def test_pages_belong_to_one_scenario(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset()
    forecast = await world.forecast(dataset)
    changes: list[BODY] = [{"kind": "growth", "percent": 5}]
    first = await ask(client, changes, query={"limit": 2})
    await world.forecast(dataset, finished_at=datetime(2023, 1, 5, tzinfo=UTC))
    seen = [item["server_id"] for item in first["items"]]
    cursor = first["next_cursor"]
    other = await ask(client, [{"kind": "growth", "percent": 6}], 400, query={"limit": 2, "cursor": cursor})
    assert other["type"] == "urn:headroom:problem:bad-cursor"
    while cursor:
        body = await ask(client, changes, query={"limit": 2, "cursor": cursor})
        assert body["forecast_id"] == str(forecast)
        seen += [item["server_id"] for item in body["items"]]
        cursor = body["next_cursor"]
    assert seen == ["SRV-3", "SRV-2", "SRV-5", "SRV-1", "SRV-4"]
    some = await ask(client, changes, query={"region": "eu", "level": ["very_high", "normal"]})
    assert [item["server_id"] for item in some["items"]] == ["SRV-3", "SRV-1"]
    assert set(by_id(await ask(client, changes))) == set(MEDIANS)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"kind": "growth", "percent": 10, "where": {"server_ids": ["nobody"]}}, "/changes/0/where/server_ids"),
        ({"kind": "growth", "percent": 10, "where": {"region": "mars"}}, "/changes/0/where"),
        ({"kind": "growth", "percent": 10, "where": {"colour": "red"}}, "/changes/0/where"),
        ({"kind": "growth", "percent": 10, "where": {}}, "/changes/0/where"),
        ({"kind": "growth", "percent": 10, "from": "2024-01-01"}, "/changes/0/from"),
        ({"kind": "growth", "percent": -100}, "/changes/0/percent"),
        ({"kind": "growth", "percent": 10, "until": "2024-01-01"}, "/changes/0/until"),
        ({"kind": "threshold", "value": 1e300}, "/changes/0/value"),
        ({"kind": "threshold", "value": 0}, "/changes/0/value"),
        ({"kind": "threshold", "value": -5}, "/changes/0/value"),
        ({"kind": "capacity"}, "/changes/0"),
        ({"kind": "capacity", "factor": 2, "add": 1}, "/changes/0"),
        ({"kind": "capacity", "factor": 0}, "/changes/0/factor"),
        ({"kind": "retire"}, "/changes/0/where"),
        ({"kind": "move"}, "/changes/0"),
    ],
)
async def test_what_no_scenario_can_hold(client: httpx.AsyncClient, world: World, change: BODY, pointer: str) -> None:
    await world.forecast(await world.dataset())
    problem = await ask(client, [change], 422)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_a_scenario_needs_changes_and_takes_no_other_fields(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset())
    await ask(client, [], 422)
    problem = await ask(client, [{"kind": "growth", "percent": 1}], 422, horizon=5)
    assert problem["type"] == "urn:headroom:problem:unknown-field"
    problem = await ask(client, [{"kind": "growth", "percent": 1}], 422, group_threshold=["region:mars:1"])
    assert problem["errors"][0]["code"] == "unknown-group"

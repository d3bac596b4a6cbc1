"""Totals of groups over HTTP."""

from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from scipy.stats import norm

from app.domain import paths, totals
from app.domain.dataset import Unit
from tests.api.risk_world import HORIZON, MEDIANS, WHERE, World, matrix

CAPACITY = {"SRV-1": 100.0, "SRV-2": 120.0, "SRV-3": 90.0, "SRV-4": 50.0, "SRV-5": 60.0}


async def get(client: httpx.AsyncClient, status: int = 200, /, **parameters: Any) -> dict[str, Any]:
    answer = await client.get("/risk/rollups", params=parameters)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_totals_of_an_absolute_metric_are_those_of_joint_paths(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity=CAPACITY))
    body = await get(client, forecast_id=str(forecast), by="region", steps=True)
    assert {name: body[name] for name in ("metric", "model", "unit", "as_of", "by", "next_cursor", "ended")} == {
        "metric": "cpu_p95",
        "model": "auto",
        "unit": "absolute",
        "as_of": "2022-12-31",
        "by": "region",
        "next_cursor": None,
        "ended": [],
    }
    assert body["correlation"] == pytest.approx(totals.BETWEEN)
    eu, us = body["items"]
    assert [(eu["group"], eu["servers"], eu["capacity"]), (us["group"], us["servers"], us["capacity"])] == [
        ("eu", 2, 190.0),
        ("us", 3, 230.0),
    ]
    assert eu["threshold"] == 190.0
    # SRV-1 ends a day before the others, so that its forecast and the total end a day earlier.
    assert (eu["until"], us["until"]) == ("2023-01-09", "2023-01-10")
    assert [step["timestamp"] for step in us["steps"]] == [f"2023-01-{day:02}" for day in range(1, 11)]
    ranks = totals.orders(paths.autoregressive(HORIZON, 0.9), HORIZON)
    z = (np.arange(256) + 0.5) / 256
    for group in (eu, us):
        members = [name for name in MEDIANS if WHERE[name] == group["group"]]
        by_hand = sum(
            MEDIANS[name] + 5 / norm.ppf(0.9) * norm.ppf(z)[ranks[totals.order_of([name])[0]]] for name in members
        )
        by_hand = by_hand[: len(group["steps"])]
        expected = np.quantile(by_hand, (0.1, 0.5, 0.9), axis=1, method="hazen").T
        shown = [[step[name] for name in ("p10", "p50", "p90")] for step in group["steps"]]
        np.testing.assert_allclose(shown, expected, rtol=1e-5)
        assert group["breach_probability"] == pytest.approx((by_hand > group["capacity"]).any(axis=0).mean())
        assert group["max_p90"] == pytest.approx(expected[:, 2].max())
        assert group["max_p90"] < group["sum_of_p90"] == sum(MEDIANS[name] + 5 for name in members)
        peak = np.quantile(by_hand.max(axis=0), 0.9, method="hazen")
        assert group["peak"]["p90"] == pytest.approx(peak)
        assert group["headroom_pct"] == pytest.approx(100 * (1 - expected[:, 2].max() / group["capacity"]))
    assert (await get(client, by="region"))["items"][0]["steps"] == []


async def test_a_total_against_what_is_asked(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity={"SRV-1": 100.0, "SRV-3": 50.0}))
    eu, us = (await get(client, by="region"))["items"]
    assert (eu["capacity"], eu["runway_days"]) == (150.0, {"conservative": 1, "expected": 1})
    assert eu["breach_probability"] > 0.9
    assert eu["first_breach"] == {"p10": "2023-01-01", "p50": "2023-01-01"}
    for name in ("capacity", "threshold", "breach_probability", "runway_days", "first_breach", "headroom_pct"):
        assert us[name] is None, name
    asked = await get(client, by="region", threshold=1000, group_threshold="region:us:189", sort="runway")
    assert [(one["group"], one["threshold"]) for one in asked["items"]] == [("us", 189.0), ("eu", 1000.0)]
    assert asked["items"][0]["runway_days"]["expected"] is None
    by_probability = await get(client, by="region", threshold=189, sort="breach_probability")
    assert [one["group"] for one in by_probability["items"]] == ["us", "eu"]
    nobody = (await get(client, by="business_unit"))["items"]
    assert [(one["group"], one["servers"]) for one in nobody] == [(None, 5)]


async def test_percentages_are_means_weighted_by_capacity(client: httpx.AsyncClient, world: World) -> None:
    threshold = {"SRV-1": 50.0, "SRV-3": 60.0}
    await world.forecast(await world.dataset(capacity=CAPACITY, threshold=threshold))
    eu, us = (await get(client, by="region", steps=True))["items"]
    assert eu["threshold"] == pytest.approx((100 * 50 + 90 * 60) / 190)
    assert us["threshold"] == 90.0
    mean = sum(CAPACITY[name] * MEDIANS[name] for name in ("SRV-2", "SRV-4", "SRV-5")) / 230
    assert us["steps"][0]["p50"] == pytest.approx(mean, abs=0.5)
    assert us["sum_of_p90"] == pytest.approx(mean + 5)
    assert us["headroom_pct"] == pytest.approx(90 - us["max_p90"])
    assert (await get(client, by="region", threshold=80))["items"][0]["threshold"] == pytest.approx(80)


async def test_percentages_without_capacity_are_refused(client: httpx.AsyncClient, world: World) -> None:
    await world.forecast(await world.dataset(capacity={"SRV-1": 100.0, "SRV-2": 3.0, "SRV-3": 50.0, "SRV-4": -1.0}))
    problem = await get(client, 422, by="region")
    assert problem["type"] == "urn:headroom:problem:capacity-required"
    assert "2 servers in 1 groups" in problem["detail"]
    assert "'SRV-4'" in problem["detail"]


async def test_what_cannot_be_rolled_up(client: httpx.AsyncClient, world: World) -> None:
    await get(client, 404, by="region")
    await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, capacity=CAPACITY, tier="gold"))
    assert (await get(client, by="tier"))["items"][0]["group"] == "gold"
    assert "tier" in (await get(client, 422, by="colour"))["detail"]
    for wrong in ("tier:gold:7", "region:mars:7", "region:us:-7", "region"):
        problem = await get(client, 422, by="region", group_threshold=wrong)
        assert problem["errors"][0]["pointer"] == "?group_threshold", wrong
    await get(client, 422, by="region", threshold=0)
    await get(client, 422)
    await get(client, 422, by="region", surprise=1)


async def test_pages_of_groups_and_some_of_them(client: httpx.AsyncClient, world: World) -> None:
    forecast = await world.forecast(await world.dataset(unit=Unit.ABSOLUTE, cluster={n: n[-1] for n in MEDIANS}))
    seen, cursor = [], None
    while True:
        body = await get(client, by="cluster", limit=2, **({"cursor": cursor} if cursor else {}))
        assert body["forecast_id"] == str(forecast)
        seen += [group["group"] for group in body["items"]]
        if (cursor := body["next_cursor"]) is None:
            break
    assert seen == list("12345")
    assert [one["group"] for one in (await get(client, by="cluster", group=["4", "2", "9"]))["items"]] == ["2", "4"]


async def test_who_ended_long_ago_is_named_and_left_out(client: httpx.AsyncClient, world: World) -> None:
    found = matrix(MEDIANS)
    as_of = found.as_of.copy()
    as_of[[0, 2]] -= np.array([3, 8]) * np.timedelta64(1, "D")
    as_of[3] -= 9 * np.timedelta64(1, "D")
    dataset = await world.dataset(unit=Unit.ABSOLUTE, capacity=CAPACITY, cluster={n: n[-1] for n in MEDIANS})
    await world.forecast(dataset, found=replace(found, as_of=as_of))
    eu, us = (await get(client, by="region"))["items"]
    assert (eu["servers"], eu["left_out"], eu["capacity"], eu["until"]) == (1, ["SRV-3"], 100.0, "2023-01-06")
    assert (us["servers"], us["left_out"], us["until"]) == (2, ["SRV-4"], "2023-01-10")
    body = await get(client, by="cluster")
    assert body["ended"] == ["3", "4"]
    assert [one["group"] for one in body["items"]] == ["1", "2", "5"]

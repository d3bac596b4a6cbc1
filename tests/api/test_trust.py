"""What the API says of how far a forecast can be trusted: why per server, scores per group, drift, and the way on.

The loop of a planner: dataset, forecast, newer version, accuracy of the forecast, the next forecast on the version.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psycopg
import pytest
from fastapi import FastAPI

from app.settings import Settings

SERVERS, DAYS, HORIZON = 9, 150, 45
START = np.datetime64("2024-01-01")

Finish = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def a_csv(first: int, days: int, shift: float = 0.0, servers: int = SERVERS) -> str:
    """A week's rhythm and noise; every other server in `eu`, the rest in `us`, the last one nowhere."""
    lines = ["server_id,timestamp,cpu_p95,region,capacity"]
    for server in range(servers):
        noise = np.random.default_rng(server).normal(0, 2, DAYS + 2 * HORIZON)
        region = "" if server == servers - 1 else ("eu", "us")[server % 2]
        lines += [
            f"srv-{server},{START + day},{40 + server + 6 * np.sin(day * 2 * np.pi / 7) + noise[day] + shift:.2f},"
            f"{region},{16 + server % 2}"
            for day in range(first, first + days)
        ]
    return "\n".join(lines)


async def uploaded(client: httpx.AsyncClient, path: str, content: str) -> str:
    answer = await client.post(path, content=content, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def finish(api: FastAPI, client: httpx.AsyncClient) -> Finish:
    """Submit a forecast and carry all its runs, as a worker does."""

    async def carried(asked: dict[str, Any]) -> dict[str, Any]:
        made = await client.post("/forecasts", json=asked)
        assert made.status_code == 202, made.text
        services = api.state.services
        forecast = await services.forecasts.get(UUID(made.json()["id"]))
        await asyncio.gather(*(services.runs.tick(run.id) for run in forecast.runs))
        shown: dict[str, Any] = (await client.get(f"/forecasts/{forecast.id}")).json()
        assert shown["status"] == "succeeded", shown
        return shown

    return carried


async def test_scores_per_month_and_group_and_why_per_server(
    client: httpx.AsyncClient, finish: Finish, settings: Settings
) -> None:
    dataset = await uploaded(client, "/datasets", a_csv(0, DAYS))
    models = ["auto", "seasonal_naive"]
    asked = {"dataset_id": dataset, "metric": "cpu_p95", "horizon": HORIZON, "models": models}
    done = await finish(asked)
    path = f"/forecasts/{done['id']}/comparison"
    whole = {row["model"]: row for row in (await client.get(path)).json()["models"]}

    months = (await client.get(path, params={"by": "month"})).json()
    assert months["next_cursor"] is None
    assert [(row["group"], row["first_step"], row["last_step"]) for row in months["items"]] == [
        ("1", 1, 30),
        ("2", 31, 45),
    ]
    for place, model in enumerate(row["model"] for row in months["items"][0]["models"]):
        parts = [row["models"][place] for row in months["items"]]
        assert [part["servers"] for part in parts] == [SERVERS, SERVERS]
        for figure in ("smape", "coverage"):
            assert (30 * parts[0][figure] + 15 * parts[1][figure]) / 45 == pytest.approx(whole[model][figure], rel=1e-5)
        assert min(part["wql"] for part in parts) <= whole[model]["wql"] <= max(part["wql"] for part in parts)

    first = (await client.get(path, params={"by": "region", "limit": 2})).json()
    assert [row["group"] for row in first["items"]] == ["eu", "us"]
    rest = (await client.get(path, params={"by": "region", "limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([row["group"] for row in rest["items"]], rest["next_cursor"]) == ([None], None)
    groups = [row["models"][0] for row in first["items"] + rest["items"]]
    assert [group["servers"] for group in groups] == [4, 4, 1]
    assert sum(g["servers"] * g["coverage"] for g in groups) / SERVERS == pytest.approx(
        whole[done["best_model"]]["coverage"], rel=1e-5
    )
    by_capacity = (await client.get(path, params={"by": "capacity"})).json()
    assert [row["group"] for row in by_capacity["items"]] == ["16", "17"]
    odd = await client.get(path, params={"by": "business_unit"})
    assert (odd.status_code, odd.json()["errors"][0]["pointer"]) == (422, "?by")
    other = await client.get(path, params={"by": "capacity", "cursor": first["next_cursor"]})
    assert other.status_code == 400

    servers = (await client.get(path, params={"by": "server_id"})).json()["items"]
    for server in servers:
        each = {row["model"]: row for row in server["models"]}
        weights = each["auto"]["weights"]
        assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
        most = max(weights, key=weights.__getitem__)
        assert each["auto"]["why"].startswith(f"{most} has {weights[most]:.2f} of the weight, by the losses in ")
        assert (each["seasonal_naive"]["weights"], each["seasonal_naive"]["why"]) == (None, None)
    report = next(run["report"] for run in done["runs"] if run["model"] == "auto")
    shares = [row["weights"] for server in servers for row in server["models"] if row["weights"]]
    for member in report["members"]:
        assert np.mean([share[member] for share in shares]) == pytest.approx(report["weights"][member], abs=1e-4)
    page = await client.get(f"/pages/forecasts/{done['id']}/servers/srv-0?model=auto")
    assert "of the weight, by the losses in" in page.text

    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:  # as a run from before these sums were kept
        connection.execute("UPDATE results SET tally = NULL, weights = NULL, shifted_at = NULL")
    old = (await client.get(path, params={"by": "month"})).json()["items"]
    assert {row["coverage"] for month in old for row in month["models"]} == {None}
    old = (await client.get(path, params={"by": "server_id"})).json()["items"]
    assert {row["why"] for server in old for row in server["models"]} == {None}


async def test_a_server_without_a_back_test_of_its_own_stands_on_the_word_of_the_fleet(
    client: httpx.AsyncClient, finish: Finish
) -> None:
    """One with 20 days before the origin of no window, beside others with three."""
    young = "\n".join(f"young,{START + day},{50 + day % 7},eu,16" for day in range(DAYS - 20, DAYS))
    dataset = await uploaded(client, "/datasets", f"{a_csv(0, DAYS)}\n{young}\n")
    done = await finish({"dataset_id": dataset, "metric": "cpu_p95", "horizon": HORIZON, "models": ["auto"]})
    path = f"/forecasts/{done['id']}/comparison"
    servers = (await client.get(path, params={"by": "server_id"})).json()["items"]
    said = {server["server_id"]: server["models"][0] for server in servers}
    assert said["young"]["smape"] is None
    assert "the fleet's: this server's history is too short" in said["young"]["why"]
    assert "the server's own" not in said["young"]["why"]
    assert "as far back as its history reaches, the server's own" in said["srv-0"]["why"]
    page = await client.get(f"/pages/forecasts/{done['id']}/servers/young?model=auto")
    assert "history is too short" in page.text


async def test_a_level_that_shifted_lately_is_told(client: httpx.AsyncClient, finish: Finish) -> None:
    """One server's, 40 days before the end; its date is known to within a few days."""
    before, after, higher = a_csv(0, DAYS - 40), a_csv(DAYS - 40, 40), a_csv(DAYS - 40, 40, shift=25)
    pairs = zip(after.splitlines()[1:], higher.splitlines()[1:], strict=True)
    raised = [high if high.startswith("srv-3") else usual for usual, high in pairs]
    dataset = await uploaded(client, "/datasets", "\n".join([before, *raised]))
    done = await finish({"dataset_id": dataset, "metric": "cpu_p95", "horizon": 14, "models": ["seasonal_naive"]})
    assert done["runs"][0]["report"]["level_shifts"] == 1
    items = (await client.get("/risk/servers", params={"forecast_id": done["id"]})).json()["items"]
    told = {item["server_id"]: item["level_shift_at"] for item in items if "level_shift" in item["quality"]}
    assert list(told) == ["srv-3"]
    assert abs(np.datetime64(told["srv-3"]) - (START + DAYS - 40)) <= np.timedelta64(1, "D")
    assert all(item["level_shift_at"] is None for item in items if item["server_id"] != "srv-3")
    page = await client.get(f"/pages/forecasts/{done['id']}/servers/srv-3")
    assert "level shifted" in page.text


async def test_a_forecast_is_scored_and_repeated_on_what_came(client: httpx.AsyncClient, finish: Finish) -> None:
    dataset = await uploaded(client, "/datasets", a_csv(0, DAYS))
    asked = {"dataset_id": dataset, "metric": "cpu_p95", "horizon": HORIZON, "models": ["structural"]}
    done = await finish(asked)
    accuracy = f"/forecasts/{done['id']}/accuracy"
    before = (await client.get(accuracy)).json()
    assert (before["newer_dataset_id"], before["drifted"]) == (None, False)
    assert before["models"][0]["drift"]["compared_servers"] == 0

    newer = await uploaded(client, f"/datasets/{dataset}/versions", a_csv(DAYS, 30))
    after = (await client.get(accuracy)).json()
    assert (after["newer_dataset_id"], after["drifted"]) == (newer, False)
    (live,) = after["models"]
    assert live["values"] == 30 * SERVERS
    assert 0.6 < live["coverage"] <= 1
    assert (live["drift"]["flagged"], live["drift"]["compared_servers"]) == (False, SERVERS)
    assert live["drift"]["loss_ratio"] < 1.25

    again = await finish(asked | {"dataset_id": after["newer_dataset_id"]})
    first = (await client.get(f"/forecasts/{again['id']}/quantiles?limit=1")).json()["items"][0]
    assert first["timestamp"] == str(START + DAYS + 30)

    newest = await uploaded(client, f"/datasets/{newer}/versions", a_csv(DAYS + 30, 15, shift=25))
    drifted = (await client.get(f"/forecasts/{again['id']}/accuracy")).json()
    assert (drifted["newer_dataset_id"], drifted["drifted"]) == (newest, True)
    told = drifted["models"][0]["drift"]
    assert len(told["reasons"]) == 2
    assert told["drifted_servers"] == SERVERS
    assert told["loss_ratio"] > 2
    assert sorted(one["server_id"] for one in told["servers"]) == [f"srv-{number}" for number in range(SERVERS)]
    ratios = [one["loss_ratio"] for one in told["servers"]]
    assert ratios == sorted(ratios, reverse=True)
    assert (await client.get(accuracy)).json()["newer_dataset_id"] == newest

    await uploaded(client, f"/datasets/{dataset}/versions", a_csv(DAYS, 5))  # made later, but it ends earlier
    assert (await client.get(accuracy)).json()["newer_dataset_id"] == newest

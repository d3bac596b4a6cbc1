"""What could be saved, and profiles of load, over HTTP: real uploads, results of forecasts as the tests want them."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from app.domain import paths
from app.domain.forecast import ForecastRequest
from app.domain.panel import Frequency
from app.settings import Settings
from app.storage import forecasts, results
from app.storage.database import Database
from app.storage.results import SCORES, ResultMatrix
from app.storage.tables import forecasts as forecast_rows
from app.storage.tables import runs as run_rows

HORIZON = 10
DAYS = np.arange("2022-11-01", "2023-01-01", dtype="datetime64[D]")
Fleet = dict[str, dict[str, Any]]
"""Server → its columns: metrics as the p50 of every day, attributes as text."""

# A busy server that may take in an idle one, another that is idle in cpu alone, and two on their own to shrink.
FLEET: Fleet = {
    "eu-busy": {"region": "eu", "cpu": 70, "mem": 60, "usd_per_month": "250.5"},
    "eu-idle": {"region": "eu", "cpu": 5, "mem": 8, "usd_per_month": "80"},
    "eu-mem": {"region": "eu", "cpu": 5, "mem": 70, "usd_per_month": ""},
    "us-half": {"region": "us", "cpu": 35, "mem": 20, "usd_per_month": "33.333333"},
    "us-tiny": {"region": "ap", "cpu": 15, "mem": 15, "usd_per_month": "no idea"},
}


class World:
    def __init__(self, client: httpx.AsyncClient, database: Database) -> None:
        self._client = client
        self._database = database

    async def dataset(self, fleet: Fleet = FLEET, attributes: Sequence[str] = ("usd_per_month",)) -> UUID:
        columns = list(next(iter(fleet.values())))
        lines = [",".join(["server_id", "timestamp", *columns])]
        for name, its in fleet.items():
            for day in DAYS:
                lines.append(",".join([name, str(day), *("" if its[c] is None else str(its[c]) for c in columns)]))
        schema = {"attributes": [name for name in attributes if name in columns]}
        made = await self._client.post(
            "/datasets",
            params={"schema": json.dumps(schema)},
            content="\n".join(lines),
            headers={"Content-Type": "text/csv"},
        )
        assert made.status_code == 201, made.text
        return UUID(made.json()["id"])

    async def forecast(
        self,
        dataset: UUID,
        metric: str,
        fleet: Fleet = FLEET,
        *,
        finished_at: datetime = datetime(2023, 1, 1, tzinfo=UTC),
    ) -> UUID:
        """Of those that have the metric; p10 and p90 lie 2 below and above."""
        new, run = uuid4(), uuid4()
        has = {name: its[metric] for name, its in fleet.items() if its[metric] is not None}
        async with self._database.begin() as connection:
            await forecasts.insert(connection, new, ForecastRequest(dataset, metric, HORIZON), "succeeded", [])
            await connection.execute(
                sa.update(forecast_rows)
                .where(forecast_rows.c.id == new)
                .values(best_model="auto", finished_at=finished_at)
            )
            await connection.execute(
                sa.insert(run_rows).values(id=run, forecast_id=new, position=0, model="auto", status="succeeded")
            )
            await results.write(connection, run, matrix(has))
            await results.write_template(connection, run, paths.autoregressive(HORIZON, 0.9))
        return new


def matrix(medians: dict[str, float]) -> ResultMatrix:
    names = sorted(medians)
    middle = np.array([medians[name] for name in names], dtype=np.float32)[:, None, None]
    return ResultMatrix(
        server_ids=tuple(names),
        as_of=np.full(len(names), np.datetime64("2022-12-31T00:00:00", "s")),
        frequency=Frequency.DAILY,
        levels=(0.1, 0.5, 0.9),
        values=np.broadcast_to(np.maximum(middle + np.array([-2, 0, 2], np.float32), 0), (len(names), HORIZON, 3)),
        fallback=(None,) * len(names),
        scores={name: np.full(len(names), np.nan, np.float32) for name in SCORES},
    )


@pytest.fixture
async def world(settings: Settings, client: httpx.AsyncClient) -> AsyncIterator[World]:
    assert settings.database_url
    database = Database(settings.database_url)
    yield World(client, database)
    await database.close()


async def get(client: httpx.AsyncClient, path: str, status: int = 200, /, **parameters: Any) -> dict[str, Any]:
    answer = await client.get(f"/risk{path}", params=parameters)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def micro(dollars: float) -> int:
    return round(dollars * 1e6)


async def test_what_could_be_saved_with_every_field(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset()
    cpu, mem = await world.forecast(dataset, "cpu"), await world.forecast(dataset, "mem")
    body = await get(client, "/recommendations", forecast_id=str(cpu))
    assert [(item["kind"], item["server_id"], item["onto"], item["to"]["factor"]) for item in body["items"]] == [
        ("consolidate", "eu-idle", "eu-busy", 0.0),
        ("downsize", "us-tiny", None, 0.25),
        ("downsize", "us-half", None, 0.5),
    ]
    idle, tiny, half = body["items"]
    assert tiny == {
        "kind": "downsize",
        "server_id": "us-tiny",
        "onto": None,
        "from": {"factor": 1.0, "capacity": None},
        "to": {"factor": 0.25, "capacity": None},
        "breach_probability": tiny["breach_probability"],
        "epsilon": 0.05,
        "metrics": ["cpu", "mem"],
        "formula": tiny["formula"],
        "assumptions": [],
        "method": None,
        "prices": {"usd_per_month": 100.0, "basis": "assumed: HEADROOM_SERVER_USD_PER_MONTH"},
        "saving_usd_per_month": 75.0,
        "profile": "steady, low",
        "attributes": {"region": "ap", "usd_per_month": "no idea"},
    }
    assert set(tiny["breach_probability"]) == {"cpu", "mem"}
    assert max(tiny["breach_probability"].values()) <= 0.05
    assert "P(cpu > 22.5 within 10 days) = 0.0000 and P(mem > 22.5 within 10 days) = 0.0000" in tiny["formula"]
    assert "$100.00 × (1 - 1/4) = $75.00 a month" in tiny["formula"]
    assert half["prices"] == {"usd_per_month": 33.333333, "basis": "attribute usd_per_month of the server"}
    assert half["saving_usd_per_month"] == 16.666666
    assert idle["saving_usd_per_month"] == 80.0
    assert idle["method"] == "milp"
    assert idle["assumptions"] == ["no capacity is known: servers of eu are taken to be of equal size in cpu, mem"]
    assert "eu-busy with all that is moved there" in idle["formula"]
    assert body["totals"] == {
        "servers": 3, "downsize_usd": 91.666666, "consolidate_usd": 80.0, "saving_usd_per_month": 171.666666,
    }  # fmt: skip
    assert [(one["metric"], one["forecast_id"], one["as_of"]) for one in body["forecasts"]] == [
        ("cpu", str(cpu), "2022-12-31"),
        ("mem", str(mem), "2022-12-31"),
    ]
    assert body["servers"] == 5
    assert body["not_recommended"] == [
        {"reason": "host", "metric": None, "servers": 1},
        {"reason": "no_room", "metric": None, "servers": 1},
    ]
    assert body["missing_metrics"] == []


async def test_totals_reconcile_over_the_pages_and_with_the_filters(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset()
    await world.forecast(dataset, "cpu")
    await world.forecast(dataset, "mem")
    for filters in ({}, {"kind": "downsize"}, {"kind": "consolidate"}, {"region": "us"}, {"business_unit": "none"}):
        items, cursor = [], None
        while True:
            page = await get(client, "/recommendations", limit=1, **filters, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            if (cursor := page["next_cursor"]) is None:
                break
            # Newer forecasts do not change a list that is being read.
            await world.forecast(dataset, "mem", {name: its | {"mem": 89} for name, its in FLEET.items()})
        sums = {
            kind: sum(micro(i["saving_usd_per_month"]) for i in items if i["kind"] == kind)
            for kind in ("downsize", "consolidate")
        }
        assert len({item["server_id"] for item in items}) == len(items) == page["totals"]["servers"]
        assert micro(page["totals"]["downsize_usd"]) == sums["downsize"]
        assert micro(page["totals"]["consolidate_usd"]) == sums["consolidate"]
        assert micro(page["totals"]["saving_usd_per_month"]) == sum(sums.values())
        if len(items) > 1:
            await world.forecast(dataset, "mem", finished_at=datetime(2024, 1, 1, tzinfo=UTC))


async def test_a_server_that_lacks_a_metric_is_never_shrunk(client: httpx.AsyncClient, world: World) -> None:
    fleet = {name: dict(its) for name, its in FLEET.items()}
    fleet["us-tiny"]["mem"] = None
    dataset = await world.dataset(fleet)
    await world.forecast(dataset, "cpu", fleet)
    waiting = await get(client, "/recommendations")
    assert waiting["items"] == []
    assert waiting["totals"]["saving_usd_per_month"] == 0.0
    assert [one["metric"] for one in waiting["missing_metrics"]] == ["mem"]
    assert str(dataset) in waiting["missing_metrics"][0]["todo"]
    assert waiting["not_recommended"] == [{"reason": "no_forecast", "metric": "mem", "servers": 5}]
    only_some = {name: its for name, its in fleet.items() if name != "us-half"}
    await world.forecast(dataset, "mem", only_some)
    body = await get(client, "/recommendations", metric="cpu")
    assert "us-tiny" not in {item["server_id"] for item in body["items"]}
    assert "us-half" not in {item["server_id"] for item in body["items"]}
    assert {"reason": "no_values", "metric": "mem", "servers": 1} in body["not_recommended"]
    assert {"reason": "no_forecast", "metric": "mem", "servers": 1} in body["not_recommended"]
    assert sum(one["servers"] for one in body["not_recommended"]) + len(body["items"]) == body["servers"]


async def test_an_absolute_metric_is_judged_against_its_capacity(client: httpx.AsyncClient, world: World) -> None:
    fleet = {
        "big": {"iops": 100, "capacity": 1000},
        "full": {"iops": 900, "capacity": 1000},
        "unknown": {"iops": 100, "capacity": None},
    }
    dataset = await world.dataset(fleet, attributes=())
    await world.forecast(dataset, "iops", fleet)
    body = await get(client, "/recommendations", kind="downsize")
    assert [(item["server_id"], item["to"]) for item in body["items"]] == [("big", {"factor": 0.25, "capacity": 250.0})]
    assert {"reason": "no_threshold", "metric": "iops", "servers": 1} in body["not_recommended"]


async def test_servers_of_known_and_of_unknown_size_are_not_put_together(
    client: httpx.AsyncClient, world: World
) -> None:
    fleet = {
        "busy": {"region": "eu", "cpu": 60, "capacity": None},
        "idle": {"region": "eu", "cpu": 5, "capacity": 64},
        "roomy": {"region": "eu", "cpu": 50, "capacity": 16},
    }
    fits = await world.forecast(await world.dataset(fleet, attributes=()), "cpu", fleet)
    body = await get(client, "/recommendations", kind="consolidate", forecast_id=str(fits))
    assert [(item["server_id"], item["onto"]) for item in body["items"]] == [("idle", "roomy")]
    assert body["items"][0]["assumptions"] == ["`capacity` is what cpu is a share of"]
    fleet["idle"]["cpu"] = 15  # of 64, 9.6 of the other's 16
    full = await world.forecast(await world.dataset(fleet, attributes=()), "cpu", fleet)
    assert (await get(client, "/recommendations", kind="consolidate", forecast_id=str(full)))["items"] == []


async def test_a_lower_epsilon_and_a_lower_threshold_recommend_less(client: httpx.AsyncClient, world: World) -> None:
    fleet = {"one": {"cpu": 41}}
    await world.forecast(await world.dataset(fleet), "cpu", fleet)
    assert (await get(client, "/recommendations", epsilon=0.05))["totals"]["servers"] == 1
    assert (await get(client, "/recommendations", epsilon=0.001))["totals"]["servers"] == 0
    assert (await get(client, "/recommendations", threshold=84))["totals"]["servers"] == 0
    for wrong in (0, 0.6, "nan"):
        await get(client, "/recommendations", 422, epsilon=wrong)
    await get(client, "/recommendations", 422, kind="upsize")
    await get(client, "/recommendations", 404, forecast_id=str(uuid4()))


async def test_profiles_of_load(client: httpx.AsyncClient, world: World) -> None:
    fleet = {f"idle-{n}": {"cpu": 10 + n} for n in range(4)} | {f"busy-{n}": {"cpu": 70 + n} for n in range(4)}
    forecast = await world.forecast(await world.dataset(fleet), "cpu", fleet)
    body = await get(client, "/clusters", forecast_id=str(forecast))
    assert [(item["name"], item["servers"]) for item in body["items"]] == [("steady, low", 4), ("steady, high", 4)]
    assert body["items"][0]["centre"]["level_pct"] == 11.5
    assert set(body["items"][0]["examples"]) < {f"idle-{n}" for n in range(4)}
    assert body["servers"] == 8
    assert body["silhouette"] > 0.8
    first = await get(client, "/clusters", limit=1)
    rest = await get(client, "/clusters", limit=1, cursor=first["next_cursor"])
    assert first["items"] + rest["items"] == body["items"]
    assert rest["next_cursor"] is None


async def test_values_beyond_what_an_integer_holds_have_profiles(client: httpx.AsyncClient, world: World) -> None:
    fleet = {f"vast-{n}": {"bytes": (n + 1) * 10**20} for n in range(4)}
    forecast = await world.forecast(await world.dataset(fleet), "bytes", fleet)
    body = await get(client, "/clusters", forecast_id=str(forecast))
    assert sum(item["servers"] for item in body["items"]) == 4

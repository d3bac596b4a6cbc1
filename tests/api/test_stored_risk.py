"""Lists from stored risk are those that a judgement of today makes, and where they could not be, they are not used."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Any, LiteralString
from uuid import UUID

import httpx
import numpy as np
import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy.dialects import postgresql

from app.settings import Settings
from app.storage.risk_rows import page_query
from tests.api.risk_world import HORIZON, MEDIANS, World, matrix
from tests.api.test_by_hand import body, brought, carried, export, submitted

__all__ = ["body"]

SORTS = ("runway", "breach_probability", "max_p90", "server_id")
GROUPS = ("business_unit", "region", "criticality")


def sql(settings: Settings, statement: LiteralString, *values: object) -> list[Any]:
    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


async def listed(client: httpx.AsyncClient, forecast: UUID | str, **asked: Any) -> list[dict[str, Any]]:
    """All pages; what names the forecast left out."""
    pages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while not pages or cursor["cursor"]:
        answer = await client.get("/risk/servers", params={"forecast_id": str(forecast), **asked, **cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        del page["forecast_id"]
        cursor = {"cursor": page.pop("next_cursor")}
        pages.append(page)
    return pages


async def summed(client: httpx.AsyncClient, forecast: UUID | str, by: str) -> dict[str, Any]:
    answer = await client.get("/risk/summary", params={"forecast_id": str(forecast), "by": by})
    found: dict[str, Any] = answer.json()
    del found["forecast_id"]
    return found


async def test_every_list_is_what_a_judgement_of_today_makes(
    client: httpx.AsyncClient, world: World, settings: Settings
) -> None:
    random = np.random.default_rng(5)
    names = sorted([*(f"srv-{number}" for number in range(70)), "SRV-B", "_under", "zürich", "Ω", "😀", "a" * 300])
    dataset = await world.dataset(
        names=names,
        business_unit={name: f"unit {number % 3}" for number, name in enumerate(names) if number % 5},
        criticality={name: float(number % 2) for number, name in enumerate(names)},
        threshold={name: 80.0 for name in names[::7]},
    )
    medians = dict(zip(names, random.choice([20.0, 60.0, 78.0, 84.0, 86.0, 88.0, 95.0], len(names)), strict=True))
    found = matrix(medians)
    found = replace(found, values=found.values + random.integers(-2, 3, (len(names), HORIZON, 1)).astype(np.float32))
    of = {}
    for world.stored in (True, False):
        of[world.stored] = await world.forecast(dataset, found=found)
    assert sql(settings, "SELECT count(*), count(DISTINCT run_id) FROM risks") == [(len(names), 1)]
    filters: list[dict[str, Any]] = [
        {},
        {"level": "very_high"},
        {"level": ["underutilized", "high"]},
        {"region": "eu", "business_unit": ["unit 0", "unit 2"]},
        {"criticality": "1.0", "level": "normal"},
        {"business_unit": "nobody's"},
    ]
    for sort, limit, wanted in product(SORTS, (7, 1000), filters):
        asked = {"sort": sort, "limit": limit, **wanted}
        assert await listed(client, of[True], **asked) == await listed(client, of[False], **asked), asked
    for by in GROUPS:
        assert await summed(client, of[True], by) == await summed(client, of[False], by)
    assert await listed(client, of[True], threshold=85) == await listed(client, of[False], threshold=85)


async def test_stored_risk_is_what_is_read_until_the_rules_are_others(
    client: httpx.AsyncClient, world: World, settings: Settings
) -> None:
    forecast = await world.forecast(await world.dataset())
    (true,) = await listed(client, forecast, sort="server_id")
    sql(settings, "UPDATE risks SET max_p90 = 1, level = 'high'")
    (stored,) = await listed(client, forecast, sort="server_id")
    assert {item["max_p90"] for item in stored["items"]} == {1.0}
    assert (await summed(client, forecast, "region"))["total"]["high"] == len(MEDIANS)
    assert await listed(client, forecast, sort="server_id", threshold=90) == [stored], "the threshold of all of them"
    assert await listed(client, forecast, sort="server_id", threshold=90.5) != [stored]
    sql(settings, """UPDATE run_risks SET rules = rules || '{"very_high": 91.5}'""")
    assert await listed(client, forecast, sort="server_id") == [true]
    assert (await summed(client, forecast, "region"))["total"]["high"] == 1


async def test_a_cursor_outlives_a_change_of_the_rules(
    client: httpx.AsyncClient, world: World, settings: Settings
) -> None:
    forecast = await world.forecast(await world.dataset())
    asked = {"forecast_id": str(forecast), "limit": 2}
    first = (await client.get("/risk/servers", params=asked)).json()
    sql(settings, "UPDATE run_risks SET rules = '{}'")
    second = (await client.get("/risk/servers", params=asked | {"cursor": first["next_cursor"]})).json()
    assert [item["server_id"] for page in (first, second) for item in page["items"]] == [
        "SRV-3", "SRV-2", "SRV-5", "SRV-1",
    ]  # fmt: skip


async def test_a_page_is_read_by_the_index_of_its_sort(world: World, settings: Settings) -> None:
    names = [f"srv-{number:04}" for number in range(2_000)]
    dataset = await world.dataset(names=names)
    for day in (1, 2, 3):
        at = datetime(2023, 1, day, tzinfo=UTC)
        await world.forecast(dataset, found=matrix({name: 20 + n / 30 for n, name in enumerate(names)}), finished_at=at)
    sql(settings, "ANALYZE risks")
    ((run,),) = sql(settings, "SELECT run_id FROM run_risks LIMIT 1")
    for sort in SORTS:
        page = page_query(run, {"region": ["eu"]}, sort, names[1_000], 100)
        text = page.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        plan = str(sql(settings, f"EXPLAIN {text}"))  # type: ignore[arg-type]
        assert f"Index Scan using ix_risks_by_{sort} on risks  (" in plan, plan
        assert "Sort" not in plan


async def test_a_run_stores_it_at_its_end_and_takes_it_along(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await carried(api, forecast)
    assert (await brought(client, forecast, export())).status_code == 201
    assert sql(settings, "SELECT count(*), count(DISTINCT run_id) FROM risks") == [(6, 2)]
    for model in ("seasonal_naive", "canvas"):
        stored = await listed(client, forecast, model=model)
        sql(settings, "UPDATE run_risks SET rules = rules || '{\"formulas\": 0}'")
        assert await listed(client, forecast, model=model) == stored
        sql(settings, "UPDATE run_risks SET rules = rules || '{\"formulas\": 1}'")
    before = [item["max_p90"] for item in stored[0]["items"]]
    assert (await brought(client, forecast, export(off=3.0))).status_code == 201
    (anew,) = await listed(client, forecast, model="canvas")
    assert [item["max_p90"] for item in anew["items"]] == pytest.approx([p90 + 3 for p90 in before])
    sql(settings, "UPDATE run_risks SET rules = '{}'")
    assert await listed(client, forecast, model="canvas") == [anew]
    assert sql(settings, "SELECT count(*), count(DISTINCT run_id) FROM risks") == [(6, 2)]
    assert (await client.delete(f"/forecasts/{forecast}")).status_code == 204
    assert sql(settings, "SELECT count(*) FROM risks") == [(0,)]

"""Forecasts over HTTP, on a real database, their runs carried by the real run service and its child processes."""

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from app.api.exports import wanted
from app.domain.forecast import MODELS
from app.domain.keys import Scope
from app.forecasters import _apart
from app.services.reuse import LEARNS_ANEW
from app.settings import Settings

DAYS = 120


def a_csv(servers: int = 3, days: int = DAYS) -> bytes:
    """Two months and more of a weekly rhythm; the last server has too few values to take part."""
    random = np.random.default_rng(3)
    start = np.datetime64("2023-01-01")
    lines = ["server_id,timestamp,cpu_p95,mem_mb,region"]
    for server in range(servers):
        for day in range(days):
            value = 40 + 10 * server + 8 * np.sin(day * 2 * np.pi / 7) + random.normal(0, 2)
            lines.append(f"srv-{server},{start + day},{value:.2f},{1000 + day},eu")
    lines += [f"young,{start + days - 5 + day},50,1000,eu" for day in range(5)]
    return "\n".join(lines).encode()


@pytest.fixture
async def dataset(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.post("/datasets?name=t.csv", content=a_csv(), headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture
def body(dataset: dict[str, Any]) -> dict[str, Any]:
    return {"dataset_id": dataset["id"], "metric": "cpu_p95", "horizon": 14, "models": ["seasonal_naive"]}


Finish = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture
def finish(api: FastAPI, client: httpx.AsyncClient) -> Finish:
    """Carry all runs of a forecast, as a worker does."""

    async def carried(forecast_id: str) -> dict[str, Any]:
        forecast = await api.state.services.forecasts.get(UUID(forecast_id))
        await asyncio.gather(*(api.state.services.runs.tick(run.id) for run in forecast.runs))
        shown: dict[str, Any] = (await client.get(f"/forecasts/{forecast_id}")).json()
        return shown

    return carried


def count(settings: Settings, table: str) -> int:
    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[arg-type]
    assert row
    return int(row[0])


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).removeprefix("urn:headroom:problem:")


CHANGES: list[tuple[dict[str, Any], int, str]] = [
    ({"surprise": 1}, 422, "unknown-field"),
    ({"role_arn": "arn:aws:iam::1:role/x"}, 422, "unknown-field"),
    ({"dataset_id": str(uuid4())}, 404, "not-found"),
    ({"dataset_id": "nonsense"}, 422, "validation"),
    ({"metric": "nope"}, 422, "validation"),
    ({"metric": ""}, 422, "validation"),
    ({"metric": "a\0b"}, 422, "validation"),
    ({"metric": "a\ud800"}, 422, "validation"),
    ({"name": "\ud800"}, 422, "validation"),
    ({"server_ids": ["\ud800"]}, 422, "validation"),
    ({"metric": None}, 422, "validation"),
    ({"horizon": 0}, 422, "validation"),
    ({"horizon": -1}, 422, "validation"),
    ({"horizon": 1.5}, 422, "validation"),
    ({"horizon": "7"}, 422, "validation"),
    ({"horizon": True}, 422, "validation"),
    ({"horizon": 2_201}, 422, "validation"),
    ({"horizon": 2**63}, 422, "validation"),
    ({"quantiles": [0]}, 422, "validation"),
    ({"quantiles": [1]}, 422, "validation"),
    ({"quantiles": [-0.1]}, 422, "validation"),
    ({"quantiles": [0.5, 0.5]}, 422, "validation"),
    ({"quantiles": []}, 422, "validation"),
    ({"quantiles": ["0.5"]}, 422, "validation"),
    ({"models": ["oracle"]}, 422, "validation"),
    ({"models": ["seasonal_naive", "seasonal_naive"]}, 422, "validation"),
    ({"models": []}, 422, "validation"),
    ({"models": "auto"}, 422, "validation"),
    ({"server_ids": []}, 422, "validation"),
    ({"server_ids": ["ghost"]}, 422, "validation"),
    ({"server_ids": ["srv-0", "srv-0"]}, 422, "validation"),
    ({"server_ids": ["young"]}, 422, "validation"),
    ({"backtest_windows": 0}, 422, "validation"),
    ({"max_cost_usd": -1}, 422, "validation"),
    ({"fallback": "yes"}, 422, "validation"),
    ({"name": "x" * 201}, 422, "validation"),
    ({"models": ["canvas"]}, 400, "idempotency-key-required"),
]


async def test_a_bad_value_is_refused_and_nothing_stored(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for change, status, expected in CHANGES:
        with subtests.test(str(change)):
            content = json.dumps(body | change)  # httpx's own way of writing JSON cannot write a lone surrogate
            answer = await client.post("/forecasts", content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, slug(answer)) == (status, expected), answer.text
            assert answer.json()["detail"]
    assert count(settings, "forecasts") == count(settings, "runs") == count(settings, "procrastinate_jobs") == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"[" * 10_000 + b"]" * 10_000, 400),
        (b'{"dataset_id": "b6cec110-d679-4b26-9e0b-ecc1a722de10", "metric": "cpu_p95", "quantiles": [NaN]}', 422),
        (b"[]", 422),
        (b'"text"', 422),
    ],
)
async def test_what_is_not_a_body_is_refused(
    client: httpx.AsyncClient, settings: Settings, content: bytes, status: int
) -> None:
    answer = await client.post("/forecasts", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert count(settings, "forecasts") == 0


async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    for key in ("k" * 256, "two words", "ünicode", "tab\there"):
        answer = await client.post(
            "/forecasts", json=body, headers={b"Idempotency-Key": key.encode(), b"Content-Type": b"application/json"}
        )
        assert (answer.status_code, slug(answer)) == (400, "bad-request"), key


async def test_a_dataset_without_enough_history_is_refused(client: httpx.AsyncClient) -> None:
    made = await client.post("/datasets", content=a_csv(2, 10), headers={"Content-Type": "text/csv"})
    answer = await client.post("/forecasts", json={"dataset_id": made.json()["id"], "metric": "cpu_p95"})
    assert answer.status_code == 422
    assert "14 values" in answer.json()["detail"]


class TestLimits:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"work_limit": 4 * 14 * 3, "queue_limit": 1})

    async def test_work_and_queue_are_limited(
        self, client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
    ) -> None:
        too_much = await client.post("/forecasts", json=body | {"horizon": 15})
        assert (too_much.status_code, slug(too_much)) == (422, "work-limit")
        assert (await client.post("/forecasts", json=body)).status_code == 202
        full = await client.post("/forecasts", json=body)
        assert (full.status_code, slug(full)) == (429, "queue-full")
        assert int(full.headers["retry-after"]) > 0
        assert count(settings, "forecasts") == 1


async def test_submit_says_where_and_shows_the_same_as_the_get(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    answer = await client.post("/forecasts", json=body | {"quantiles": [0.975, 0.05]})
    assert answer.status_code == 202
    shown = answer.json()
    assert answer.headers["location"] == f"/forecasts/{shown['id']}"
    assert answer.headers["retry-after"]
    assert (await client.get(answer.headers["location"])).json() == shown
    assert shown["status"] == "queued"
    assert shown["request"]["quantiles"] == [0.05, 0.975]
    assert shown["request"]["backtest_windows"] == 1
    assert shown["runs"][0]["servers"] == 3
    assert "'young'" in shown["warnings"][0]
    assert count(settings, "procrastinate_jobs") == 1


async def test_estimate_tells_and_starts_nothing(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    answer = await client.post("/forecasts/estimate", json=body | {"models": ["canvas"]})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert [(run["model"], run["eligible"]) for run in told["runs"]] == [("canvas", False), ("auto", True)]
    assert told["servers"]["eligible"] == 3
    assert told["servers"]["excluded"] == [{"server_id": "young", "reason": "5 values of cpu_p95; 14 are needed"}]
    assert told["cost"] == {"estimated_usd": 0.0}
    assert count(settings, "forecasts") == 0


async def test_canvas_that_is_off_is_skipped_and_auto_answers_or_refused_without_fallback(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "once"}
    answer = await client.post("/forecasts", json=body | {"models": ["canvas"]}, headers=key)
    assert answer.status_code == 202
    runs = {run["model"]: run for run in answer.json()["runs"]}
    assert runs["canvas"]["status"] == "skipped"
    assert runs["canvas"]["error"]["detail"]
    assert runs["auto"]["status"] == "queued"
    assert any("canvas" in warning for warning in answer.json()["warnings"])
    refused = await client.post(
        "/forecasts", json=body | {"models": ["canvas"], "fallback": False}, headers={"Idempotency-Key": "twice"}
    )
    assert (refused.status_code, slug(refused)) == (503, "aws-unavailable")


async def test_canvas_needs_the_scope_that_pays(api: FastAPI, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    _, secret = await api.state.services.keys.create("writer", [Scope.READ, Scope.WRITE])
    headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "k"}
    refused = await client.post("/forecasts", json=body | {"models": ["canvas"]}, headers=headers)
    assert (refused.status_code, slug(refused)) == (403, "insufficient-scope")


async def test_a_key_is_honoured_whatever_becomes_of_the_forecast(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "monthly"}
    first = await client.post("/forecasts", json=body, headers=key)
    assert "idempotency-replayed" not in first.headers
    again = await client.post("/forecasts", json=body | {"horizon": 14, "fallback": True}, headers=key)
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = await client.post("/forecasts", json=body | {"horizon": 15}, headers=key)
    assert (other.status_code, slug(other)) == (422, "idempotency-mismatch")
    await client.post(first.headers["location"] + "/cancel")
    replayed = await client.post("/forecasts", json=body, headers=key)
    assert replayed.json()["status"] == "cancelled"
    await client.delete(first.headers["location"])
    assert (await client.post("/forecasts", json=body, headers=key)).status_code == 409
    assert count(settings, "forecasts") == 0


async def test_fifty_at_once_with_one_key_make_one_forecast(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "fifty"}
    answers = await asyncio.gather(*(client.post("/forecasts", json=body, headers=key) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert count(settings, "forecasts") == count(settings, "runs") == count(settings, "procrastinate_jobs") == 1


async def test_a_twin_that_takes_too_long_is_told_to_come_back(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    assert settings.database_url
    async with await psycopg.AsyncConnection.connect(settings.database_url) as first:
        await first.execute("INSERT INTO idempotency_keys (owner, key, body_hash) VALUES ('', 'slow', 'x')")
        answer = await client.post("/forecasts", json=body, headers={"Idempotency-Key": "slow"})
        assert answer.status_code == 409
        assert answer.headers["retry-after"]
        await first.rollback()
    assert (await client.post("/forecasts", json=body, headers={"Idempotency-Key": "slow"})).status_code == 202


async def test_lists_cancels_and_deletes(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    made = [(await client.post("/forecasts", json=body | {"name": str(n)})).json()["id"] for n in range(3)]
    page = (await client.get("/forecasts?limit=2")).json()
    assert [one["id"] for one in page["items"]] == made[:0:-1]
    rest = (await client.get("/forecasts", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert [one["id"] for one in rest["items"]] == made[:1]
    assert rest["next_cursor"] is None
    bad = await client.get("/forecasts", params={"status": "queued", "cursor": page["next_cursor"]})
    assert (bad.status_code, slug(bad)) == (400, "bad-cursor")

    assert (await client.delete(f"/forecasts/{made[0]}")).status_code == 409
    cancelled = await client.post(f"/forecasts/{made[0]}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (await client.post(f"/forecasts/{made[0]}/cancel")).status_code == 409
    assert [one["id"] for one in (await client.get("/forecasts?status=cancelled")).json()["items"]] == [made[0]]
    assert (await client.delete(f"/datasets/{body['dataset_id']}")).status_code == 409
    assert (await client.delete(f"/forecasts/{made[0]}")).status_code == 204
    assert (await client.get(f"/forecasts/{made[0]}")).status_code == 404
    for path in ("", "/quantiles", "/comparison", "/events"):
        assert (await client.get(f"/forecasts/{uuid4()}{path}")).status_code == 404


async def test_results_by_page_and_whole(
    client: httpx.AsyncClient, body: dict[str, Any], finish: Finish, settings: Settings
) -> None:
    models = ["structural", "seasonal_naive"]
    made = (await client.post("/forecasts", json=body | {"models": models, "quantiles": [0.975]})).json()
    path = f"/forecasts/{made['id']}"
    early = await client.get(f"{path}/quantiles")
    assert (early.status_code, slug(early)) == (409, "forecast-not-ready")
    assert (await client.get(f"{path}/comparison")).status_code == 409

    done = await finish(made["id"])
    assert done["status"] == "succeeded", done
    assert done["progress"] == 1.0
    assert all(run["status"] == "succeeded" and run["finished_at"] for run in done["runs"])

    comparison = (await client.get(f"{path}/comparison")).json()
    assert comparison["best_model"] == done["best_model"] == comparison["models"][0]["model"]
    assert [row["rank"] for row in comparison["models"]] == [1, 2]
    assert comparison["models"][0]["wql"] <= comparison["models"][1]["wql"]
    by_server = (await client.get(f"{path}/comparison?by=server_id&limit=2")).json()
    assert [row["server_id"] for row in by_server["items"]] == ["srv-0", "srv-1"]
    assert {row["model"] for row in by_server["items"][0]["models"]} == set(models)
    last = await client.get(f"{path}/comparison?by=server_id&limit=2&cursor={by_server['next_cursor']}")
    assert [row["server_id"] for row in last.json()["items"]] == ["srv-2"]

    rows: list[dict[str, Any]] = []
    query: dict[str, Any] = {"model": models, "limit": 25}
    while True:
        page = (await client.get(f"{path}/quantiles", params=query)).json()
        assert page["quantiles"] == [0.1, 0.5, 0.9, 0.975]
        rows += page["items"]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert len(rows) == 3 * 2 * 14
    assert rows == sorted(rows, key=lambda row: (row["server_id"], models.index(row["model"]), row["timestamp"]))
    assert rows[0]["timestamp"] == str(np.datetime64("2023-01-01") + DAYS)
    assert all(row["p10"] <= row["p50"] <= row["p90"] <= row["p97.5"] for row in rows)
    assert all(row["p10"] >= 0 and row["p97.5"] <= 100 for row in rows)

    best = (await client.get(f"{path}/quantiles")).json()["items"]
    assert {row["model"] for row in best} == {done["best_model"]}
    start, end = rows[2]["timestamp"], rows[4]["timestamp"]
    few = (await client.get(f"{path}/quantiles?server_id=srv-1&start={start}&end={end}")).json()["items"]
    assert [row["timestamp"] for row in few] == [row["timestamp"] for row in rows[2:5]]
    assert (await client.get(f"{path}/quantiles?server_id=young")).json()["items"] == []
    assert (await client.get(f"{path}/quantiles?model=prophet")).status_code == 422
    assert (await client.get(f"{path}/quantiles?start=yesterday")).status_code == 422
    for times in ({"end": "9999-12-31T23:59:59-14:00"}, {"start": "0001-01-01T00:00:00+14:00"}):
        beyond = await client.get(f"{path}/quantiles", params=times)
        assert (beyond.status_code, beyond.json()["errors"][0]["pointer"]) == (422, f"?{next(iter(times))}")

    async def whole(accept: str) -> bytes:
        answer = await client.get(f"{path}/quantiles", params={"model": models}, headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(accept)
        return answer.content

    as_csv = list(csv.DictReader(io.StringIO((await whole("text/csv")).decode())))
    as_parquet = pq.read_table(io.BytesIO(await whole("application/vnd.apache.parquet"))).to_pylist()
    as_arrow = pa.ipc.open_stream(await whole("application/vnd.apache.arrow.stream")).read_all().to_pylist()
    for row, line, packed, streamed in zip(rows, as_csv, as_parquet, as_arrow, strict=True):
        assert packed == streamed
        assert (row["server_id"], row["model"], row["timestamp"]) == (
            line["server_id"], line["model"], line["timestamp"],
        )  # fmt: skip
        assert str(packed["timestamp"]) == row["timestamp"]
        assert float(line["p97.5"]) == pytest.approx(row["p97.5"])
        assert packed["p97.5"] == pytest.approx(row["p97.5"])

    assert count(settings, "forecast_quantiles") == len(rows)

    for nothing in ({"server_id": "young"}, {"start": "2050-01-01"}):
        forms = {
            accept: await client.get(f"{path}/quantiles", params=nothing, headers={"Accept": accept})
            for accept in ("application/json", "text/csv", "application/vnd.apache.parquet")
        }
        assert [(form.status_code, form.headers["vary"]) for form in forms.values()] == [(200, "Accept")] * 3
        assert list(csv.reader(io.StringIO(forms["text/csv"].text))) == [[*as_csv[0]]]
        empty = pq.read_table(io.BytesIO(forms["application/vnd.apache.parquet"].content))
        assert (empty.num_rows, empty.column_names) == (0, [*as_csv[0]])


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", None),
        ("text/csv", "text/csv"),
        ("text/html, */*;q=0.8", None),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0.1, application/json", None),
        ("text/csv;q=0", None),
        ("text/csv;q=x, application/vnd.apache.parquet;q=0.9", "text/csv"),
        ("text/csv, application/vnd.apache.parquet", "text/csv"),
        ("text/csv;q=0.3, Application/vnd.apache.Parquet; q=0.9", "application/vnd.apache.parquet"),
    ],
)
def test_the_form_preferred_is_the_form_sent(accept: str, form: str | None) -> None:
    assert wanted(accept) == form


async def test_places_are_named_alike(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """The field itself, once, in our words; whatever pydantic tried on the way."""
    bad = {"max_cost_usd": "x", "models": ["auto", "auto"], "quantiles": [0.5, "y"], "server_ids": ["a\0"]}
    errors = (await client.post("/forecasts", json=body | bad)).json()["errors"]
    assert [error["pointer"] for error in errors] == ["/quantiles/1", "/models", "/server_ids/0", "/max_cost_usd"]
    assert errors[1]["detail"] == "must not repeat a value"


async def test_models_are_not_used_again_in_silence(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    unknown = await client.post("/forecasts", json=body | {"reuse_models_of": str(uuid4())})
    assert (unknown.status_code, slug(unknown)) == (404, "not-found")
    known = (await client.post("/forecasts", json=body)).json()["id"]
    anew = await client.post("/forecasts", json=body | {"reuse_models_of": known})
    assert anew.status_code == 202
    told = [warning for warning in anew.json()["warnings"] if "learned anew" in warning]
    assert [warning.split()[0] for warning in told] == body["models"]
    assert all(warning.endswith(LEARNS_ANEW[warning.split()[0]]) for warning in told)


def test_every_local_model_says_why_it_learns_anew() -> None:
    assert set(LEARNS_ANEW) == set(MODELS) - {"canvas"}
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    table = page.partition("## What is used again")[2].partition("\n## ")[0]
    assert all(f"`{model}`" in table for model in MODELS)


async def test_known_ahead_rows_that_end_early_are_told(client: httpx.AsyncClient) -> None:
    start = np.datetime64("2024-01-01")
    rows = [f"{name},{start + day},{5 + day % 7 if day < 60 else ''},{day % 2}" for name, days in
            (("far", 74), ("near", 64)) for day in range(days)]  # fmt: skip
    made = await client.post(
        "/datasets",
        params={"schema": json.dumps({"known_ahead": ["promo"]})},
        content="\n".join(["server_id,timestamp,load,promo", *rows]),
        headers={"Content-Type": "text/csv"},
    )
    asked = {"dataset_id": made.json()["id"], "metric": "load", "models": ["seasonal_naive"]}
    (warning,) = (await client.post("/forecasts", json=asked | {"horizon": 14})).json()["warnings"]
    assert warning.startswith("promo: the rows end before the horizon of 14 steps on 1 of 2 servers ('near'), ")
    assert (await client.post("/forecasts", json=asked | {"horizon": 4})).json()["warnings"] == []


async def test_hourly_times_and_formulas_in_exports(client: httpx.AsyncClient, finish: Finish) -> None:
    hours = np.datetime64("2023-01-01T00:00:00") + np.arange(24 * 21) * np.timedelta64(1, "h")
    lines = ["server_id,timestamp,cpu_p95", *(f"=cmd(),{time}Z,{40 + n % 24}" for n, time in enumerate(hours))]
    made = await client.post("/datasets", content="\n".join(lines).encode(), headers={"Content-Type": "text/csv"})
    assert made.status_code == 201, made.text
    body = {"dataset_id": made.json()["id"], "metric": "cpu_p95", "horizon": 24, "models": ["seasonal_naive"]}
    forecast = (await client.post("/forecasts", json=body)).json()
    assert (await finish(forecast["id"]))["status"] == "succeeded"
    path = f"/forecasts/{forecast['id']}/quantiles"
    first = (await client.get(path)).json()["items"][0]
    assert (first["server_id"], first["timestamp"]) == ("=cmd()", "2023-01-22T00:00:00Z")
    quoted = (await client.get(path, headers={"Accept": "text/csv"})).text.splitlines()
    assert quoted[1].startswith('"\'=cmd()",')
    assert "2023-01-22T00:00:00Z" in quoted[1]
    assert "'=cmd()" not in (await client.get(f"{path}?raw=true", headers={"Accept": "text/csv"})).text
    two = (await client.get(f"{path}?start=2023-01-22T22:00:00Z&end=2023-01-22")).json()["items"]
    assert [row["timestamp"] for row in two] == ["2023-01-22T22:00:00Z", "2023-01-22T23:00:00Z"]


async def test_events_tell_each_change_and_resume(
    client: httpx.AsyncClient, body: dict[str, Any], finish: Finish
) -> None:
    made = (await client.post("/forecasts", json=body)).json()
    path = f"/forecasts/{made['id']}/events"
    following = asyncio.create_task(client.get(path))
    await finish(made["id"])
    events = [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in (await following).text.split("\n\n")
        if block
    ]
    assert events[-1]["event"] == "end"
    assert json.loads(events[-1]["data"])["status"] == "succeeded"
    told = [json.loads(event["data"])["status"] for event in events if event["event"] == "run"]
    assert told[-1] == "succeeded"
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(ids)

    resumed = (await client.get(path, headers={"Last-Event-ID": str(ids[0])})).text
    assert f"id: {ids[0]}\n" not in resumed
    assert "event: end" in resumed
    assert (await client.get(path, headers={"Last-Event-ID": str(ids[-1])})).status_code == 204


async def test_runs_that_end_without_results_say_so(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    made = (await client.post("/forecasts", json=body)).json()
    await client.post(f"/forecasts/{made['id']}/cancel")
    answer = await client.get(f"/forecasts/{made['id']}/quantiles")
    assert (answer.status_code, slug(answer)) == (409, "no-results")
    assert slug(await client.get(f"/forecasts/{made['id']}/comparison")) == "no-results"


async def test_accuracy_is_scored_on_rows_that_came_later(
    client: httpx.AsyncClient, body: dict[str, Any], finish: Finish
) -> None:
    made = (await client.post("/forecasts", json=body)).json()
    path = f"/forecasts/{made['id']}/accuracy"
    assert (await client.get(path)).status_code == 409
    await finish(made["id"])
    before = (await client.get(path)).json()
    assert before["dataset_id"] is None
    assert before["models"][0]["wql"] is None
    rows = (await client.get(f"/forecasts/{made['id']}/quantiles")).json()["items"]
    came = [row for row in rows if row["server_id"] == "srv-0"][:5]
    lines = ["server_id,timestamp,cpu_p95,mem_mb,region"]
    lines += [
        f"srv-0,{row['timestamp']},{row['p50'] + shift},1,eu" for row, shift in zip(came, [0, 0, 0, 0, 90], strict=True)
    ]
    newer = await client.post(
        f"/datasets/{body['dataset_id']}/versions", content="\n".join(lines), headers={"Content-Type": "text/csv"}
    )
    assert newer.status_code == 201, newer.text
    after = (await client.get(path)).json()
    assert after["dataset_id"] == newer.json()["id"]
    (live,) = after["models"]
    assert live["values"] == 5
    assert live["coverage"] == pytest.approx(0.8)
    assert live["mae"] == pytest.approx(18)


def adds_up(told: dict[str, Any]) -> bool:
    rows = [(row["p50"], sum(row[part] for part in told["parts"])) for row in told["items"]]
    return all(whole == pytest.approx(p50, rel=1e-12, abs=1e-12) for p50, whole in rows)


async def test_an_explanation_adds_up_to_what_was_forecast_whatever_the_model(
    client: httpx.AsyncClient, body: dict[str, Any], finish: Finish
) -> None:
    made = (await client.post("/forecasts", json=body | {"models": ["seasonal_naive", "structural"]})).json()
    path = f"/forecasts/{made['id']}/explanation"
    assert slug(await client.get(path, params={"server_id": "srv-1"})) == "forecast-not-ready"
    state = await finish(made["id"])
    by_default = (await client.get(path, params={"server_id": "srv-1"})).json()
    assert by_default["model"] == state["best_model"]
    export = ["item_id,timestamp,p10,p50,p90"]
    days = np.datetime64("2023-01-01") + np.arange(DAYS, DAYS + 14)
    export += [f"srv-{server},{day},30,{40.1 + number},70" for server in range(3) for number, day in enumerate(days)]
    brought = {"file": ("export.csv", "\n".join(export), "text/csv")}
    assert (await client.post(f"/forecasts/{made['id']}/runs/canvas/results", files=brought)).status_code == 201
    told = {}
    for model in ("seasonal_naive", "structural", "canvas"):
        answer = await client.get(path, params={"server_id": "srv-1", "model": model})
        assert answer.status_code == 200, answer.text
        told[model] = answer.json()
        assert (told[model]["server_id"], told[model]["model"], told[model]["metric"]) == ("srv-1", model, "cpu_p95")
        assert told[model]["parts"] == ["level", "trend", "weekday", "year", "calendar", "other"]
        assert "2 others" in told[model]["method"]
        asked = {"server_id": "srv-1", "model": model}
        rows = (await client.get(f"/forecasts/{made['id']}/quantiles", params=asked)).json()["items"]
        assert [(row["timestamp"], row["p50"]) for row in rows] == [
            (item["timestamp"], item["p50"]) for item in told[model]["items"]
        ]
        assert adds_up(told[model])
    # The same regression divides both; what a model does otherwise is its own.
    assert told["seasonal_naive"]["summary"]["level"] == told["structural"]["summary"]["level"]
    other = {model: max(abs(item["other"]) for item in one["items"]) for model, one in told.items()}
    assert other["structural"] < other["seasonal_naive"]
    lifts = {lift["part"]: lift for lift in told["structural"]["summary"]["parts"]}
    assert lifts["weekday"]["peak_to_trough"] == pytest.approx(15.6, abs=2)
    assert lifts["weekday"]["share"] > 0.5
    events = {row["timestamp"]: row["events"] for row in told["structural"]["items"] if row["events"]}
    assert events == {}, "no holiday falls into the first half of May"


async def test_an_explanation_names_its_events(client: httpx.AsyncClient, finish: Finish) -> None:
    lines = ["server_id,timestamp,load"]
    days = np.arange("2022-01-01", "2023-06-20", dtype="datetime64[D]")
    for server in range(3):
        lines += [f"s{server},{day},{-5 + server + (day.astype(int) % 7) * 0.3:.2f}" for day in days]
    sent = await client.post("/datasets", content="\n".join(lines), headers={"Content-Type": "text/csv"})
    body = {"dataset_id": sent.json()["id"], "metric": "load", "horizon": 20, "models": ["structural"]}
    made = (await client.post("/forecasts", json=body)).json()
    await finish(made["id"])
    told = (await client.get(f"/forecasts/{made['id']}/explanation", params={"server_id": "s2"})).json()
    assert adds_up(told)
    events = {row["timestamp"]: row["events"] for row in told["items"] if row["events"]}
    assert events["2023-06-30"] == ["end_of_quarter"]
    assert events["2023-07-04"] == ["holiday:Independence Day"]
    assert events["2023-07-05"] == ["after:Independence Day"]
    in_short = {one["event"]: one for one in told["summary"]["events"]}
    assert in_short["end_of_quarter"]["steps"] == 7


async def test_hours_are_explained_and_what_cannot_be_is_refused(client: httpx.AsyncClient, finish: Finish) -> None:
    lines = ["server_id,timestamp,cpu_p95"]
    hours = np.arange("2023-01-01T00", "2023-01-15T00", dtype="datetime64[h]").astype("datetime64[m]")
    lines += [f"still,{hour},50" for hour in hours]
    lines += [f"web,{hour},{95 + 5 * np.sin(hour.astype(int) * np.pi / 720):.2f}" for hour in hours]
    lines += [f"young,{hour},50" for hour in hours[-5:]]
    sent = await client.post("/datasets", content="\n".join(lines), headers={"Content-Type": "text/csv"})
    body = {"dataset_id": sent.json()["id"], "metric": "cpu_p95", "horizon": 48, "models": ["seasonal_naive"]}
    made = (await client.post("/forecasts", json=body)).json()
    await finish(made["id"])
    path = f"/forecasts/{made['id']}/explanation"
    for server in ("still", "web"):
        told = (await client.get(path, params={"server_id": server})).json()
        assert told["parts"] == ["level", "trend", "weekday", "hour", "year", "calendar", "other"]
        assert len(told["items"]) == 48
        assert adds_up(told)
    for wrong in ({}, {"server_id": "nobody"}, {"server_id": "young"}, {"server_id": "web", "model": "auto"}):
        answer = await client.get(path, params=wrong)
        assert (answer.status_code, slug(answer)) == (422, "validation"), wrong
    assert (await client.get(f"/forecasts/{uuid4()}/explanation", params={"server_id": "web"})).status_code == 404


async def test_a_model_that_can_be_installed_is_refused_with_how(
    client: httpx.AsyncClient, body: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_apart.PYTHONS, "autogluon", tmp_path / "python")
    refused = await client.post("/forecasts", json=body | {"models": ["auto", "autogluon"]})
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/models"]
    assert "does not have autogluon" in refused.json()["detail"]
    assert "make autogluon" in refused.json()["detail"]

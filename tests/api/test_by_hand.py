"""What a person exported from the Canvas screens becomes the `canvas` run: over HTTP, with no AWS anywhere."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, LiteralString
from uuid import UUID, uuid4

import httpx
import numpy as np
import psycopg
import pytest
from fastapi import FastAPI

from app.settings import Settings

HORIZON = 14
LAST = np.datetime64("2023-04-30")
SERVERS = {"web-1": 40.0, "web-2": 55.0, "0012": 70.0}
SPREAD = (-1.0, 0.0, 1.0)

Row = list[str]


def value(level: float, day: np.datetime64) -> float:
    """A weekly rhythm that grows, so that the seasonal naive forecast lags behind."""
    return level + 8 * float(np.sin(day.astype(int) * 2 * np.pi / 7)) + 0.2 * float((day - LAST).astype(int))


def history(days: int = 120) -> bytes:
    """The last server has too few values to take part."""
    lines = ["server_id,timestamp,cpu_p95"]
    for name, level in SERVERS.items():
        lines += [f"{name},{day},{value(level, day):.3f}" for day in LAST - np.arange(days)[::-1]]
    lines += [f"young,{LAST - n},50" for n in (2, 1, 0)]
    return "\n".join(lines).encode()


def export(
    window: int = 0,
    header: Mapping[str, str] | None = None,
    form: str = "%Y-%m-%d",
    off: float = 0.0,
    change: Callable[[list[Row]], list[Row]] = lambda rows: rows,
) -> bytes:
    """The right answer to the digit, but for `off`, under any header and in any form of the date."""
    names = {"item": "item_id", "time": "timestamp", "p10": "p10", "p50": "p50", "p90": "p90", **(header or {})}
    days = LAST + 1 - window * HORIZON + np.arange(HORIZON)
    rows = [
        [name, day.astype(object).strftime(form), *(f"{value(level, day) + off + far:.3f}" for far in SPREAD)]
        for name, level in SERVERS.items()
        for day in days
    ]
    return "\n".join(",".join(row) for row in [list(names.values()), *change(rows)]).encode()


@pytest.fixture
async def body(client: httpx.AsyncClient) -> dict[str, Any]:
    made = await client.post("/datasets?name=t.csv", content=history(), headers={"Content-Type": "text/csv"})
    assert made.status_code == 201, made.text
    return {"dataset_id": made.json()["id"], "metric": "cpu_p95", "horizon": HORIZON, "models": ["seasonal_naive"]}


async def submitted(client: httpx.AsyncClient, body: dict[str, Any], **changes: Any) -> str:
    made = await client.post("/forecasts", json=body | changes, headers={"Idempotency-Key": uuid4().hex})
    assert made.status_code == 202, made.text
    return str(made.json()["id"])


async def carried(api: FastAPI, forecast: str, *models: str) -> None:
    """Its runs, or some of them, to their ends."""
    runs = (await api.state.services.forecasts.get(UUID(forecast))).runs
    await asyncio.gather(*(api.state.services.runs.tick(run.id) for run in runs if not models or run.model in models))


async def brought(
    client: httpx.AsyncClient, forecast: str, file: bytes, backtest: bytes | None = None
) -> httpx.Response:
    files = {"file": ("export.csv", file, "text/csv")}
    if backtest is not None:
        files["backtest"] = ("earlier.csv", backtest, "text/csv")
    return await client.post(f"/forecasts/{forecast}/runs/canvas/results", files=files)


def canvas_of(state: dict[str, Any]) -> dict[str, Any]:
    (run,) = [run for run in state["runs"] if run["model"] == "canvas"]
    assert isinstance(run, dict)
    return run


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).removeprefix("urn:headroom:problem:")


def rows_of(settings: Settings, query: LiteralString) -> list[Any]:
    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:
        found = connection.execute(query)
        return found.fetchall() if found.description else []


async def test_a_finished_forecast_takes_an_export_and_its_backtest(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await carried(api, forecast)
    answer = await brought(client, forecast, export(), export(window=1))
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/forecasts/{forecast}"
    state = answer.json()
    assert state == (await client.get(f"/forecasts/{forecast}")).json()
    run = canvas_of(state)
    assert (run["status"], run["servers"], run["error"]) == ("succeeded", 3, None)
    assert run["cost"] == {"estimated_usd": 0.0, "actual_usd": 0.0}
    assert run["report"]["by_hand"] is True
    assert state["warnings"][-1] == "canvas: brought by hand."
    assert state["best_model"] == "seasonal_naive", "what was said to be best is not unsaid"

    comparison = (await client.get(f"/forecasts/{forecast}/comparison")).json()
    assert [(one["model"], one["rank"]) for one in comparison["models"]] == [("canvas", 1), ("seasonal_naive", 2)]
    (canvas,) = [one for one in comparison["models"] if one["model"] == "canvas"]
    assert canvas["smape"] == pytest.approx(0, abs=0.01)
    assert canvas["coverage"] == 1.0, "scored as it came: no calibration has narrowed it"

    rows = (await client.get(f"/forecasts/{forecast}/quantiles?model=canvas&server_id=0012")).json()["items"]
    assert [row["timestamp"] for row in rows] == [str(LAST + 1 + n) for n in range(HORIZON)]
    assert rows[3]["p90"] == pytest.approx(value(70, LAST + 4) + 1, abs=0.002)
    risk = await client.get("/risk/servers", params={"forecast_id": forecast, "model": "canvas", "threshold": 75})
    assert {item["server_id"]: item["risk_high"] for item in risk.json()["items"]} == {
        "0012": True,
        "web-1": False,
        "web-2": False,
    }
    events = rows_of(settings, "SELECT e.before, e.after FROM run_events e JOIN runs r ON r.id = e.run_id "
                               "WHERE r.model = 'canvas' ORDER BY e.id")  # fmt: skip
    assert events == [(None, "skipped"), ("skipped", "succeeded")]


SPELLINGS: list[tuple[dict[str, str], str]] = [
    ({}, "%Y-%m-%d"),
    ({"item": "server_id", "time": "date", "p10": "P10", "p50": "P50", "p90": "P90"}, "%m/%d/%Y"),
    ({"item": "ITEM_ID", "time": "Timestamp", "p10": "0.1", "p50": "0.5", "p90": "0.9"}, "%d/%m/%Y"),
    ({"p10": "target_value_p10", "p50": "target_value_p50", "p90": "target_value_p90"}, "%Y-%m-%dT%H:%M:%SZ"),
    ({"item": "unique_id", "time": "ds", "p10": "q0.1", "p50": "q0.5", "p90": "q0.9"}, "%Y/%m/%d %H:%M:%S"),
]


async def test_any_header_and_date_of_the_screens_as_a_raw_body(
    api: FastAPI, client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await carried(api, forecast)
    path = f"/forecasts/{forecast}/runs/canvas/results"
    asked = {"model": "canvas", "server_id": "web-1", "start": str(LAST + 5), "end": str(LAST + 5)}
    for off, (header, form) in enumerate(SPELLINGS):
        file = export(header=header, form=form, off=off)
        answer = await client.post(path, content=file, headers={"Content-Type": "text/csv"})
        assert answer.status_code == 201, (form, answer.text)
        (row,) = (await client.get(f"/forecasts/{forecast}/quantiles", params=asked)).json()["items"]
        assert row["p50"] == pytest.approx(value(40, LAST + 5) + off, abs=0.002), form


async def test_without_a_backtest_it_is_unscored_last_and_says_how_to_be_scored(
    api: FastAPI, client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await carried(api, forecast)
    state = (await brought(client, forecast, export())).json()
    assert "unscored" in state["warnings"][-1]
    assert "canvas.csv?metric=cpu_p95&before=14" in state["warnings"][-1]
    comparison = (await client.get(f"/forecasts/{forecast}/comparison")).json()
    assert [(one["model"], one["rank"]) for one in comparison["models"]] == [("seasonal_naive", 1), ("canvas", None)]
    assert comparison["windows"] == 1

    better = (await brought(client, forecast, export(off=1), export(window=1))).json()
    assert len(better["runs"]) == len(state["runs"]) == 2
    assert [said for said in better["warnings"] if said.startswith("canvas")] == ["canvas: brought by hand."]
    comparison = (await client.get(f"/forecasts/{forecast}/comparison")).json()
    assert [one["model"] for one in comparison["models"]] == ["canvas", "seasonal_naive"]
    rows = (await client.get(f"/forecasts/{forecast}/quantiles?model=canvas&server_id=web-1")).json()["items"]
    assert len(rows) == HORIZON
    assert rows[0]["p50"] == pytest.approx(value(40, LAST + 1) + 1, abs=0.002)


async def test_a_skipped_run_succeeds_while_others_go_on_and_is_ranked_at_the_end(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body, models=["seasonal_naive", "canvas"])
    assert canvas_of((await client.get(f"/forecasts/{forecast}")).json())["status"] == "skipped"
    state = (await brought(client, forecast, export(), export(window=1))).json()
    assert (state["status"], state["best_model"], canvas_of(state)["error"]) == ("running", None, None)
    assert not [said for said in state["warnings"] if "skipped" in said], "it no longer is"
    await carried(api, forecast, "seasonal_naive")
    state = (await client.get(f"/forecasts/{forecast}")).json()
    assert (state["status"], state["best_model"]) == ("succeeded", "canvas")
    assert rows_of(settings, "SELECT * FROM ledger") == []


async def test_a_forecast_that_failed_succeeds_with_what_is_brought(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body, models=["seasonal_naive", "canvas"])
    rows_of(settings, "UPDATE runs SET status = 'failed'")
    rows_of(settings, "UPDATE forecasts SET status = 'failed', finished_at = now()")
    state = (await brought(client, forecast, export())).json()
    assert (state["status"], state["best_model"]) == ("succeeded", "canvas")
    assert (await client.get(f"/forecasts/{forecast}/quantiles")).status_code == 200
    assert rows_of(settings, "SELECT forecast_id::text FROM alert_evaluations") == [(forecast,)]


STATES: list[tuple[LiteralString, str]] = [
    ("status = 'queued'", "is queued"),
    ("status = 'running'", "is running"),
    ("status = 'succeeded', report = '{}'", "succeeded on AWS"),
    ("status = 'cancelled'", "was cancelled"),
]


async def test_a_run_in_another_state_keeps_its_own(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body, models=["seasonal_naive", "canvas"])
    for state, words in STATES:
        rows_of(settings, "UPDATE runs SET " + state + " WHERE model = 'canvas'")
        before = rows_of(settings, "SELECT status, report::text, epoch FROM runs ORDER BY position")
        answer = await brought(client, forecast, export())
        assert (answer.status_code, slug(answer)) == (409, "conflict"), state
        assert words in answer.json()["detail"]
        assert rows_of(settings, "SELECT status, report::text, epoch FROM runs ORDER BY position") == before
    assert rows_of(settings, "SELECT * FROM results") == []


async def test_a_cancelled_forecast_and_none_at_all_take_nothing(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await client.post(f"/forecasts/{forecast}/cancel")
    assert slug(await brought(client, forecast, export())) == "conflict"
    assert (await brought(client, str(UUID(int=0)), export())).status_code == 404


def without(number: int) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: rows[:number] + rows[number + 1 :]


def with_cell(row: int, column: int, text: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [
        [text if (r, c) == (row, column) else cell for c, cell in enumerate(cells)] for r, cells in enumerate(rows)
    ]


BAD: dict[str, tuple[bytes, bytes | None, str, str]] = {
    "nothing": (b"", None, "/file", "no column 'item_id'"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\xff", None, "/file", "no CSV in UTF-8"),
    "a row lost": (export(change=without(3)), None, "/file", "'web-1' has 13 of the 14 steps from 2023-05-01 on"),
    "another time": (export(change=with_cell(2, 1, "soon")), None, "/file", "'soon' is no time"),
    "no number": (export(change=with_cell(2, 3, "nan")), None, "/file", "p50 of server 'web-1' at 2023-05-03"),
    "twice": (export(change=lambda rows: [*rows, rows[0]]), None, "/file", "more than once"),
    "other levels": (export(header={"p10": "p20", "p90": "p80"}), None, "/file", "no column 'p10', no column 'p90'"),
    "a backtest of the wrong window": (export(), export(), "/backtest", "of the 14 steps from 2023-04-17 on"),
}


async def test_a_file_that_cannot_be_used_says_where_and_changes_nothing(
    client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body, models=["seasonal_naive", "canvas"])
    before = (await client.get(f"/forecasts/{forecast}")).json()
    for case, (file, backtest, pointer, words) in BAD.items():
        answer = await brought(client, forecast, file, backtest)
        assert (answer.status_code, slug(answer)) == (422, "bad-model-output"), case
        (error,) = answer.json()["errors"]
        assert error["pointer"] == pointer, case
        assert words in error["detail"], case
    assert (await client.get(f"/forecasts/{forecast}")).json() == before
    assert rows_of(settings, "SELECT * FROM results") == []
    assert not list((settings.data_dir / "uploads").iterdir()), "the files are gone"


FORMS: list[tuple[dict[str, Any], int, str]] = [
    ({"content": b"x", "headers": {"Content-Type": "application/zip"}}, 415, "unsupported-media-type"),
    ({"files": {"backtest": ("b.csv", export(window=1))}}, 422, "validation"),
    ({"files": {"file": ("b.csv", export()), "extra": ("c.csv", b"x")}}, 422, "unknown-field"),
    ({"files": {"file": ("b.csv", export())}, "params": {"x": 1}}, 422, "unknown-field"),
]


async def test_a_body_in_another_form(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    forecast = await submitted(client, body)
    for sent, status, said in FORMS:
        answer = await client.post(f"/forecasts/{forecast}/runs/canvas/results", **sent)
        assert (answer.status_code, slug(answer)) == (status, said)


async def test_two_at_once_leave_one_run_with_the_results_of_one(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings, body: dict[str, Any]
) -> None:
    forecast = await submitted(client, body)
    await carried(api, forecast)
    answers = await asyncio.gather(*(brought(client, forecast, export(off=off)) for off in (0, 5)))
    assert [answer.status_code for answer in answers] == [201, 201]
    found = rows_of(settings, "SELECT p50[1] FROM results JOIN runs ON id = run_id WHERE model = 'canvas' "
                              "AND server_id = 'web-1'")  # fmt: skip
    assert len(found) == 1
    assert found[0][0] in [pytest.approx(value(40, LAST + 1) + off, abs=0.002) for off in (0, 5)]


async def test_a_history_too_short_to_hold_a_window_back(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    made = await client.post("/datasets", content=history(days=20), headers={"Content-Type": "text/csv"})
    forecast = await submitted(client, body, dataset_id=made.json()["id"])
    refused = await brought(client, forecast, export(), export(window=1))
    assert (refused.status_code, slug(refused)) == (422, "bad-model-output")
    assert "too short" in refused.json()["detail"]
    assert (await brought(client, forecast, export())).status_code == 201


async def test_the_file_to_train_for_the_backtest(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """Each server's last steps lose their targets, whenever they are, and nothing else changes."""
    path = f"/datasets/{body['dataset_id']}/canvas.csv"
    whole, cut = [
        [line.split(",") for line in (await client.get(path, params={"metric": "cpu_p95", **more})).text.splitlines()]
        for more in ({}, {"before": HORIZON})
    ]
    assert [row[:2] + row[3:] for row in whole] == [row[:2] + row[3:] for row in cut]
    empty = [row[:2] for row in cut if row[2] == ""]
    assert all(row[2] for row in whole)
    expected = [["0012", str(LAST - n)] for n in reversed(range(HORIZON))]
    assert [row for row in empty if row[0].strip('"') == "0012"] == [[empty[0][0], day] for _, day in expected]
    assert len(empty) == 3 * HORIZON + 3, "a server with less history than that has no targets left"
    assert (await client.get(path, params={"metric": "cpu_p95", "before": -1})).status_code == 422


async def test_rows_that_only_know_the_future_do_not_count_as_its_end(client: httpx.AsyncClient) -> None:
    days = LAST - np.arange(30)[::-1]
    rows = [f"web-1,{day},{50 + n},0" for n, day in enumerate(days)] + [f"web-1,{LAST + n},,1" for n in range(1, 8)]
    made = await client.post(
        "/datasets",
        params={"schema": '{"known_ahead": ["promo"]}'},
        content="\n".join(["server_id,timestamp,cpu_p95,promo", *rows]),
        headers={"Content-Type": "text/csv"},
    )
    path = f"/datasets/{made.json()['id']}/canvas.csv"
    file = (await client.get(path, params={"metric": "cpu_p95", "before": 3})).text.splitlines()
    assert [row.split(",")[1] for row in file if row.split(",")[2] == ""] == [str(LAST - n) for n in (2, 1, 0)]
    assert len(file) == 1 + 30

"""Workers as real processes that are killed, frozen, doubled and stopped. Afterwards one checker looks at what must
hold: every accepted forecast ended exactly once, its results are whole, nothing is doubled, nothing is lost.
"""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
from fastapi import FastAPI

from app.domain.forecast import ForecastRequest
from app.settings import Settings
from tests.histories import weekly
from tests.processes import eventually, query, worker

LEASE = 2
SERVERS = 4
HORIZON = 7


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, compute_processes=1, lease_seconds=LEASE)


@pytest.fixture
async def submit(api: FastAPI) -> Callable[..., Any]:
    """Submits a forecast of a small dataset and answers its id."""
    dataset = await upload(api, weekly(SERVERS, 60))

    async def submitted(*models: str) -> UUID:
        request = ForecastRequest(dataset, "cpu_p95", HORIZON, models=models or ("seasonal_naive",))
        return (await api.state.services.forecasts.submit(request, "", None)).forecast.id

    return submitted


async def upload(api: FastAPI, text: str) -> UUID:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000") as client:
        answer = await client.post("/datasets", content=text, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


def status(settings: Settings, forecast_id: UUID) -> str:
    return str(query(settings, "SELECT status FROM forecasts WHERE id = %s", forecast_id)[0][0])


def ended(settings: Settings, forecast_id: UUID) -> bool:
    return status(settings, forecast_id) in ("succeeded", "failed", "cancelled")


def check(settings: Settings, forecast_id: UUID, expected: str = "succeeded") -> None:
    """What must hold after whatever happened (I1, I4, I6)."""
    assert status(settings, forecast_id) == expected
    runs = query(settings, "SELECT id, status, servers FROM runs WHERE forecast_id = %s", forecast_id)
    assert runs
    for run_id, run_status, servers in runs:
        terminal = query(
            settings,
            "SELECT count(*) FROM run_events WHERE run_id = %s AND after IN ('succeeded', 'failed', 'cancelled')",
            run_id,
        )
        assert terminal == [(1,)], "a run ends exactly once"
        chain = query(settings, "SELECT before, after FROM run_events WHERE run_id = %s ORDER BY id", run_id)
        assert [before for before, _ in chain[1:]] == [after for _, after in chain[:-1]], "events tell one story"
        rows = query(settings, "SELECT p10, p50, p90 FROM results WHERE run_id = %s", run_id)
        if run_status != "succeeded":
            assert rows == [], "results are all there or not at all"
            continue
        values = np.array(rows)
        assert values.shape == (servers, 3, HORIZON)
        assert np.isfinite(values).all()
        assert (np.diff(values, axis=1) >= 0).all()
        assert query(settings, "SELECT count(*) FROM run_paths WHERE run_id = %s", run_id) == [(1,)]


@pytest.mark.parametrize("place", ["after_claim", "after_piece", "before_store", "before_commit", "after_commit"])
async def test_a_worker_killed_anywhere_leaves_a_forecast_that_finishes(
    settings: Settings, submit: Callable[..., Any], place: str
) -> None:
    forecast_id = await submit("seasonal_naive")
    with worker(settings, f"{place}=kill") as doomed:
        eventually(lambda: doomed.poll() is not None, "the kill")
        assert doomed.returncode == -signal.SIGKILL
    assert ended(settings, forecast_id) == (place == "after_commit")
    with worker(settings):
        eventually(lambda: ended(settings, forecast_id), "the end")
    check(settings, forecast_id)


async def test_a_frozen_worker_changes_nothing_once_another_took_over(
    settings: Settings, submit: Callable[..., Any]
) -> None:
    forecast_id = await submit("seasonal_naive")
    with worker(settings, "before_store=stop") as frozen:
        eventually(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED, "the freeze")
        with worker(settings):
            eventually(lambda: ended(settings, forecast_id), "the end by another")
            before = query(settings, "SELECT xmin, * FROM runs WHERE forecast_id = %s", forecast_id)
            frozen.send_signal(signal.SIGCONT)
            log = settings.data_dir / "worker.log"
            eventually(lambda: "is no longer ours" in log.read_text(), "the thawed worker's notice")
            assert query(settings, "SELECT xmin, * FROM runs WHERE forecast_id = %s", forecast_id) == before
    check(settings, forecast_id)


async def test_a_database_that_drops_everyone_is_no_crash(settings: Settings, submit: Callable[..., Any]) -> None:
    forecasts = [await submit("seasonal_naive", "structural") for _ in range(2)]
    others = "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
    with worker(settings.model_copy(update={"lease_seconds": 60})):
        while not all(ended(settings, forecast_id) for forecast_id in forecasts):
            query(settings, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
            await asyncio.sleep(0.7)
    for forecast_id in forecasts:
        check(settings, forecast_id)
    assert query(settings, "SELECT max(attempt) FROM runs") == [(0,)]


async def test_two_workers_share_what_there_is(settings: Settings, submit: Callable[..., Any]) -> None:
    forecasts = [await submit("seasonal_naive", "structural") for _ in range(4)]
    patient = settings.model_copy(update={"lease_seconds": 60})  # a busy machine is no dead worker
    with worker(patient), worker(patient):
        for forecast_id in forecasts:
            eventually(lambda forecast_id=forecast_id: ended(settings, forecast_id), "the end")
    for forecast_id in forecasts:
        check(settings, forecast_id)
    assert query(settings, "SELECT max(attempt) FROM runs") == [(0,)]


async def test_a_stopping_worker_hands_its_runs_back(settings: Settings, submit: Callable[..., Any]) -> None:
    forecast_id = await submit("seasonal_naive")
    held = settings.model_copy(update={"lease_seconds": 600})
    with worker(held, "fit.seasonal_naive.srv-2=stop") as leaving:  # the child hangs; the worker waits for it
        eventually(
            lambda: query(settings, "SELECT FROM runs WHERE status = 'running' AND stage = 'fitting'"), "the fit"
        )
        leaving.send_signal(signal.SIGTERM)
        assert leaving.wait(timeout=30) == 0
    assert query(settings, "SELECT status, attempt FROM runs") == [("queued", 0)]
    with worker(held):  # a lease of ten minutes: only a run that was handed back can be taken now
        eventually(lambda: ended(settings, forecast_id), "the end")
    check(settings, forecast_id)


async def test_a_cancelled_run_stores_nothing(api: FastAPI, settings: Settings, submit: Callable[..., Any]) -> None:
    forecast_id = await submit("seasonal_naive")
    with worker(settings, "fit.seasonal_naive.srv-2=stop"):
        eventually(lambda: status(settings, forecast_id) == "running", "the claim")
        await api.state.services.forecasts.cancel(forecast_id)
        log = settings.data_dir / "worker.log"
        eventually(lambda: "is no longer ours" in log.read_text(), "the worker's notice")
    check(settings, forecast_id, "cancelled")


async def test_a_server_that_fails_falls_back_by_name_and_the_others_do_not(
    settings: Settings, submit: Callable[..., Any]
) -> None:
    forecast_id = await submit("structural")
    with worker(settings, "fit.structural.srv-2=raise"):
        eventually(lambda: ended(settings, forecast_id), "the end")
    check(settings, forecast_id)
    assert query(settings, "SELECT server_id, fallback FROM results ORDER BY 1") == [
        (f"srv-{server}", "seasonal_naive" if server == 2 else None) for server in range(SERVERS)
    ]
    assert query(settings, "SELECT fallback_servers FROM runs") == [(1,)]
    assert (
        "1 of 4 servers were answered by seasonal_naive" in query(settings, "SELECT warnings FROM forecasts")[0][0][0]
    )


async def test_a_model_that_fails_takes_no_other_with_it(settings: Settings, submit: Callable[..., Any]) -> None:
    forecast_id = await submit("structural", "seasonal_naive")
    failing = ",".join(f"fit.structural.srv-{server}=raise" for server in range(SERVERS))
    with worker(settings, failing):
        eventually(lambda: ended(settings, forecast_id), "the end")
    check(settings, forecast_id)
    assert query(settings, "SELECT model, status FROM runs ORDER BY position") == [
        ("structural", "failed"),
        ("seasonal_naive", "succeeded"),
    ]
    assert query(settings, "SELECT best_model FROM forecasts") == [("seasonal_naive",)]


async def test_a_run_that_kills_its_worker_three_times_is_given_up(
    settings: Settings, submit: Callable[..., Any]
) -> None:
    poison, healthy = await submit("structural"), await submit("seasonal_naive")
    deaths = 0
    while not ended(settings, poison):
        with worker(settings, "after_claim.structural=kill") as doomed:
            eventually(lambda: doomed.poll() is not None or ended(settings, poison), "a death or the end")
            deaths += doomed.poll() == -signal.SIGKILL
    assert deaths == 3
    check(settings, poison, "failed")
    assert query(settings, "SELECT error->>'code' FROM runs WHERE forecast_id = %s", poison) == [("worker-crashed",)]
    with worker(settings):
        eventually(lambda: ended(settings, healthy), "the other's end")
    check(settings, healthy)

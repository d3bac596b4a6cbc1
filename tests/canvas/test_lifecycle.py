"""The managed run on the emulator, with real workers that are killed at every boundary of a stage.

One checker looks afterwards: one AutoML job, one transform per purpose, all rows or none, the ledger balanced, nothing
left on AWS. "Effectively once" under these faults on a strict emulator; nothing here has met AWS.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import httpx
import numpy as np
import psycopg
import pytest
from fastapi import FastAPI

from app.emulator.server import started
from app.main import create_app
from app.settings import Settings

Seen = TypeVar("Seen")
Submit = Callable[..., Awaitable[dict[str, Any]]]

SERVERS, HORIZON, STEPS = 3, 5, 60
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "emulated",
    "AWS_SECRET_ACCESS_KEY": "emulated",
    "AWS_DEFAULT_REGION": "us-east-1",
}
PURPOSES = ("window-1", "forecast")
CREATED = {
    "CreateAutoMLJobV2": "AutoMLJobName",
    "CreateModel": "ModelName",
    "CreateTransformJob": "TransformJobName",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with started(speed=6_000) as url:
        yield url


def control(endpoint: str, what: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    with urlopen(Request(f"{endpoint}/_emulator/{what}", data=data, method=method)) as answer:
        return json.load(answer)


@pytest.fixture
def settings(tmp_path: Path, database_url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    control(endpoint, "reset", {})
    yield Settings(
        data_dir=tmp_path,
        database_url=database_url,
        compute_processes=1,
        lease_seconds=2,
        aws="emulated",
        aws_endpoint_url=endpoint,
        monthly_budget_usd=5.0,
        canvas_poll_seconds=0.2,
    )
    control(endpoint, "faults", method="DELETE")


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
async def submit(client: httpx.AsyncClient) -> Submit:
    random = np.random.default_rng(5)
    start = np.datetime64("2023-01-01")
    lines = ["server_id,timestamp,cpu_p95"] + [
        f"srv-{server},{start + day},{40 + 8 * np.sin(day * 2 * np.pi / 7) + random.normal(0, 2):.2f}"
        for server in range(SERVERS)
        for day in range(STEPS)
    ]
    made = await client.post("/datasets", content="\n".join(lines), headers={"Content-Type": "text/csv"})
    assert made.status_code == 201, made.text

    async def submitted(key: str = "once", **changes: Any) -> dict[str, Any]:
        body = {"dataset_id": made.json()["id"], "metric": "cpu_p95", "horizon": HORIZON, "models": ["canvas"]}
        answer = await client.post("/forecasts", json=body | changes, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        forecast: dict[str, Any] = answer.json()
        return forecast

    return submitted


@contextmanager
def worker(settings: Settings, failpoints: str = "") -> Iterator[subprocess.Popen[bytes]]:
    assert settings.database_url
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "HEADROOM_DATA_DIR": str(settings.data_dir),
        "HEADROOM_LEASE_SECONDS": "2",
        "HEADROOM_COMPUTE_PROCESSES": "1",
        "HEADROOM_AWS": "emulated",
        "AWS_ENDPOINT_URL": str(settings.aws_endpoint_url),
        "HEADROOM_MONTHLY_BUDGET_USD": "5",
        "HEADROOM_CANVAS_POLL_SECONDS": "0.2",
        "HEADROOM_FAILPOINTS": failpoints,
    }
    with (settings.data_dir / "worker.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "app", "worker"], env=environment, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def eventually(look: Callable[[], Seen], what: str, seconds: float = 90) -> Seen:
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        if seen := look():
            return seen
        sleep(0.05)
    raise AssertionError(f"{what} did not happen in {seconds} s")


def query(settings: Settings, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:
        return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]


def run_of(settings: Settings, forecast: dict[str, Any]) -> tuple[str, Any]:
    found = query(
        settings, "SELECT status, error FROM runs WHERE forecast_id = %s AND model = 'canvas'", forecast["id"]
    )
    return str(found[0][0]), found[0][1]


def ended(settings: Settings, forecast: dict[str, Any]) -> bool:
    return run_of(settings, forecast)[0] in ("succeeded", "failed", "cancelled")


def clean(settings: Settings, forecast: dict[str, Any]) -> bool:
    left = query(settings, "SELECT gone_at FROM canvas_runs WHERE forecast_id = %s", forecast["id"])
    return all(gone is not None for (gone,) in left)


def check(settings: Settings, endpoint: str, forecast: dict[str, Any], status: str = "succeeded") -> None:
    """I1 to I6, as far as this run goes."""
    assert run_of(settings, forecast)[0] == status, run_of(settings, forecast)
    run_id = query(settings, "SELECT id FROM runs WHERE forecast_id = %s AND model = 'canvas'", forecast["id"])[0][0]
    made = Counter(
        (call["operation"], call["request"][CREATED[call["operation"]]])
        for call in control(endpoint, "journal")["calls"]
        if call["operation"] in CREATED and (call["status"] == 200 or call["fault"] == "server_error_after_success")
    )
    assert set(made.values()) <= {1}, "nothing was made twice"
    operations = Counter(operation for operation, _ in made)
    if status == "succeeded":
        assert operations == {"CreateAutoMLJobV2": 1, "CreateModel": 1, "CreateTransformJob": len(PURPOSES)}
        rows = query(settings, "SELECT p10, p50, p90 FROM results WHERE run_id = %s", run_id)
        values = np.array(rows)
        assert values.shape == (SERVERS, 3, HORIZON)
        assert np.isfinite(values).all()
        assert (np.diff(values, axis=1) >= 0).all()
    else:
        assert query(settings, "SELECT FROM results WHERE run_id = %s", run_id) == []
    lines = query(
        settings, "SELECT kind, sum(amount_microusd)::bigint FROM ledger WHERE run_id = %s GROUP BY 1", run_id
    )
    money = Counter(dict(lines))
    assert money["reserved"] > 0
    assert money["reserved"] + money["overrun"] == money["settled"] + money["released"]
    assert (money["settled"] > 0) == (operations["CreateAutoMLJobV2"] > 0)


async def test_a_managed_run_from_submit_to_nothing_left(
    settings: Settings, endpoint: str, submit: Submit, client: httpx.AsyncClient
) -> None:
    forecast = await submit(models=["canvas", "seasonal_naive"])
    with worker(settings):
        eventually(lambda: ended(settings, forecast), "the end")
        eventually(lambda: clean(settings, forecast), "the cleaning")
    check(settings, endpoint, forecast)
    shown = (await client.get(f"/forecasts/{forecast['id']}")).json()
    assert shown["status"] == "succeeded"
    assert 0 < shown["cost"]["actual_usd"] < shown["cost"]["estimated_usd"] * 2
    comparison = (await client.get(f"/forecasts/{forecast['id']}/comparison")).json()
    assert {row["model"] for row in comparison["models"]} == {"canvas", "seasonal_naive"}
    assert all(row["wql"] is not None for row in comparison["models"])
    risk = await client.get("/risk/servers", params={"forecast_id": forecast["id"], "model": "canvas"})
    assert len(risk.json()["items"]) == SERVERS
    costs = (await client.get("/costs?by=model")).json()
    assert costs["items"][0]["settled_usd"] == shown["cost"]["actual_usd"]


BOUNDARIES = [
    f"canvas.{place}.{purpose}"
    for purpose in ("automl", "model", "transform-forecast", "transform-window-1")
    for place in ("before", "after", "committed")
] + ["after_claim", "canvas.staging", "canvas.collecting", "before_store", "before_commit", "after_commit"]


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_worker_killed_at_a_boundary_pays_once(
    settings: Settings, endpoint: str, submit: Submit, boundary: str
) -> None:
    forecast = await submit()
    with worker(settings, f"{boundary}=kill") as doomed:
        eventually(lambda: doomed.poll() is not None, "the kill")
        assert doomed.returncode == -signal.SIGKILL
    with worker(settings):
        eventually(lambda: ended(settings, forecast), "the end")
        eventually(lambda: clean(settings, forecast), "the cleaning")
    check(settings, endpoint, forecast)


FAULTS = [
    ("CreateAutoMLJobV2", "lost_reply", "succeeded", None),
    ("CreateAutoMLJobV2", "server_error_after_success", "succeeded", None),
    ("CreateAutoMLJobV2", "throttle", "succeeded", None),
    ("CreateAutoMLJobV2", "resource_limit", "succeeded", None),
    ("CreateAutoMLJobV2", "access_denied", "failed", "aws-denied"),
    ("CreateAutoMLJobV2", "fail_job", "failed", "automl-failed"),
    ("CreateAutoMLJobV2", "no_candidate", "failed", "automl-no-candidate"),
    ("DescribeAutoMLJobV2", "throttle", "succeeded", None),
    ("CreateTransformJob", "lost_reply", "succeeded", None),
    ("CreateTransformJob", "malformed_out", "failed", "bad-model-output"),
    ("CreateTransformJob", "nan_out", "failed", "bad-model-output"),
    ("CreateTransformJob", "short_out", "failed", "bad-model-output"),
]


@pytest.mark.parametrize(("operation", "fault", "status", "code"), FAULTS)
async def test_a_fault_of_aws_ends_as_it_should(
    settings: Settings,
    endpoint: str,
    submit: Submit,
    client: httpx.AsyncClient,
    operation: str,
    fault: str,
    status: str,
    code: str | None,
) -> None:
    control(endpoint, "faults", {"operation": operation, "fault": fault, "times": 1})
    forecast = await submit()
    with worker(settings):
        eventually(lambda: ended(settings, forecast), "the end")
        eventually(lambda: clean(settings, forecast), "the cleaning")
        if status == "failed":
            shown = (await client.get(f"/forecasts/{forecast['id']}")).json()
            assert [run["model"] for run in shown["runs"]] == ["canvas", "auto"], "local models answer"
    check(settings, endpoint, forecast, status)
    assert (run_of(settings, forecast)[1] or {}).get("code") == code

"""A Dask cluster in processes of its own: it answers as child processes here do, and forecasts outlive its losses."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from time import monotonic
from typing import Any
from uuid import UUID

import dask
import httpx
import psutil
import pytest
from distributed import Security
from fastapi import FastAPI

from app.compute import ChildDied, TooSlow
from app.compute.cluster import Cluster
from app.domain.forecast import ForecastRequest
from app.errors import CannotStart, Unavailable
from app.settings import Settings
from tests.histories import weekly
from tests.processes import eventually, query, worker
from tests.tasks import bomb, die, double, fail, hang_with_grandchild, kill_parent

ROOT = Path(__file__).parents[1]
SERVERS, HORIZON = 20, 7
MODELS = ("random_forest", "structural")
NO_DASHBOARD = ("--dashboard-address", "127.0.0.1:0")


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(*command: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """In a group of its own, all of which ends with the block."""
    with (folder / "cluster.log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | {"DASK_TEMPORARY_DIRECTORY": str(folder)} | environment,
            stderr=log,
            stdout=log,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@contextmanager
def scheduler(folder: Path, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    protocol = "tls" if environment else "tcp"
    command = ("dask", "scheduler", "--protocol", protocol, "--host", "127.0.0.1", "--port", str(port), *NO_DASHBOARD)
    # A node takes seconds to start again: one that is lost twice with the same task is enough.
    environment |= {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with process(*command, folder=folder, **environment) as started:
        yield started


@contextmanager
def node(folder: Path, url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """As an operator starts one: a nanny, and the node that it watches over."""
    with process("dask", "worker", url, "--nthreads", "1", *NO_DASHBOARD, folder=folder, **environment) as started:
        yield started


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Dask's settings of a certificate for each part, by one authority: names below `distributed.comm.tls`, files."""
    folder, made = tmp_path_factory.mktemp("certificates"), Security.temporary()  # type: ignore[no-untyped-call]
    parts = ["ca-file", *(f"{role}.{kind}" for role in ("scheduler", "worker", "client") for kind in ("cert", "key"))]
    for part in parts:
        (folder / part).write_text(getattr(made, f"tls_{re.sub('[-.]', '_', part)}"))
    return {part: str(folder / part) for part in parts}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, certificates: dict[str, str]) -> Iterator[str]:
    """Of a scheduler with one node, behind certificates."""
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    url = f"tls://127.0.0.1:{port}"
    variables = {
        f"DASK_DISTRIBUTED__COMM__TLS__{part.upper().replace('.', '__').replace('-', '_')}": file
        for part, file in certificates.items()
    }
    with scheduler(folder, port, **variables), node(folder, url, **variables):
        yield url


@pytest.fixture
async def cluster(url: str, certificates: dict[str, str]) -> AsyncIterator[Cluster]:
    with dask.config.set({f"distributed.comm.tls.{part}": file for part, file in certificates.items()}):
        cluster = Cluster(url, 1024)
    await reached(cluster)
    yield cluster
    await cluster.close()


async def reached(cluster: Cluster, seconds: float = 60) -> None:
    """Comes back once the cluster has a node."""
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        try:
            async with cluster.turn():
                return
        except Unavailable:
            await asyncio.sleep(0.1)
    raise AssertionError(f"no node came up in {seconds} s")


async def test_answers_and_errors_come_back(cluster: Cluster) -> None:
    assert await cluster.run(double, 21, seconds=60) == 42
    with pytest.raises(ValueError, match="as it said"):
        await cluster.run(fail, seconds=60)


async def test_a_child_that_dies_fails_its_own_task_only(cluster: Cluster) -> None:
    doomed, *others = await asyncio.gather(
        cluster.run(die, seconds=60), *(cluster.run(double, n, seconds=60) for n in range(10)), return_exceptions=True
    )
    assert isinstance(doomed, ChildDied)
    assert "SIGSEGV" in str(doomed)
    assert others == [2 * n for n in range(10)]


async def test_a_child_over_its_memory_fails(cluster: Cluster) -> None:
    with pytest.raises(ChildDied, match="memory"):
        await cluster.run(bomb, seconds=60)


async def test_a_hang_is_killed_with_its_grandchildren(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(TooSlow):
        await cluster.run(hang_with_grandchild, str(tmp_path / "pid"), seconds=3)
    assert gone(int((tmp_path / "pid").read_text()))
    assert await cluster.run(double, 1, seconds=60) == 2


async def test_what_nobody_waits_for_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    waiting = asyncio.create_task(cluster.run(hang_with_grandchild, str(file), seconds=600))
    grandchild = int(await asyncio.to_thread(eventually, lambda: file.exists() and file.read_text(), "the start"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(eventually, lambda: gone(grandchild), "the end of what ran")
    assert await cluster.run(double, 1, seconds=60) == 2


async def test_a_task_that_takes_its_nodes_with_it_is_given_up(cluster: Cluster) -> None:
    with pytest.raises(ChildDied, match="node"):
        await cluster.run(kill_parent, seconds=60)
    await reached(cluster)
    assert await cluster.run(double, 1, seconds=60) == 2


async def test_a_scheduler_that_goes_and_comes_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    cluster = Cluster(url, 1024)
    try:
        with scheduler(tmp_path, port) as doomed, node(tmp_path, url):
            await reached(cluster)
            file = tmp_path / "pid"
            waiting = asyncio.create_task(cluster.run(hang_with_grandchild, str(file), seconds=600))
            await asyncio.to_thread(eventually, file.exists, "the start")
            kill(doomed)
            with pytest.raises(Unavailable, match="cannot be reached"):
                await waiting
        with pytest.raises(Unavailable, match="cannot be reached"):
            await cluster.run(double, 1, seconds=60)
        with scheduler(tmp_path, port), node(tmp_path, url):
            await reached(cluster)
            assert await cluster.run(double, 21, seconds=60) == 42
    finally:
        await cluster.close()


def test_without_a_cluster_dask_is_not_loaded() -> None:
    look = "import sys, app.main, app.worker; sys.exit('dask' in sys.modules or 'distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("url", ["scheduler:8786", "http://scheduler:8786", "tls://", "inproc://"])
def test_another_kind_of_address_is_refused(url: str) -> None:
    with pytest.raises(CannotStart, match="COMPUTE_URL"):
        Cluster(url, 1024)


def test_tls_without_certificates_is_refused() -> None:
    with pytest.raises(CannotStart, match="DASK_DISTRIBUTED__COMM__TLS__CA_FILE"):
        Cluster("tls://127.0.0.1:8786", 1024)


def test_certificates_that_are_not_there_are_refused() -> None:
    gone = {"ca-file": "/nowhere/ca.pem", "client.cert": "/nowhere/cert.pem", "client.key": "/nowhere/key.pem"}
    with (
        dask.config.set({f"distributed.comm.tls.{name}": path for name, path in gone.items()}),
        pytest.raises(CannotStart, match="certificates"),
    ):
        Cluster("tls://127.0.0.1:8786", 1024)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, compute_processes=1)


@pytest.fixture
async def dataset(api: FastAPI) -> UUID:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000") as client:
        answer = await client.post("/datasets", content=weekly(SERVERS, 120), headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


def ended(settings: Settings, forecast_id: UUID) -> bool:
    status = query(settings, "SELECT status FROM forecasts WHERE id = %s", forecast_id)[0][0]
    return status in ("succeeded", "failed", "cancelled")


def results(settings: Settings, forecast_id: UUID) -> list[tuple[Any, ...]]:
    statement = """
        SELECT model, to_jsonb(results) - 'run_id'
        FROM results JOIN runs ON runs.id = run_id WHERE forecast_id = %s ORDER BY model, server_id
    """
    return query(settings, statement, forecast_id)


async def test_a_forecast_that_loses_a_node_is_the_same_as_one_made_here(
    api: FastAPI, settings: Settings, dataset: UUID, tmp_path: Path
) -> None:
    """The scheduler comes late; the first node freezes in a fit, and is killed once there is a second one."""

    async def submitted() -> UUID:
        request = ForecastRequest(dataset, "cpu_p95", HORIZON, models=MODELS)
        return (await api.state.services.forecasts.submit(request, "", None)).forecast.id  # type: ignore[no-any-return]

    here = await submitted()
    with worker(settings):
        eventually(lambda: ended(settings, here), "the end of the forecast made here")

    port, elsewhere = free_port(), await submitted()
    url = f"tcp://127.0.0.1:{port}"
    with worker(settings.model_copy(update={"compute_url": url})):
        away = "SELECT id FROM run_events WHERE detail = 'unavailable'"
        eventually(lambda: query(settings, away), "the return to the queue")
        freeze = "fit.random_forest.srv-2=stop"
        with scheduler(tmp_path, port), node(tmp_path, url, HEADROOM_FAILPOINTS=freeze) as doomed:
            eventually(lambda: frozen(doomed), "the freeze")
            before = pieces(settings, elsewhere)
            with node(tmp_path, url):
                eventually(lambda: pieces(settings, elsewhere) > before, "a piece from the second node")
                assert not ended(settings, elsewhere)
                kill(doomed)
                eventually(lambda: ended(settings, elsewhere), "the end of the forecast made elsewhere")
    assert query(settings, "SELECT max(attempt) FROM runs") == [(0,)]
    expected = results(settings, here)
    assert len(expected) == SERVERS * len(MODELS)
    assert results(settings, elsewhere) == expected


def frozen(node: subprocess.Popen[bytes]) -> bool:
    return any(child.status() == psutil.STATUS_STOPPED for child in psutil.Process(node.pid).children(recursive=True))


def pieces(settings: Settings, forecast_id: UUID) -> int:
    return len(list((settings.data_dir / "work").glob(f"*/{forecast_id}/*.npy")))

"""Headroom as one foreground tree: embedded PostgreSQL (unless told of another), API and worker, and the demo on it.

    headroom run ─┬─ PostgreSQL   in a session of its own
                  ├─ serve        started again when it dies
                  └─ worker       started again when it dies

Ctrl-C or SIGTERM reaches this process only; it stops the children in order. Should it be killed outright, the
kernel tells the children.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import httpx

from app import client
from app.errors import CannotStart
from app.services import reference_fleet
from app.settings import Settings
from app.storage.datadir import DataDirLock
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade
from app.wiring import EMULATED_BUCKET, EMULATED_ROLE

TICK = 0.25
START_SECONDS = 60.0
STOP_SECONDS = 15.0
DEMO = {
    "metric": "cpu_p95",
    "horizon": 90,
    "models": ["auto", "prophet", "gradient_boosting", "seasonal_naive", "canvas"],
}
DEMO_BUDGET_USD = 5.0
_PR_SET_PDEATHSIG = 1


class Stop(Exception):
    """Somebody asked us to end."""


def run(settings: Settings) -> int:
    """The service, until Ctrl-C or SIGTERM."""
    with suppress(Stop), _service(settings, sys.stderr) as tree:
        print(f"Headroom is up: {tree.url}   API docs: {tree.url}/docs   Ctrl-C stops it.", flush=True)
        tree.watch()
    return 0


def demo(settings: Settings, *, stay: bool) -> int:
    """The main job over HTTP: a fleet, an upload, a forecast, its comparison, the servers at risk."""
    # Nobody's account, and nobody's money, whatever the settings say.
    settings = settings.model_copy(update={"aws": "emulated", "monthly_budget_usd": DEMO_BUDGET_USD})
    log = tempfile.NamedTemporaryFile("w", prefix="headroom-demo-", suffix=".log", delete=False)  # noqa: SIM115
    try:
        with suppress(Stop), log, _service(settings, log) as tree:
            client.console.print(f"Headroom is up at {tree.url} (its log: {log.name})")
            with client.connect(client.Address(url=tree.url)) as headroom:
                _main_job(headroom)
            client.console.print(
                f"\nPages:     {tree.url}/\nAPI docs:  {tree.url}/docs\nOpenAPI:   {tree.url}/openapi.json"
            )
            if stay:
                client.console.print("Ctrl-C stops it.")
                tree.watch()
    except BaseException:
        if Path(log.name).stat().st_size:
            client.console.print(f"The log of what failed: {log.name}")
        else:
            Path(log.name).unlink()
        raise
    Path(log.name).unlink()
    return 0


def _main_job(headroom: client.Client) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference-fleet.parquet"
        reference_fleet.write(reference_fleet.generate(120, date(2023, 1, 1), date(2025, 12, 31), 42), file)
        dataset = headroom.add_dataset(file)
    client.console.print(
        f"Uploaded the reference fleet: {dataset['servers']} servers, {dataset['rows']:,} rows, "
        f"{dataset['start']} to {dataset['end']}, metrics {', '.join(dataset['metrics'])}"
    )
    client.console.print("canvas runs on an emulated AWS here: no account, no cost; its dollars are made up.")
    made = headroom.submit({"dataset_id": dataset["id"], "name": "demo", **DEMO}, key=f"demo-{dataset['id']}")
    ended = client.watch(headroom, made["id"])
    if ended["status"] != "succeeded":
        raise client.Refused(f"The forecast {ended['status']}: {'; '.join(ended['warnings'])}")
    for warning in ended["warnings"]:
        client.console.print(f"Note: {warning}")
    client.show_comparison(headroom.ask("GET", f"/forecasts/{made['id']}/comparison"))
    client.show_risk(headroom.ask("GET", "/risk/servers", params={"forecast_id": made["id"], "limit": 15}))


class _Tree:
    def __init__(self, settings: Settings, database: EmbeddedPostgres | None, url: str, log: IO[str]) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
        self.url = f"http://{host}:{settings.port}"
        self._database = database
        self._environment = {
            **os.environ,
            "DATABASE_URL": url,
            "HEADROOM_DATA_DIR": str(settings.data_dir),
            "HEADROOM_PORT": str(settings.port),
            "HEADROOM_HOST": settings.host,
        }
        self._emulator_port = _free_port() if settings.aws == "emulated" else None
        if self._emulator_port is not None:
            # Credentials of nobody: whatever stands in the environment must not reach the emulator, nor it AWS.
            self._environment |= {
                "HEADROOM_AWS": "emulated",
                "HEADROOM_BUCKET": EMULATED_BUCKET,
                "HEADROOM_ROLE_ARN": EMULATED_ROLE,
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._emulator_port}",
                "AWS_ACCESS_KEY_ID": "emulated",
                "AWS_SECRET_ACCESS_KEY": "emulated",
                "AWS_DEFAULT_REGION": "us-east-1",
                "HEADROOM_MONTHLY_BUDGET_USD": str(settings.monthly_budget_usd),
            }
        self._log = log
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._arguments: dict[str, tuple[str, ...]] = {}

    def start(self) -> None:
        """All children, and the API answering. Raises CannotStart when it does not come up."""
        if self._emulator_port is not None:
            self._spawn("emulator", "--port", str(self._emulator_port))
        for name in ("serve", "worker"):
            self._spawn(name)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if self._children["serve"].poll() is not None or time.monotonic() > deadline:
                raise CannotStart("The API did not start; its log says why.")
            time.sleep(TICK)

    def watch(self) -> NoReturn:
        """Keep everything up, until Stop."""
        while True:
            time.sleep(TICK)
            if self._database is not None:
                self._database.ensure()
            for name, child in list(self._children.items()):
                if child.poll() is not None:
                    print(f"headroom: {name} ended with {child.returncode}; starting it again", file=self._log)
                    time.sleep(1)
                    self._spawn(name, *self._arguments[name])

    def stop(self) -> None:
        for child in self._children.values():
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _spawn(self, name: str, *arguments: str) -> None:
        self._arguments[name] = arguments
        self._children[name] = subprocess.Popen(
            [sys.executable, "-m", "app", name, *arguments],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


@contextmanager
def _service(settings: Settings, log: IO[str]) -> Iterator[_Tree]:
    """The tree, up; stopped at the end of the block. Ctrl-C and SIGTERM raise Stop."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _asked_to_stop)
    _port_is_free(settings)
    with DataDirLock(settings.data_dir):
        if settings.database_url is not None:
            yield from _up(settings, None, settings.database_url, log)
        else:
            database = EmbeddedPostgres(settings.data_dir)
            with database:
                yield from _up(settings, database, database.url, log)


def _up(settings: Settings, database: EmbeddedPostgres | None, url: str, log: IO[str]) -> Iterator[_Tree]:
    upgrade(url)
    tree = _Tree(settings, database, url, log)
    try:
        tree.start()
        yield tree
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        tree.stop()


def _asked_to_stop(number: int, _frame: FrameType | None) -> None:
    print(f"headroom: {signal.Signals(number).name} received, stopping", file=sys.stderr, flush=True)
    raise Stop


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _port_is_free(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise CannotStart(
                f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. "
                "Choose another port with HEADROOM_PORT."
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

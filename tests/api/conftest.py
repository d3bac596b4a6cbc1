"""The API over its real database: in this process for most tests, over a socket where the socket matters."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from app.settings import Settings
from app.storage.database import Database
from tests.api.risk_world import World


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, host="127.0.0.1", compute_processes=1)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    """For tests that bring their own results."""
    assert settings.database_url
    database = Database(settings.database_url)
    yield World(database)
    await database.close()


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[str]:
    """`headroom serve` in a process of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    headroom = Path(sys.executable).with_name("headroom")
    log = tmp_path / "serve.log"
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "HEADROOM_DATA_DIR": str(tmp_path),
        "HEADROOM_HOST": "127.0.0.1",
        "HEADROOM_PORT": str(port),
    }
    with log.open("wb") as output:
        process = subprocess.Popen([headroom, "serve"], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/readyz", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(address) as answer:
                json.load(answer)
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not come up:\n{log.read_text()}")

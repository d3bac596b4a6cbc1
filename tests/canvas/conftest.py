"""Places to prove managed runs in: the strict emulator in a thread, a database, the API, and real worker processes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.emulator.server import started
from tests.canvas.place import CREDENTIALS, SPEED, Place, Submit, serving, settings_at, submitting
from tests.processes import worker


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with started(speed=SPEED) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, endpoint: str) -> Iterator[Place]:
    """A place with one worker that lives as long as the module: children that have loaded their libraries stay."""
    settings = settings_at(tmp_path_factory.mktemp("settled"), shared_database_url, endpoint)
    with worker(settings) as standing:
        yield Place(settings, endpoint, standing)


@pytest.fixture
def place(settled: Place) -> Place:
    """The module's place, with nothing in the emulator and no fault in wait."""
    _cleared(settled)
    return settled


@pytest.fixture
def alone(tmp_path: Path, database_url: str, endpoint: str) -> Place:
    """A place of this test alone, with no worker, and an installation of its own: databases are clones of one, and the
    module's standing worker would take this one's jobs for strays of its own."""
    found = Place(settings_at(tmp_path, database_url, endpoint), endpoint)
    found.query("UPDATE installation SET id = 'alon'")
    _cleared(found)
    return found


def _cleared(place: Place) -> None:
    place.control("reset", {})
    place.control("clock", {"speed": SPEED})


@pytest.fixture
async def client(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(place) as client:
        yield client


@pytest.fixture
async def submit(place: Place, client: httpx.AsyncClient) -> Submit:
    return submitting(place, client)


@pytest.fixture
async def lonely_client(alone: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(alone) as client:
        yield client


@pytest.fixture
async def lonely_submit(alone: Place, lonely_client: httpx.AsyncClient) -> Submit:
    return submitting(alone, lonely_client)

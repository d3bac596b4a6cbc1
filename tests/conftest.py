"""Real PostgreSQL for the tests: `TEST_DATABASE_URL`, or an embedded server that goes with the test run.

One template database is migrated per run; each test that asks for `database_url` gets a clone of its own.
The processes of pytest-xdist share the server and the template.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql

from app.main import create_app
from app.settings import Settings
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade

# Set by the process that began the run, inherited by those of xdist.
FOLDER = "HEADROOM_TEST_FOLDER"


def database(url: str, name: str) -> str:
    """`url`, but for the database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def template(folder: str) -> str:
    """The name of this run's template: two runs may share one server."""
    return f"headroom_template_{Path(folder).name.removeprefix('headroom-tests-')}"


def roomy_memory() -> str | None:
    """A file system in memory that programs may run from, or none: a cluster is a thousand small files."""
    shared = "/dev/shm"
    if not os.path.ismount(shared) or os.statvfs(shared).f_flag & os.ST_NOEXEC:
        return None
    return shared if shutil.disk_usage(shared).free > 4 << 30 else None


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # Not pytest's own temporary folder: that is closed to the unprivileged user who runs PostgreSQL for root.
        folder = Path(tempfile.mkdtemp(prefix="headroom-tests-", dir=roomy_memory()))
        folder.chmod(0o711)
        os.environ[FOLDER] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        folder = os.environ.pop(FOLDER)
        shutil.rmtree(folder)
        if url := os.environ.get("TEST_DATABASE_URL"):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(template(folder))))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server on which databases may be made, as the URL of its first database."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with EmbeddedPostgres(Path(os.environ[FOLDER])) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            # What these tests write need not survive a power cut.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.url


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> str:
    """The name of a migrated, empty database, made by the first process that asks."""
    name = template(os.environ[FOLDER])
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext(%s))", (name,))
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).rowcount:
            making = f"{name}_new"
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(making)))
            upgrade(database(postgres_url, making))
            connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(making), sql.Identifier(name))
            )
    return name


@contextmanager
def made(postgres_url: str, options: sql.Composable) -> Iterator[str]:
    """A new database for as long as one test, as a plain `postgresql://` URL."""
    name = f"headroom_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)) + options)
    yield database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database of this test alone."""
    with made(postgres_url, sql.SQL(" TEMPLATE {}").format(sql.Identifier(template_database))) as url:
        yield url


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database of all tests of a module that ask for it."""
    with made(postgres_url, sql.SQL(" TEMPLATE {}").format(sql.Identifier(template_database))) as url:
        yield url


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """A database of this test alone, without any table."""
    with made(postgres_url, sql.SQL("")) as url:
        yield url


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started; its services are `api.state.services`."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller on this machine, without a key."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000") as client:
        yield client

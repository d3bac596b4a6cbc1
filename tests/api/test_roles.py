"""The three database roles of docs/operations.md: the service serves, and cannot touch what was spent."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString, cast
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from psycopg import sql

from app.main import create_app
from app.settings import Settings
from app.storage import ledger
from app.storage.database import Database
from app.storage.migrate import upgrade

GRANTS = Path(__file__).parents[2] / "docs/database-grants.sql"
ROLES = ("headroom_owner", "headroom_service", "headroom_reader")
CSV = "server_id,timestamp,cpu\n" + "".join(f"a,2024-01-{day:02},{day}\n" for day in range(1, 31))

As = Callable[[str], str]


@pytest.fixture
def as_role(empty_url: str) -> Iterator[As]:
    """Role → URL of a database that its owner has migrated. Roles belong to the whole server: they get new names."""
    mark, password = uuid.uuid4().hex, uuid.uuid4().hex
    name = dict(zip(ROLES, (f"{role}_{mark}" for role in ROLES), strict=True))

    def url(role: str) -> str:
        parts = urlsplit(empty_url)
        where = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{name[role]}:{password}@{where}"))

    with psycopg.connect(empty_url, autocommit=True) as connection:
        for role in name.values():
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
            )
        connection.execute(
            sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(name["headroom_owner"]))
        )
        upgrade(url("headroom_owner"))
        grants = GRANTS.read_text()
        for role, unique in name.items():
            grants = grants.replace(role, unique)
        for _ in range(2):  # again after each migration
            with psycopg.connect(url("headroom_owner")) as owner:
                owner.execute(cast(LiteralString, grants))
        yield url
        for role in name.values():
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@contextmanager
def worker(url: str, folder: Path) -> Iterator[None]:
    """`headroom worker` in a process of its own."""
    environment = os.environ | {
        "DATABASE_URL": url,
        "HEADROOM_DATA_DIR": str(folder),
        "HEADROOM_COMPUTE_PROCESSES": "1",
    }
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "app", "worker"], env=environment, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def refused(url: str, statement: LiteralString) -> bool:
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return True
    return False


async def test_the_service_does_its_work_with_its_own_rights(as_role: As, tmp_path: Path) -> None:
    url = as_role("headroom_service")
    upgrade(url)  # at its newest: every process looks when it starts
    app = create_app(Settings(data_dir=tmp_path, database_url=url, compute_processes=1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client,
    ):
        assert (await client.get("/readyz")).status_code == 200
        uploaded = await client.post("/datasets", content=CSV, headers={"Content-Type": "text/csv"})
        assert uploaded.status_code == 201, uploaded.text
        body = {"dataset_id": uploaded.json()["id"], "metric": "cpu", "horizon": 7, "models": ["seasonal_naive"]}
        made = await client.post("/forecasts", json=body, headers={"Idempotency-Key": "one"})
        assert made.status_code == 202, made.text
        with worker(url, tmp_path):
            # The stream ends when the forecast does.
            await asyncio.wait_for(client.get(f"{made.headers['Location']}/events"), 60)
        done = (await client.get(made.headers["Location"])).json()
        assert done["status"] == "succeeded", done
        assert (await client.delete(made.headers["Location"])).status_code == 204
        assert (await client.get("/costs")).status_code == 200


async def test_the_service_adds_to_the_ledger_and_changes_nothing_in_it(as_role: As) -> None:
    url = as_role("headroom_service")
    database = Database(url)
    run = uuid.uuid4()
    async with database.begin() as connection:
        assert await ledger.reserve(
            connection, run_id=run, forecast_id=run, model="canvas", owner="", attempt=0, amount=5, monthly_budget=10
        )
        assert (await ledger.release(connection, run, 0)).released == 5
    await database.close()
    assert refused(url, "UPDATE ledger SET amount_microusd = 0")
    assert refused(url, "DELETE FROM ledger")
    assert refused(url, "TRUNCATE ledger")
    assert refused(url, "ALTER TABLE ledger DISABLE TRIGGER append_only")
    assert refused(url, "UPDATE alembic_version SET version_num = '0001'")
    assert refused(url, "CREATE TABLE mine ()")


def test_a_reader_reads_results_and_costs_but_no_keys(as_role: As) -> None:
    url = as_role("headroom_reader")
    with psycopg.connect(url) as connection:
        connection.execute("SELECT * FROM forecast_quantiles")
        connection.execute("SELECT * FROM ledger")
    assert refused(url, "SELECT * FROM api_keys")
    assert refused(url, "SELECT * FROM sessions")
    assert refused(url, "INSERT INTO ledger DEFAULT VALUES")
    assert refused(url, "DELETE FROM forecasts")

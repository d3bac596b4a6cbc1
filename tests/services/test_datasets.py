"""Files of the store that no dataset names go once they are old, and no others do."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from app.compute import Processes
from app.services.datasets import ON_ITS_WAY, Datasets, Limits
from app.storage.artifacts import FolderStore
from app.storage.database import Database
from app.storage.tables import datasets as table

LIMITS = Limits(bytes=1_000, columns=10, cells=100)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of the store."""
    return tmp_path / "store"


@pytest.fixture
def datasets(database: Database, kept: Path, tmp_path: Path) -> Datasets:
    nobody: Processes = None  # type: ignore[assignment]  # nothing is read here
    return Datasets(database, FolderStore(kept), nobody, LIMITS, tmp_path / "uploads")


def a_file(folder: Path, name: str, *, old: bool = True) -> Path:
    """Of an upload that was under way two hours ago, or just now."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"history")
    if old:
        then = time.time() - 2 * ON_ITS_WAY.total_seconds()
        os.utime(path, (then, then))
    return path


async def a_row(database: Database, location: str) -> None:
    async with database.begin() as connection:
        await connection.execute(
            sa.insert(table).values(
                id=uuid4(), name="n", location=location, sha256="s", rows=1, servers=1, metrics=["cpu"], units={},
                attributes=[], known_ahead=[], frequency="D", start=sa.func.now(), end=sa.func.now(), quality={},
            )
        )  # fmt: skip


async def test_an_old_file_without_a_row_goes(database: Database, datasets: Datasets, kept: Path) -> None:
    named, orphan = a_file(kept, "named.parquet"), a_file(kept, "orphan.parquet")
    broken_off, on_its_way = a_file(kept, ".half.parquet.0a1b"), a_file(kept, "new.parquet", old=False)
    await a_row(database, named.name)
    await datasets.sweep()
    assert [path.exists() for path in (named, orphan, broken_off, on_its_way)] == [True, False, False, True]


async def test_an_upload_sweeps(datasets: Datasets, kept: Path) -> None:
    orphan = a_file(kept, "orphan.parquet")
    async with datasets.workspace():
        assert not orphan.exists()


async def test_nothing_goes_while_the_rows_cannot_be_read(
    datasets: Datasets, kept: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    orphan = a_file(kept, "orphan.parquet")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE datasets RENAME TO away")
    await datasets.sweep()
    assert orphan.exists()
    assert "no dataset names" in caplog.text
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE away RENAME TO datasets")
    await datasets.sweep()
    assert not orphan.exists()

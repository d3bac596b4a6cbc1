"""What it takes to keep the results of a whole fleet, against a bare COPY of the same arrays: a ratio.

    python -m benchmarks.stored [--servers 10000] [--models 5]

The service's own writer puts the results of so many runs into the service's tables (keys, indexes, scores, the tally),
each run a transaction; the bare COPY has its bytes ready and goes into a table of id, server and three arrays without
key or index. In turns, the best of three each, on an embedded PostgreSQL.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import psycopg
import sqlalchemy as sa

from app.domain.panel import Frequency
from app.domain.quantiles import BASE
from app.storage.database import Database
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade
from app.storage.results import SCORES, ResultMatrix, write
from app.storage.tables import datasets, forecasts, runs

HORIZON = 90
ROUNDS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--servers", type=int, default=10_000)
    arguments.add_argument("--models", type=int, default=5)
    asked = arguments.parse_args()
    ours, bare = measure(asked.servers, asked.models)
    print(f"{asked.servers:,} servers, {asked.models} models, {HORIZON} steps: {ours:.2f} s")
    print(f"bare COPY of the arrays: {bare:.2f} s; ratio {ours / bare:.2f}")


def measure(servers: int, models: int) -> tuple[float, float]:
    """Seconds of the service's writer, and of the bare COPY."""
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder / "postgres") as postgres:
            upgrade(postgres.url)
            return asyncio.run(_measured(postgres.url, _matrix(servers), models))


async def _measured(url: str, matrix: ResultMatrix, models: int) -> tuple[float, float]:
    database = Database(url)
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE bare (run_id uuid, server_id text, p10 real[], p50 real[], p90 real[])")
    blocks = [_encoded(matrix) for _ in range(models)]
    ours, bare = [], []
    for _ in range(ROUNDS):
        ids = [await _a_run(database) for _ in range(models)]
        began = time.perf_counter()
        for run in ids:
            async with database.begin() as connection:
                await write(connection, run, matrix)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for block in blocks:
            with psycopg.connect(plain) as raw, raw.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.write(block)
        bare.append(time.perf_counter() - began)
    await database.close()
    return min(ours), min(bare)


_COPY = "COPY bare FROM STDIN (FORMAT BINARY)"


def _matrix(servers: int) -> ResultMatrix:
    random = np.random.default_rng(7)
    return ResultMatrix(
        server_ids=tuple(f"SRV-{number:05}" for number in range(servers)),
        as_of=np.full(servers, np.datetime64("2025-12-31T00:00:00", "s")),
        frequency=Frequency.DAILY,
        levels=BASE,
        values=np.sort(random.normal(50, 20, (servers, HORIZON, 3)).astype(np.float32), axis=-1),
        fallback=(None,) * servers,
        scores={name: random.random(servers).astype(np.float32) for name in SCORES},
        tally=random.random((servers, 3, 5)).astype(np.float32),
        weights=random.random((servers, 3)).astype(np.float32),
        shifted_at=np.full(servers, np.datetime64("NaT"), "datetime64[s]"),
    )


def _encoded(matrix: ResultMatrix) -> bytes:
    """The three arrays of each server in PostgreSQL's binary COPY format, for one run."""
    run = uuid4().bytes
    cells = np.empty((len(matrix), 3, HORIZON), dtype=[("length", ">i4"), ("value", ">f4")])
    cells["length"] = 4
    cells["value"] = np.moveaxis(matrix.values, 2, 1)
    size = 20 + 8 * HORIZON
    header = np.array([size, 1, 0, 700, HORIZON, 1], ">i4").tobytes()
    rows = [b"PGCOPY\n\xff\r\n\x00" + bytes(8)]
    for server, arrays in zip(matrix.server_ids, cells, strict=True):
        name = server.encode()
        rows.append(b"\x00\x05" + b"\x00\x00\x00\x10" + run + len(name).to_bytes(4, "big") + name)
        rows.extend(header + array.tobytes() for array in arrays)
    return b"".join([*rows, b"\xff\xff"])


async def _a_run(database: Database) -> UUID:
    """A run without a life, for results to belong to."""
    dataset, forecast, run = uuid4(), uuid4(), uuid4()
    async with database.begin() as connection:
        await connection.execute(
            sa.insert(datasets).values(
                id=dataset, name="n", location="l", sha256="s", rows=1, servers=1, metrics=["cpu"], units={},
                attributes=[], known_ahead=[], frequency="D", start=sa.func.now(), end=sa.func.now(), quality={},
            )
        )  # fmt: skip
        await connection.execute(
            sa.insert(forecasts).values(
                id=forecast, dataset_id=dataset, metric="cpu", request={}, quantiles=list(BASE), status="queued"
            )
        )
        await connection.execute(
            sa.insert(runs).values(id=run, forecast_id=forecast, position=0, model="auto", status="queued")
        )
    return run


if __name__ == "__main__":
    main()

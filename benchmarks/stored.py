"""What it takes to keep the results of a whole fleet, against a bare COPY of the same arrays: a ratio.

    python -m benchmarks.stored [--servers 10000] [--models 5]

The service's own writer puts the results of so many runs into the service's tables (keys, indexes, scores, the tally,
the risk that lists are read from), each run a transaction; the bare COPY has its bytes ready and goes into a table of
id, server and three arrays without key or index. In turns, the best of three each, on an embedded PostgreSQL.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import psycopg
import sqlalchemy as sa

from app.domain import paths
from app.domain.dataset import Server, Unit
from app.domain.panel import Frequency
from app.domain.paths import Template
from app.domain.quantiles import BASE
from app.domain.risk import Levels, Outlook, assess
from app.services import judging
from app.services.fitting import Assessed
from app.storage.database import Connection, Database
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade
from app.storage.results import SCORES, ResultMatrix, write, write_template
from app.storage.tables import datasets, forecasts, runs

HORIZON = 90
ROUNDS = 3
METRIC = "cpu_p95"
STARTS, ENDS = datetime(2023, 1, 1, tzinfo=UTC), datetime(2025, 12, 31, tzinfo=UTC)
DAYS = (ENDS - STARTS).days + 1


@dataclass(frozen=True, eq=False)
class Made:
    """Servers as a dataset has them, and as a run leaves them: generated, without a model."""

    servers: list[Server]
    matrix: ResultMatrix
    template: Template
    assessed: Assessed


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
            return asyncio.run(_measured(postgres.url, made(servers), models))


async def _measured(url: str, fleet: Made, models: int) -> tuple[float, float]:
    database = Database(url)
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE bare (run_id uuid, server_id text, p10 real[], p50 real[], p90 real[])")
    blocks = [_encoded(fleet.matrix) for _ in range(models)]
    ours, bare = [], []
    for _ in range(ROUNDS):
        ids = [await _a_run(database) for _ in range(models)]
        began = time.perf_counter()
        for run in ids:
            async with database.begin() as connection:
                await keep(connection, run, fleet)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for block in blocks:
            with psycopg.connect(plain) as raw, raw.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.write(block)
        bare.append(time.perf_counter() - began)
    await database.close()
    return min(ours), min(bare)


_COPY = "COPY bare FROM STDIN (FORMAT BINARY)"


async def keep(connection: Connection, run: UUID, fleet: Made) -> None:
    """As the end of a run does it."""
    await write(connection, run, fleet.matrix)
    await write_template(connection, run, fleet.template)
    await judging.keep_risk(connection, run, fleet.servers, Unit.PERCENT, fleet.matrix.as_of, fleet.assessed)


def made(servers: int) -> Made:
    """Weeks around a level of each server's own, in which a tenth of them passes 90 % some day."""
    random = np.random.default_rng(7)
    level = random.beta(2, 3, servers) * 90
    week = 1 + 0.1 * np.sin(2 * np.pi * (np.arange(HORIZON) / 7 + random.random((servers, 1))))
    spread = (1 + 0.1 * level * random.random(servers))[:, None, None] * np.array([-1, 0, 1])
    values = np.clip((level[:, None] * week)[..., None] + spread, 0, 100).astype(np.float32)
    known = [
        Server(
            server_id=f"SRV-{number:06}",
            first_at=STARTS,
            last_at=ENDS,
            rows=DAYS,
            counts={METRIC: DAYS},
            maxima={METRIC: 99.0},
            attributes={
                "region": f"region-{number % 7}",
                "business_unit": f"unit-{number % 31}",
                "criticality": ("gold", "silver", "bronze")[number % 3],
            },
        )
        for number in range(servers)
    ]
    matrix = ResultMatrix(
        server_ids=tuple(server.server_id for server in known),
        as_of=np.full(servers, np.datetime64(ENDS.replace(tzinfo=None), "s")),
        frequency=Frequency.DAILY,
        levels=BASE,
        values=values,
        fallback=(None,) * servers,
        scores={name: random.random(servers).astype(np.float32) for name in SCORES},
        tally=random.random((servers, 3, 5)).astype(np.float32),
        weights=random.random((servers, 3)).astype(np.float32),
        shifted_at=np.full(servers, np.datetime64("NaT"), "datetime64[s]"),
    )
    template = paths.autoregressive(HORIZON)
    by = judging.yardstick(known, METRIC, Unit.PERCENT, Frequency.DAILY, Levels())
    assert by is not None, "percent has a threshold"
    outlook = Outlook(values, BASE, matrix.as_of, Frequency.DAILY, Unit.PERCENT, by.lower, by.upper)
    return Made(known, matrix, template, Assessed(by, assess(outlook, by.thresholds, template, by.rules)))


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

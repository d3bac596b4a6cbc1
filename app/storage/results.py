"""Results of runs: one row per (run, server), quantiles as `real[]` in step order. In by binary COPY, out as arrays.

It holds the layout of those rows and nothing of their meaning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.panel import Frequency, Times, instants
from app.domain.paths import Template
from app.domain.quantiles import BASE
from app.domain.tally import SUMS
from app.storage.copying import Field, copy, rows_of
from app.storage.database import Database
from app.storage.tables import forecasts, results, run_paths, run_risks, runs

Reals = NDArray[np.float32]

SCORES = ("smape", "mase", "mae", "rmse", "wql", "coverage")
_ARRAYS = ("p10", "p50", "p90", "others", "tally", "weights")
_COLUMNS = ("run_id", "server_id", "as_of", "step", "fallback", *SCORES, "shifted_at", *_ARRAYS)
_FLOAT4 = 700
_ARRAY_HEADER = 20  # dimensions, flags, type, length, lower bound: five int32


@dataclass(frozen=True)
class ResultMatrix:
    """The results of one run. `values` float32 (servers, horizon, levels); `as_of` datetime64[s] (servers,).

    `fallback` names the model that stood in for a server, or None. `scores` maps each of SCORES to (servers,),
    NaN where unscored. `tally` (servers, periods, 5) is what scores are made of (domain/tally), written and read on
    its own; `weights` (servers, members) an ensemble's; `shifted_at` datetime64[s] (servers,) when the level shifted
    lately, NaT where it did not. Each is None where it is not known.
    """

    server_ids: tuple[str, ...]
    as_of: Times
    frequency: Frequency
    levels: tuple[float, ...]
    values: Reals
    fallback: tuple[str | None, ...]
    scores: dict[str, Reals]
    tally: Reals | None = None
    weights: Reals | None = None
    shifted_at: Times | None = None

    def __len__(self) -> int:
        return len(self.server_ids)

    def times(self) -> Times:
        """datetime64[s] (servers, horizon)."""
        return self.as_of[:, None] + (1 + np.arange(self.values.shape[1])) * self.frequency.step


async def write(connection: AsyncConnection, run_id: UUID, found: ResultMatrix) -> None:
    """COPY all of a run's results in the caller's transaction."""
    await copy(connection, "results", _COLUMNS, _encoded(run_id, found))


async def write_template(connection: AsyncConnection, run_id: UUID, template: Template) -> None:
    await connection.execute(
        sa.insert(run_paths).values(
            run_id=run_id,
            paths=len(template),
            ranks=template.to_bytes(),
            source=template.source,
            between=template.between,
        )
    )


async def clear(connection: AsyncConnection, run_id: UUID) -> None:
    """Make room for other results of the same run, and for what is said of them."""
    for table in (results, run_paths, run_risks):
        await connection.execute(sa.delete(table).where(table.c.run_id == run_id))


class Results:
    """Reads; each call a short transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def template(self, run_id: UUID) -> Template | None:
        async with self._database.connect() as connection:
            row = (await connection.execute(sa.select(run_paths).where(run_paths.c.run_id == run_id))).one_or_none()
        return Template.from_bytes(row.ranks, row.paths, row.source, row.between) if row else None

    async def matrix(self, run_id: UUID) -> ResultMatrix:
        """All results of a run, servers in order of their id (byte order)."""
        async with self._database.connect() as connection:
            levels = await _levels(connection, run_id)
            rows = (await connection.execute(query(run_id))).all()
        return decoded(rows, levels)

    async def tally(self, run_id: UUID) -> tuple[tuple[str, ...], Reals] | None:
        """Servers in order of their id, and their tally (servers, periods, 5); None of a run that has none."""
        query = (
            sa.select(results.c.server_id, sa.func.array_send(results.c.tally).label("tally"))
            .where(results.c.run_id == run_id, results.c.tally.is_not(None))
            .order_by(_BY_ID)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        return tuple(row.server_id for row in rows), _reals([row.tally for row in rows]).reshape(
            len(rows), -1, len(SUMS)
        )

    async def some(
        self, run_id: UUID, *, first: str = "", only: Sequence[str] | None = None, limit: int
    ) -> ResultMatrix | None:
        """The next servers of a run from `first` on, in order of their id; None when there are no more."""
        async with self._database.connect() as connection:
            levels = await _levels(connection, run_id)
            return await some(connection, run_id, levels, first=first, only=only, limit=limit)


async def some(
    connection: AsyncConnection,
    run_id: UUID,
    levels: tuple[float, ...],
    *,
    first: str = "",
    only: Sequence[str] | None = None,
    limit: int | None = None,
) -> ResultMatrix | None:
    """As `Results.some`, where the levels of the run are known."""
    page = query(run_id, only).where(_BY_ID.op(">=")(first)).limit(limit)
    rows = (await connection.execute(page)).all()
    return decoded(rows, levels) if rows else None


def query(run_id: UUID, only: Sequence[str] | None = None) -> sa.Select[Any]:
    """What `decoded` reads of a run's servers, or of some."""
    whole = _SELECT.where(results.c.run_id == run_id).order_by(_BY_ID)
    return (
        whole if only is None else whole.where(results.c.server_id == sa.any_(sa.cast(list(only), sa.ARRAY(sa.Text))))
    )


async def _levels(connection: AsyncConnection, run_id: UUID) -> tuple[float, ...]:
    of = sa.select(forecasts.c.quantiles).join(runs, runs.c.forecast_id == forecasts.c.id).where(runs.c.id == run_id)
    return tuple(await connection.scalar(of) or BASE)


_BY_ID = sa.collate(results.c.server_id, "C")


_SELECT = sa.select(
    *(results.c[name] for name in ("server_id", "as_of", "step", "fallback", *SCORES, "shifted_at")),
    *(sa.func.array_send(results.c[name]).label(name) for name in ("p10", "p50", "p90", "others", "weights")),
)
"""Arrays as the bytes PostgreSQL would send: read by NumPy at once, not by Python one by one."""


def _reals(column: Sequence[bytes]) -> Reals:
    """`array_send` bytes of equally long arrays: float32 (rows, length)."""
    raw = np.frombuffer(b"".join(column), np.uint8).reshape(len(column), -1)[:, _ARRAY_HEADER:]
    pairs = np.ascontiguousarray(raw).view(">f4").reshape(len(column), -1, 2)  # each value behind its length
    return pairs[:, :, 1].astype(np.float32)


def decoded(rows: Sequence[sa.Row[Any]], levels: tuple[float, ...]) -> ResultMatrix:
    if not rows:
        raise LookupError("a run without results")
    column = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
    base = {level: _reals(column[name]) for level, name in zip(BASE, ("p10", "p50", "p90"), strict=True)}
    horizon = base[0.5].shape[1]
    further = [level for level in levels if level not in BASE]
    others = _reals(column["others"]).reshape(len(rows), len(further), horizon) if further else None
    values = np.stack(
        [base[level] if level in base else others[:, further.index(level)] for level in levels],  # type: ignore[index]
        axis=-1,
    )
    return ResultMatrix(
        server_ids=column["server_id"],
        as_of=instants(column["as_of"]),
        frequency=Frequency.DAILY if rows[0].step == timedelta(days=1) else Frequency.HOURLY,
        levels=levels,
        values=values,
        fallback=column["fallback"],
        scores={name: np.array(column[name], np.float32) for name in SCORES},
        weights=None if rows[0].weights is None else _reals(column["weights"]),
        shifted_at=instants(column["shifted_at"]),
    )


def _encoded(run_id: UUID, found: ResultMatrix, block: int = 1_000) -> Iterator[bytes]:
    """Rows in PostgreSQL's binary COPY format, each part built for all servers of a block at once."""
    further = [index for index, level in enumerate(found.levels) if level not in BASE]
    unshifted = np.full(len(found), np.datetime64("NaT", "s"))
    for start in range(0, len(found), block):
        rows = slice(start, start + block)
        values = found.values[rows]
        count = len(values)
        others = values[:, :, further].transpose(0, 2, 1) if further else None
        rest = (None if part is None else part[rows] for part in (found.tally, found.weights))
        heads = rows_of(
            Field.same(run_id.bytes, count),
            Field.texts(found.server_ids[rows]),
            Field.times(found.as_of[rows]),
            Field.same(_interval(found.frequency.step), count),
            Field.texts(found.fallback[rows]),
            *(Field.floats(found.scores[name][rows]) for name in SCORES),
            Field.times((unshifted if found.shifted_at is None else found.shifted_at)[rows]),
            columns=len(_COLUMNS),
        )
        arrays = [_arrays(values[:, :, found.levels.index(level)]) for level in BASE]
        arrays += [np.broadcast_to(_NULL, (count, 4)) if part is None else _arrays(part) for part in (others, *rest)]
        fixed = np.concatenate(arrays, axis=1)
        yield b"".join(part for head, row in zip(heads, fixed, strict=True) for part in (head, row.tobytes()))


_NULL = np.full(4, 0xFF, np.uint8)


def _interval(step: np.timedelta64) -> bytes:
    """microseconds int64, days int32, months int32: a day is kept as a day."""
    seconds = int(step / np.timedelta64(1, "s"))
    days, rest = divmod(seconds, 86_400)
    return (rest * 1_000_000).to_bytes(8, "big") + days.to_bytes(4, "big") + bytes(4)


def _arrays(values: Reals) -> NDArray[np.uint8]:
    """One binary `real[]` field per row of (rows, …): uint8 (rows, bytes)."""
    flat = values.reshape(len(values), -1)
    rows, length = flat.shape
    header = np.array([_ARRAY_HEADER + 8 * length, 1, 0, _FLOAT4, length, 1], ">i4").tobytes()
    cells = np.empty((rows, length, 2), ">f4")
    cells.view(">i4")[:, :, 0] = 4
    cells[:, :, 1] = flat
    body = cells.view(np.uint8).reshape(rows, -1)
    return np.concatenate([np.broadcast_to(np.frombuffer(header, np.uint8), (rows, len(header))), body], axis=1)

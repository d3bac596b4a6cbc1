"""The risk of a run's servers at their own thresholds: stored by binary COPY, read as pages in the order of an index.

A list's order is stored as each server's place in it, so that a page and its ties are those of `risk.order`, whatever
floats and collations make of them. The rows lie in the order by runway: what is near in one list is near on the disk.
It leaves out the formulas (domain/risk.py) and what else a page shows of a server (services/risk.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from itertools import repeat
from typing import Any, get_args
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from app.domain.panel import Array, instants
from app.domain.risk import Risk, Sort, order
from app.storage.copying import Field, copy, rows_of
from app.storage.database import Connection
from app.storage.tables import risks, run_risks

Rules = Mapping[str, float | None]
Groups = Mapping[str, Sequence[str | None]]

GROUPS = ("business_unit", "region", "criticality")
_TIMES = ("first_breach_p10", "first_breach_p50")
_NUMBERS = (
    "max_p90",
    "mean_p50",
    "breach_probability",
    "expected_breach_days",
    "runway_conservative",
    "runway_expected",
    "headroom_pct",
    "severity",
)
_PLACES: dict[Sort, str] = {sort: f"by_{sort}" for sort in get_args(Sort) if sort != "server_id"}
_COLUMNS = ("run_id", "server_id", "threshold", "level", *_NUMBERS, *_TIMES, *GROUPS, *_PLACES.values())
_SELECT = sa.select(*(risks.c[name] for name in ("server_id", "threshold", "level", *_NUMBERS, *_TIMES)))
_BLOCK = 2500


@dataclass(frozen=True, eq=False)
class Standing:
    """What holds for all servers of a run whose risk is stored: `rules` as of `risk.judged_by`, the threshold (None
    where they differ), and the newest `as_of`."""

    rules: Rules
    threshold: float | None
    as_of: np.datetime64


@dataclass(frozen=True, eq=False)
class Found:
    """Servers of a page in the order of the list, their thresholds (servers,) and their risk."""

    server_ids: tuple[str, ...]
    thresholds: Array
    risk: Risk


@dataclass(frozen=True)
class Count:
    """Servers of a group that are at a level, and how many of them are at risk."""

    group: str | None
    level: str
    servers: int
    risk_high: int


async def write(
    connection: Connection,
    run_id: UUID,
    standing: Standing,
    server_ids: Sequence[str],
    thresholds: Array,
    found: Risk,
    groups: Groups,
) -> None:
    """COPY a run's risk in the caller's transaction. Servers come in the order of their ids, by bytes."""
    await connection.execute(
        sa.insert(run_risks).values(
            run_id=run_id,
            rules=dict(standing.rules),
            threshold=standing.threshold,
            as_of=standing.as_of.astype("datetime64[s]").item().replace(tzinfo=UTC),
        )
    )
    await copy(connection, "risks", _COLUMNS, _encoded(run_id, server_ids, thresholds, found, groups))


async def standing(connection: Connection, run_id: UUID, rules: Rules) -> Standing | None:
    """None of a run whose risk is not stored, or was judged by other rules."""
    row = (await connection.execute(sa.select(run_risks).where(run_risks.c.run_id == run_id))).one_or_none()
    if row is None or row.rules != rules:
        return None
    return Standing(rules, row.threshold, np.datetime64(row.as_of.replace(tzinfo=None), "s"))


async def page(
    connection: Connection, run_id: UUID, wanted: Mapping[str, Sequence[str]], sort: Sort, after: str | None, limit: int
) -> Found:
    """Up to `limit` servers of a list from behind `after` on. `wanted` maps a column to the values of it that pass.

    There is nothing behind a server that the run does not have.
    """
    found = await connection.execute(page_query(run_id, wanted, sort, after, limit))
    rows = found.all()
    column = dict(zip(found.keys(), zip(*rows, strict=True) if rows else repeat(()), strict=False))
    numbers: dict[str, Any] = {name: np.array(column[name], np.float64) for name in _NUMBERS}
    times: dict[str, Any] = {name: instants(column[name]) for name in _TIMES}
    return Found(
        column["server_id"],
        np.array(column["threshold"], np.float64),
        Risk(
            level=np.array(column["level"], np.str_),
            risk_high=np.isfinite(numbers["runway_conservative"]),
            **numbers,
            **times,
        ),
    )


def page_query(
    run_id: UUID, wanted: Mapping[str, Sequence[str]], sort: Sort, after: str | None, limit: int
) -> sa.Select[Any]:
    place = _place(risks, sort)
    query = _SELECT.add_columns(place.label("place")).where(risks.c.run_id == run_id).order_by(place).limit(limit)
    for name, values in wanted.items():
        query = query.where(risks.c[name] == sa.any_(sa.cast(list(values), sa.ARRAY(sa.Text))))
    if after is not None:
        seen = risks.alias("seen")
        last = sa.select(_place(seen, sort)).where(seen.c.run_id == run_id, _place(seen, "server_id") == after)
        query = query.where(place > last.scalar_subquery())
    return query


def _place(rows: sa.FromClause, sort: Sort) -> sa.ColumnElement[Any]:
    return sa.collate(rows.c.server_id, "C") if sort == "server_id" else rows.c[_PLACES[sort]]


async def counts(connection: Connection, run_id: UUID, by: str) -> list[Count]:
    """How many servers are at each level, per value of one of GROUPS."""
    group = risks.c[by]
    query = (
        sa.select(group, risks.c.level, sa.func.count(), sa.func.count(risks.c.runway_conservative))
        .where(risks.c.run_id == run_id)
        .group_by(group, risks.c.level)
    )
    return [Count(*row) for row in await connection.execute(query)]


def _encoded(
    run_id: UUID, server_ids: Sequence[str], thresholds: Array, found: Risk, groups: Groups
) -> Iterator[bytes]:
    """Rows in PostgreSQL's binary COPY format."""
    places = {name: _places(order(found, sort)) for sort, name in _PLACES.items()}
    rows = order(found, "runway")
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        its, listed = found.at(some), some.tolist()
        yield b"".join(
            rows_of(
                Field.same(run_id.bytes, len(some)),
                Field.texts([server_ids[row] for row in listed]),
                Field.floats(thresholds[some]),
                Field.texts(its.level.tolist()),
                *(Field.floats(getattr(its, name)) for name in _NUMBERS),
                *(Field.times(getattr(its, name)) for name in _TIMES),
                *(Field.texts([groups[name][row] for row in listed]) for name in GROUPS),
                *(Field.integers(places[name][some]) for name in _PLACES.values()),
                columns=len(_COLUMNS),
            )
        )


def _places(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of each row in an order of rows."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places

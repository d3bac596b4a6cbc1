"""The ledger: money set aside, spent, given back. Lines are only ever added, each at most once.

A reservation opens an attempt of a run, `settle` or `release` closes it: reserved + overrun = settled + released.
What turns up later (a job that a frozen worker made after the cancel) is settled behind it, all of it an overrun.
Nothing here commits; the caller's transaction does. Advisory locks, not row locks, keep writers apart: the service may
insert and select here, and PostgreSQL asks for the right to update before it locks a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.cost import RUN, Balance, Kind, Microdollars, Settled
from app.storage.tables import ledger

ESTIMATED = "estimated: billed seconds × configured prices"
_SET_ASIDE = "estimated: what the run may cost"
_REMAINDER = "what was set aside less what was settled"
_BEYOND = "what was settled less what was set aside"

_BUDGET_LOCK = 0x4C454447
"""The advisory lock of whoever looks at the month and then reserves; held to the end of the transaction."""

By = Literal["forecast", "model", "day"]

_GROUPS: Mapping[By, sa.ColumnElement[Any]] = {
    "forecast": sa.cast(ledger.c.forecast_id, sa.Text),
    "model": ledger.c.model,
    "day": sa.func.to_char(sa.func.timezone("UTC", ledger.c.created_at), "YYYY-MM-DD"),
}


class NotOpen(Exception):
    """A bug: the attempt has no reservation, or had one that is closed. A new try takes a new attempt number."""


@dataclass(frozen=True)
class Total:
    """The sums of one group. `position` orders groups by their first line, and names the place in a list of them."""

    group: str
    balance: Balance
    position: int


async def reserve(
    connection: AsyncConnection,
    *,
    run_id: UUID,
    forecast_id: UUID,
    model: str,
    owner: str,
    attempt: int,
    amount: Microdollars,
    monthly_budget: Microdollars,
) -> bool:
    """Set money aside for an attempt; False, and nothing written, where the month's budget has no room for it.

    A repeat for an open attempt is True and writes nothing. Raises NotOpen for an attempt that is closed. Whoever else
    reserves waits until the caller's transaction ends, so do this late in it. Needs READ COMMITTED, as is the default:
    the sum must see what was committed while this waited.
    """
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_BUDGET_LOCK)))
    lines = await _lines(connection, run_id, attempt)
    if lines:
        if any(line.kind != Kind.RESERVED for line in lines):
            raise NotOpen(f"attempt {attempt} of run {run_id} is closed")
        return True
    if monthly_budget <= 0 or await month_committed(connection) + amount > monthly_budget:
        return False
    values = {"run_id": run_id, "forecast_id": forecast_id, "model": model, "owner": owner, "attempt": attempt}
    await _add(connection, values, Kind.RESERVED, RUN, amount, _SET_ASIDE)
    return True


async def settle(connection: AsyncConnection, run_id: UUID, attempt: int, items: Sequence[Settled]) -> Balance:
    """Book what each purpose cost, give back what is left, and close the attempt; its balance.

    What passes the reservation is an overrun line of the purpose that passed it. A purpose is settled once: a repeat
    changes nothing, also with another amount. Raises NotOpen where nothing was ever reserved.
    """
    await _alone(connection, run_id)
    lines = await _lines(connection, run_id, attempt)
    if not lines:
        raise NotOpen(f"attempt {attempt} of run {run_id} has no reservation")
    first = lines[0]
    values = {name: first._mapping[name] for name in ("run_id", "forecast_id", "model", "owner", "attempt")}
    booked = {line.purpose for line in lines if line.kind == Kind.SETTLED}
    left = _sum(lines).held
    for item in items:
        if item.purpose in booked:
            continue
        booked.add(item.purpose)
        await _add(connection, values, Kind.SETTLED, item.purpose, item.amount, ESTIMATED, item.detail)
        if item.amount > left:
            await _add(connection, values, Kind.OVERRUN, item.purpose, item.amount - left, _BEYOND)
        left = max(left - item.amount, 0)
    if left > 0:
        await _add(connection, values, Kind.RELEASED, RUN, left, _REMAINDER)
    return _sum(await _lines(connection, run_id, attempt))


async def release(connection: AsyncConnection, run_id: UUID, attempt: int) -> Balance:
    """Give the whole reservation back: nothing was spent. A repeat changes nothing."""
    return await settle(connection, run_id, attempt, ())


async def balance(connection: AsyncConnection, run_id: UUID) -> Balance:
    """Of a run, over all its attempts."""
    return _sum(await _lines(connection, run_id, None))


async def month_committed(connection: AsyncConnection) -> Microdollars:
    """What counts against this month's budget, by the database's clock in UTC: spent, or still set aside.

    A reservation belongs to the month that it was made in, and so does what is released of it: money set aside in
    June and given back in July makes no room in July. An overrun belongs to the month in which it was found.
    """
    start = sa.func.date_trunc("month", sa.func.now(), "UTC")
    reservation = ledger.alias("reservation")
    of_this_month = sa.exists().where(
        reservation.c.run_id == ledger.c.run_id,
        reservation.c.attempt == ledger.c.attempt,
        reservation.c.kind == Kind.RESERVED,
        reservation.c.created_at >= start,
    )
    committed = sa.case(
        (ledger.c.kind.in_((Kind.RESERVED, Kind.OVERRUN)), ledger.c.amount_microusd),
        (sa.and_(ledger.c.kind == Kind.RELEASED, of_this_month), -ledger.c.amount_microusd),
        else_=0,
    )
    return int(await connection.scalar(sa.select(sa.func.sum(committed)).where(ledger.c.created_at >= start)) or 0)


async def month_start(connection: AsyncConnection) -> datetime:
    """When this month began, by the database's clock in UTC."""
    month: sa.ColumnElement[datetime] = sa.func.date_trunc("month", sa.func.now(), "UTC")
    return (await connection.execute(sa.select(month))).scalar_one()


async def totals(
    connection: AsyncConnection,
    start: datetime | None,
    end: datetime | None,
    by: By,
    *,
    before: int | None = None,
    limit: int | None = None,
) -> list[Total]:
    """Sums per group of the lines booked from `start` to `end`, inclusive; the group that began last comes first.

    `before` is the position of the last group seen.
    """
    group, position = _GROUPS[by], sa.func.min(ledger.c.id)
    query = _within(sa.select(group.label("group"), position.label("position"), *_SUMS), start, end)
    query = query.group_by(group).order_by(position.desc()).limit(limit)
    if before is not None:
        query = query.having(position < before)
    return [Total(row.group, _balance(row), row.position) for row in await connection.execute(query)]


async def total(connection: AsyncConnection, start: datetime | None, end: datetime | None) -> Balance:
    """The sums of all lines booked from `start` to `end`, inclusive."""
    return _balance((await connection.execute(_within(sa.select(*_SUMS), start, end))).one())


_SUMS = [
    sa.func.coalesce(sa.func.sum(ledger.c.amount_microusd).filter(ledger.c.kind == kind), 0).label(kind.value)
    for kind in Kind
]


def _within(
    query: sa.Select[tuple[Any, ...]], start: datetime | None, end: datetime | None
) -> sa.Select[tuple[Any, ...]]:
    if start is not None:
        query = query.where(ledger.c.created_at >= start)
    return query if end is None else query.where(ledger.c.created_at <= end)


def _balance(row: sa.Row[Any]) -> Balance:
    return Balance(**{kind.value: int(row._mapping[kind.value]) for kind in Kind})


async def _alone(connection: AsyncConnection, run_id: UUID) -> None:
    """Until the transaction ends, no one else closes an attempt of this run."""
    await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(str(run_id), 0))))


async def _lines(connection: AsyncConnection, run_id: UUID, attempt: int | None) -> Sequence[sa.Row[Any]]:
    query = sa.select(ledger).where(ledger.c.run_id == run_id).order_by(ledger.c.id)
    if attempt is not None:
        query = query.where(ledger.c.attempt == attempt)
    return (await connection.execute(query)).all()


def _sum(lines: Sequence[sa.Row[Any]]) -> Balance:
    return Balance(
        **{kind.value: sum(line.amount_microusd for line in lines if line.kind == kind) for kind in Kind},
    )


async def _add(
    connection: AsyncConnection,
    values: Mapping[str, Any],
    kind: Kind,
    purpose: str,
    amount: Microdollars,
    basis: str,
    detail: Mapping[str, object] | None = None,
) -> None:
    await connection.execute(
        sa.insert(ledger).values(
            **values, kind=kind, purpose=purpose, amount_microusd=amount, basis=basis, detail=dict(detail or {})
        )
    )

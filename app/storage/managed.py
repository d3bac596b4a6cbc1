"""Managed runs: their stage and facts, and what was intended on AWS. Nothing here commits; the caller does.

An intent is written before its call, so that whatever a lost reply or a killed worker leaves on AWS is known by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.cost import Kind
from app.domain.run import RunStatus
from app.storage.database import later
from app.storage.tables import canvas_intents, canvas_runs, installation, ledger, runs

RESULTS = "results_left"
"""Among the facts of a run whose results lie in the bucket."""

_OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass(frozen=True)
class Managed:
    """`live`: its run has not ended. `facts` are what the stages found."""

    run_id: UUID
    forecast_id: UUID
    attempt: int
    stage: str
    facts: dict[str, Any]
    live: bool


@dataclass(frozen=True)
class Intent:
    run_id: UUID
    attempt: int
    purpose: str
    name: str
    spec_hash: str
    not_after: datetime
    created_on_aws: bool
    expired: bool


async def installation_id(connection: AsyncConnection) -> str:
    return str(await connection.scalar(sa.select(installation.c.id)))


async def begin(
    connection: AsyncConnection, run_id: UUID, forecast_id: UUID, stage: str, facts: dict[str, Any]
) -> None:
    """Remember a managed run; once begun it stays as it is."""
    await connection.execute(
        upsert(canvas_runs)
        .values(run_id=run_id, forecast_id=forecast_id, attempt=1, stage=stage, facts=facts)
        .on_conflict_do_nothing()
    )


async def get(connection: AsyncConnection, run_id: UUID) -> Managed | None:
    row = (await connection.execute(_select().where(canvas_runs.c.run_id == run_id))).one_or_none()
    return _to_managed(row) if row else None


async def left(connection: AsyncConnection, limit: int = 100) -> Sequence[Managed]:
    """Runs that have ended and may have left something on AWS."""
    rows = await connection.execute(
        _select()
        .where(canvas_runs.c.gone_at.is_(None), sa.or_(runs.c.status.is_(None), runs.c.status.not_in(_OPEN)))
        .order_by(canvas_runs.c.created_at)
        .limit(limit)
    )
    return [_to_managed(row) for row in rows]


async def advance(connection: AsyncConnection, run_id: UUID, stage: str, facts: dict[str, Any]) -> None:
    """The next stage, with what is known now beside what was known before."""
    await connection.execute(
        sa.update(canvas_runs)
        .where(canvas_runs.c.run_id == run_id)
        .values(stage=stage, facts=canvas_runs.c.facts.op("||")(sa.cast(facts, canvas_runs.c.facts.type)))
    )


async def keep_output(connection: AsyncConnection, run_id: UUID) -> None:
    """Output that a run could not use stays, to be looked at; not of one that was ended meanwhile."""
    goes_on = sa.exists().where(runs.c.id == run_id, runs.c.status.in_(_OPEN))
    kept = sa.cast({"output_kept": True}, canvas_runs.c.facts.type)
    await connection.execute(
        sa.update(canvas_runs)
        .where(canvas_runs.c.run_id == run_id, goes_on)
        .values(facts=canvas_runs.c.facts.op("||")(kept))
    )


async def gone(connection: AsyncConnection, run_id: UUID) -> None:
    await connection.execute(
        sa.update(canvas_runs).where(canvas_runs.c.run_id == run_id).values(gone_at=sa.func.now(), stage="gone")
    )


async def never_begun(connection: AsyncConnection, limit: int = 100) -> Sequence[UUID]:
    """Runs that ended, or went with their forecast, before their first stage: their money is still held."""
    later = ledger.alias()
    rows = await connection.execute(
        sa.select(ledger.c.run_id)
        .outerjoin(canvas_runs, canvas_runs.c.run_id == ledger.c.run_id)
        .outerjoin(runs, runs.c.id == ledger.c.run_id)
        .where(
            ledger.c.kind == Kind.RESERVED,
            canvas_runs.c.run_id.is_(None),
            sa.or_(runs.c.status.is_(None), runs.c.status.not_in(_OPEN)),
            ~sa.exists().where(later.c.run_id == ledger.c.run_id, later.c.kind != Kind.RESERVED),
        )
        .limit(limit)
    )
    return list(rows.scalars())


async def outlived(connection: AsyncConnection, days: float, limit: int = 100) -> Sequence[Managed]:
    """Runs of which nothing is left but AutoML's own artifacts, for longer than so many days or than their forecast,
    and whose models no run that goes on uses again."""
    user, using = canvas_runs.alias(), runs.alias()
    in_use = sa.exists().where(
        user.c.facts["models_of"].astext == sa.cast(canvas_runs.c.run_id, sa.Text),
        using.c.id == user.c.run_id,
        using.c.status.in_(_OPEN),
    )
    old = canvas_runs.c.gone_at < later(-days * 86_400)
    rows = await connection.execute(
        _select()
        .where(canvas_runs.c.stage == "gone", sa.or_(old, runs.c.status.is_(None)), ~in_use)
        .order_by(canvas_runs.c.created_at)
        .limit(limit)
    )
    return [_to_managed(row) for row in rows]


async def orphaned(connection: AsyncConnection, limit: int = 100) -> Sequence[Managed]:
    """Runs whose results were left in the bucket, and whose forecast has been deleted since."""
    rows = await connection.execute(
        _select().where(canvas_runs.c.facts.has_key(RESULTS), runs.c.status.is_(None)).limit(limit)
    )
    return [_to_managed(row) for row in rows]


async def results_left(connection: AsyncConnection, run_id: UUID) -> None:
    await _note(connection, run_id, canvas_runs.c.facts.op("||")(sa.cast({RESULTS: True}, canvas_runs.c.facts.type)))


async def results_removed(connection: AsyncConnection, run_id: UUID) -> None:
    await _note(connection, run_id, canvas_runs.c.facts.op("-")(RESULTS))


async def _note(connection: AsyncConnection, run_id: UUID, facts: sa.ColumnElement[Any]) -> None:
    await connection.execute(sa.update(canvas_runs).where(canvas_runs.c.run_id == run_id).values(facts=facts))


async def forgotten(connection: AsyncConnection, run_id: UUID) -> None:
    await connection.execute(sa.update(canvas_runs).where(canvas_runs.c.run_id == run_id).values(stage="forgotten"))


async def found(connection: AsyncConnection, name: str) -> None:
    """AWS has something of this name whose maker had given up on it: its run is not clean, nor paid for."""
    late = (
        sa.update(canvas_intents)
        .where(canvas_intents.c.name == name, sa.not_(canvas_intents.c.created_on_aws))
        .values(created_on_aws=True)
        .returning(canvas_intents.c.run_id)
        .cte("late")
    )
    await connection.execute(
        sa.update(canvas_runs).where(canvas_runs.c.run_id.in_(sa.select(late.c.run_id))).values(gone_at=None)
    )


async def may_search(connection: AsyncConnection, pace: float) -> bool:
    """Whether AWS is to be searched now, and by this worker: no other has within `pace` seconds."""
    due = sa.or_(installation.c.swept_at.is_(None), installation.c.swept_at <= later(-pace))
    taken = await connection.execute(sa.update(installation).where(due).values(swept_at=sa.func.now()))
    return taken.rowcount > 0


async def intend(
    connection: AsyncConnection, managed: Managed, purpose: str, name: str, spec_hash: str, seconds: float
) -> Intent:
    """What is about to be asked of AWS, within so many seconds; asked again, from now on."""
    again = upsert(canvas_intents).values(
        run_id=managed.run_id,
        attempt=managed.attempt,
        purpose=purpose,
        name=name,
        spec_hash=spec_hash,
        not_after=later(seconds),
    )
    await connection.execute(
        again.on_conflict_do_update(
            index_elements=["run_id", "attempt", "purpose"],
            set_={"not_after": again.excluded.not_after},
            where=sa.not_(canvas_intents.c.created_on_aws),
        )
    )
    return next(one for one in await intents(connection, managed) if one.purpose == purpose)


async def made(connection: AsyncConnection, intent: Intent) -> None:
    """AWS has it."""
    await connection.execute(
        sa.update(canvas_intents)
        .where(
            canvas_intents.c.run_id == intent.run_id,
            canvas_intents.c.attempt == intent.attempt,
            canvas_intents.c.purpose == intent.purpose,
        )
        .values(created_on_aws=True)
    )


async def intents(connection: AsyncConnection, managed: Managed) -> Sequence[Intent]:
    rows = await connection.execute(
        sa.select(canvas_intents, (canvas_intents.c.not_after < sa.func.now()).label("expired"))
        .where(canvas_intents.c.run_id == managed.run_id, canvas_intents.c.attempt == managed.attempt)
        .order_by(canvas_intents.c.created_at, canvas_intents.c.purpose)
    )
    return [
        Intent(r.run_id, r.attempt, r.purpose, r.name, r.spec_hash, r.not_after, r.created_on_aws, r.expired)
        for r in rows
    ]


async def unmade_names(connection: AsyncConnection) -> set[str]:
    """Names that were intended, and that nobody has seen on AWS."""
    rows = await connection.execute(sa.select(canvas_intents.c.name).where(sa.not_(canvas_intents.c.created_on_aws)))
    return set(rows.scalars())


async def live_names(connection: AsyncConnection) -> set[str]:
    """Names on AWS that belong to a run that goes on."""
    rows = await connection.execute(
        sa.select(canvas_intents.c.name)
        .join(runs, runs.c.id == canvas_intents.c.run_id)
        .where(runs.c.status.in_(_OPEN))
    )
    return set(rows.scalars())


def _select() -> sa.Select[Any]:
    return sa.select(canvas_runs, runs.c.status).outerjoin(runs, runs.c.id == canvas_runs.c.run_id)


def _to_managed(row: sa.Row[Any]) -> Managed:
    return Managed(row.run_id, row.forecast_id, row.attempt, row.stage, row.facts, row.status in _OPEN)

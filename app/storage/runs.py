"""Runs and their events. Every contested step is one conditional UPDATE that says who won; the fence is `epoch`.

Nothing here commits: the caller's transaction does, with whatever else belongs to the step.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.run import Claim, Run, RunError, RunStatus, allow
from app.storage.database import later
from app.storage.tables import forecasts, run_events, runs

_OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)
_NEXT_REVISION = sa.text("nextval('revisions')")
_NO_TICK_WAITS = sa.text(
    "NOT EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'todo' AND args->>'run_id' = runs.id::text)"
)
"""Unless the queue holds a tick of this run that no worker has fetched."""


def to_run(row: sa.Row[Any]) -> Run:
    return Run(
        id=row.id,
        forecast_id=row.forecast_id,
        position=row.position,
        model=row.model,
        status=RunStatus(row.status),
        stage=row.stage,
        progress=row.progress,
        servers=row.servers,
        fallback_servers=row.fallback_servers,
        estimated_microusd=row.estimated_microusd,
        actual_microusd=row.actual_microusd,
        error=RunError(**row.error) if row.error else None,
        scores=row.scores,
        seconds=row.seconds,
        report=row.report,
        revision=row.revision,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


async def insert(connection: AsyncConnection, new: Sequence[Run]) -> None:
    await connection.execute(
        sa.insert(runs),
        [
            {
                "id": run.id,
                "forecast_id": run.forecast_id,
                "position": run.position,
                "model": run.model,
                "status": run.status,
                "servers": run.servers,
                "estimated_microusd": run.estimated_microusd,
                "error": asdict(run.error) if run.error else None,
                "finished_at": run.finished_at,
            }
            for run in new
        ],
    )
    for run in new:
        await _record(connection, run.id, None, run.status, 0, None)


async def of(connection: AsyncConnection, forecast_ids: Sequence[UUID]) -> dict[UUID, tuple[Run, ...]]:
    """The runs of each forecast, in the order asked for."""
    rows = await connection.execute(
        sa.select(runs).where(runs.c.forecast_id.in_(forecast_ids)).order_by(runs.c.position)
    )
    found: dict[UUID, list[Run]] = {forecast_id: [] for forecast_id in forecast_ids}
    for row in rows:
        found[row.forecast_id].append(to_run(row))
    return {forecast_id: tuple(its) for forecast_id, its in found.items()}


async def attempts(connection: AsyncConnection, run_id: UUID) -> int:
    """Workers that died on it so far."""
    return await connection.scalar(sa.select(runs.c.attempt).where(runs.c.id == run_id)) or 0


async def claim(connection: AsyncConnection, run_id: UUID, lease_seconds: float) -> Claim | None:
    """Take a run that is queued and due, or parked and due, or whose worker fell silent; None when there is none.

    Taking over from a silent worker counts as one of its crashes (`attempt`).
    """
    before = (
        sa.select(runs.c.id, runs.c.status, runs.c.epoch, runs.c.parked)
        .where(
            runs.c.id == run_id,
            sa.or_(
                sa.and_(runs.c.status == RunStatus.QUEUED, runs.c.due_at <= sa.func.now()),
                sa.and_(runs.c.status == RunStatus.RUNNING, runs.c.lease_until < sa.func.now()),
                sa.and_(runs.c.parked, runs.c.due_at <= sa.func.now()),
            ),
        )
        .with_for_update(skip_locked=True)
        .cte("before")
    )
    taken = (
        await connection.execute(
            sa.update(runs)
            .where(runs.c.id == before.c.id)
            .values(
                status=RunStatus.RUNNING,
                epoch=runs.c.epoch + 1,
                attempt=runs.c.attempt
                + sa.cast(sa.and_(before.c.status == RunStatus.RUNNING, sa.not_(before.c.parked)), sa.Integer),
                lease_until=later(lease_seconds),
                parked=False,
                started_at=sa.func.coalesce(runs.c.started_at, sa.func.now()),
                revision=_NEXT_REVISION,
            )
            .returning(
                runs.c.id,
                runs.c.forecast_id,
                runs.c.model,
                runs.c.epoch,
                runs.c.attempt,
                runs.c.stage,
                runs.c.progress,
                before.c.status.label("previous"),
                before.c.parked.label("was_parked"),
            )
        )
    ).one_or_none()
    if taken is None:
        return None
    if not taken.was_parked:
        detail = "taken over: the worker before fell silent" if taken.previous == RunStatus.RUNNING else None
        await _record(connection, run_id, RunStatus(taken.previous), RunStatus.RUNNING, taken.epoch, detail)
    await _touch_forecast(connection, taken.forecast_id)
    return Claim(taken.id, taken.forecast_id, taken.model, taken.epoch, taken.attempt, taken.stage, taken.progress)


async def renew(
    connection: AsyncConnection, claim: Claim, lease_seconds: float, *, stage: str, progress: float
) -> bool:
    """Keep the lease and show how far it is; False when the claim is lost (cancelled or taken over)."""
    row = await connection.execute(
        _held(claim).values(lease_until=later(lease_seconds), stage=stage, progress=progress, revision=_NEXT_REVISION)
    )
    return row.rowcount == 1


class Lost(Exception):
    """The claim is no longer ours: cancelled, or taken over."""


async def keep(connection: AsyncConnection, claim: Claim) -> None:
    """Hold the run's row to the end of the transaction, as ours. Raises Lost when it is not."""
    held = await connection.execute(
        sa.select(runs.c.id)
        .where(runs.c.id == claim.run_id, runs.c.epoch == claim.epoch, runs.c.status == RunStatus.RUNNING)
        .with_for_update()
    )
    if held.one_or_none() is None:
        raise Lost


async def hand_back(connection: AsyncConnection, claim: Claim, detail: str, in_seconds: float) -> bool:
    """Back to the queue, for whoever is next; not a crash."""
    return await _leave(connection, claim, RunStatus.QUEUED, detail, lease_until=None, due_at=later(in_seconds))


async def park(connection: AsyncConnection, claim: Claim, in_seconds: float, *, stage: str, progress: float) -> bool:
    """Let go of a run that goes on elsewhere, until it is due again; False when the claim was lost."""
    parked = await connection.execute(
        _held(claim).values(
            parked=True,
            lease_until=None,
            due_at=later(in_seconds),
            stage=stage,
            progress=progress,
            revision=_NEXT_REVISION,
        )
    )
    return parked.rowcount == 1


async def end(
    connection: AsyncConnection, claim: Claim, status: RunStatus, error: RunError | None = None, **columns: Any
) -> bool:
    """The claim's last word; False when it was no longer the claim's to say."""
    return await _leave(
        connection,
        claim,
        status,
        error.code if error else None,
        error=asdict(error) if error else None,
        lease_until=None,
        finished_at=sa.func.now(),
        progress=1.0 if status is RunStatus.SUCCEEDED else runs.c.progress,
        **columns,
    )


async def bring(connection: AsyncConnection, run_id: UUID, before: RunStatus, detail: str, **columns: Any) -> None:
    """A run that had ended has succeeded after all, by results from outside. The caller holds the forecast's row.

    The epoch moves on, as with every change of hands.
    """
    allow(before, RunStatus.SUCCEEDED)
    epoch = await connection.scalar(
        sa.update(runs)
        .where(runs.c.id == run_id, runs.c.status == before)
        .values(
            status=RunStatus.SUCCEEDED,
            epoch=runs.c.epoch + 1,
            error=None,
            stage="done",
            progress=1.0,
            finished_at=sa.func.now(),
            revision=_NEXT_REVISION,
            **columns,
        )
        .returning(runs.c.epoch)
    )
    assert epoch is not None  # what has ended changes only under the forecast's lock
    await _record(connection, run_id, before, RunStatus.SUCCEEDED, epoch, detail)


async def book(connection: AsyncConnection, run_id: UUID, microusd: int) -> None:
    """What the run has cost, as the ledger has it."""
    await connection.execute(
        sa.update(runs).where(runs.c.id == run_id).values(actual_microusd=microusd, revision=_NEXT_REVISION)
    )


async def cancel_open(connection: AsyncConnection, forecast_id: UUID) -> int:
    """Cancel what has not ended. The epoch moves on, so a worker that has one of them writes nothing more."""
    rows = (
        await connection.execute(
            sa.select(runs.c.id, runs.c.status)
            .where(runs.c.forecast_id == forecast_id, runs.c.status.in_(_OPEN))
            .with_for_update()
        )
    ).all()
    for row in rows:
        before = RunStatus(row.status)
        allow(before, RunStatus.CANCELLED)
        epoch = await connection.scalar(
            sa.update(runs)
            .where(runs.c.id == row.id)
            .values(
                status=RunStatus.CANCELLED,
                epoch=runs.c.epoch + 1,
                lease_until=None,
                parked=False,
                finished_at=sa.func.now(),
                revision=_NEXT_REVISION,
            )
            .returning(runs.c.epoch)
        )
        await _record(connection, row.id, before, RunStatus.CANCELLED, epoch or 0, "cancelled on request")
    return len(rows)


async def overdue(connection: AsyncConnection, late_seconds: float) -> Sequence[UUID]:
    """Runs that should have been ticked: due for a while and still queued, or under a lease that has ended."""
    late = later(-late_seconds)
    rows = await connection.execute(
        sa.select(runs.c.id)
        .where(
            runs.c.status.in_(_OPEN),
            sa.or_(
                sa.and_(runs.c.status == RunStatus.QUEUED, runs.c.due_at < late),
                sa.and_(runs.c.status == RunStatus.RUNNING, runs.c.lease_until < sa.func.now()),
                sa.and_(runs.c.parked, runs.c.due_at < late),
            ),
            _NO_TICK_WAITS,
        )
        .order_by(runs.c.due_at)
        .limit(1_000)
    )
    return rows.scalars().all()


def _held(claim: Claim) -> sa.Update:
    return sa.update(runs).where(
        runs.c.id == claim.run_id, runs.c.epoch == claim.epoch, runs.c.status == RunStatus.RUNNING
    )


async def _leave(
    connection: AsyncConnection, claim: Claim, after: RunStatus, detail: str | None, **columns: Any
) -> bool:
    allow(RunStatus.RUNNING, after)
    done = await connection.execute(_held(claim).values(status=after, revision=_NEXT_REVISION, **columns))
    if done.rowcount == 0:
        return False
    await _record(connection, claim.run_id, RunStatus.RUNNING, after, claim.epoch, detail)
    return True


async def _record(
    connection: AsyncConnection,
    run_id: UUID,
    before: RunStatus | None,
    after: RunStatus,
    epoch: int,
    detail: str | None,
) -> None:
    if before is not None:
        allow(before, after)
    await connection.execute(
        sa.insert(run_events).values(run_id=run_id, before=before, after=after, epoch=epoch, detail=detail)
    )


async def _touch_forecast(connection: AsyncConnection, forecast_id: UUID) -> None:
    """A claimed run means a running forecast."""
    await connection.execute(
        sa.update(forecasts)
        .where(forecasts.c.id == forecast_id, forecasts.c.status == "queued")
        .values(status="running", revision=_NEXT_REVISION)
    )

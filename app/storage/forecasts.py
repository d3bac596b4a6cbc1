"""Forecast rows and idempotency keys. Nothing here commits; the caller's transaction does."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.forecast import Forecast, ForecastRequest, ForecastStatus, rank, status_of
from app.domain.run import Run, RunStatus
from app.storage import alerts
from app.storage import runs as stored_runs
from app.storage.tables import forecasts, idempotency_keys, runs

_NEXT_REVISION = sa.text("nextval('revisions')")


def _to_forecast(row: sa.Row[Any], its_runs: tuple[Run, ...]) -> Forecast:
    return Forecast(
        id=row.id,
        request=ForecastRequest.from_json(row.request),
        status=row.status,
        warnings=tuple(row.warnings),
        best_model=row.best_model,
        runs=its_runs,
        revision=row.revision,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )


async def insert(
    connection: AsyncConnection, forecast_id: UUID, request: ForecastRequest, status: str, warnings: Sequence[str]
) -> None:
    await connection.execute(
        sa.insert(forecasts).values(
            id=forecast_id,
            dataset_id=request.dataset_id,
            metric=request.metric,
            request=request.to_json(),
            quantiles=list(request.levels),
            status=status,
            warnings=list(warnings),
        )
    )


async def get(connection: AsyncConnection, forecast_id: UUID) -> Forecast | None:
    row = (await connection.execute(sa.select(forecasts).where(forecasts.c.id == forecast_id))).one_or_none()
    if row is None:
        return None
    return _to_forecast(row, (await stored_runs.of(connection, [forecast_id]))[forecast_id])


async def newest(
    connection: AsyncConnection, *, status: str | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[Forecast]:
    """Newest first; `before` is the (created_at, id) of the last one seen."""
    query = sa.select(forecasts).order_by(forecasts.c.created_at.desc(), forecasts.c.id.desc()).limit(limit)
    if status is not None:
        query = query.where(forecasts.c.status == status)
    if before is not None:
        query = query.where(sa.tuple_(forecasts.c.created_at, forecasts.c.id) < sa.tuple_(*map(sa.literal, before)))
    rows = (await connection.execute(query)).all()
    its_runs = await stored_runs.of(connection, [row.id for row in rows])
    return [_to_forecast(row, its_runs[row.id]) for row in rows]


async def newest_succeeded(connection: AsyncConnection, metric: str | None) -> UUID | None:
    """The forecast that last succeeded, of a metric or of any."""
    query = sa.select(forecasts.c.id).where(forecasts.c.status == ForecastStatus.SUCCEEDED)
    if metric is not None:
        query = query.where(forecasts.c.metric == metric)
    return await connection.scalar(query.order_by(forecasts.c.finished_at.desc(), forecasts.c.id.desc()).limit(1))


async def settle(connection: AsyncConnection, forecast_id: UUID, warnings: Sequence[str] = ()) -> None:
    """After a run's transition, in the same transaction: derive the status; at the end, once, the best model."""
    row = (
        await connection.execute(
            sa.select(forecasts.c.status, forecasts.c.warnings).where(forecasts.c.id == forecast_id).with_for_update()
        )
    ).one_or_none()
    if row is None or row.status in ForecastStatus.TERMINAL:
        return
    its_runs = (await stored_runs.of(connection, [forecast_id]))[forecast_id]
    status = status_of([run.status for run in its_runs])
    values: dict[str, Any] = {"status": status, "revision": _NEXT_REVISION}
    said = [*row.warnings, *(warning for warning in warnings if warning not in row.warnings)]
    if status in ForecastStatus.TERMINAL:
        best = rank(its_runs)
        values |= {"finished_at": sa.func.now(), "best_model": best[0].model if best else None}
        said += [
            f"{run.model} {run.status}: {run.error.detail if run.error else 'see the run'}"
            for run in its_runs
            if run.status in (RunStatus.FAILED, RunStatus.CANCELLED)
        ]
    await connection.execute(sa.update(forecasts).where(forecasts.c.id == forecast_id).values(warnings=said, **values))
    if status == ForecastStatus.SUCCEEDED:
        await alerts.forecast_succeeded(connection, forecast_id)


async def hold(connection: AsyncConnection, forecast_id: UUID) -> Forecast | None:
    """The forecast, which nobody else changes to the end of the transaction."""
    await connection.execute(sa.select(forecasts.c.id).where(forecasts.c.id == forecast_id).with_for_update())
    return await get(connection, forecast_id)


async def settle_again(connection: AsyncConnection, forecast: Forecast, model: str, warnings: Sequence[str]) -> None:
    """After a run of a forecast that is held was brought to success, whether or not the forecast had ended: derive the
    status anew, and say of the model what holds now. A best model that stands stays."""
    its_runs = (await stored_runs.of(connection, [forecast.id]))[forecast.id]
    status = status_of([run.status for run in its_runs])
    others = [said for said in forecast.warnings if not said.startswith((f"{model}: ", f"{model} "))]
    values: dict[str, Any] = {"status": status, "warnings": [*others, *warnings], "revision": _NEXT_REVISION}
    if status in ForecastStatus.TERMINAL:
        values["best_model"] = forecast.best_model or rank(its_runs)[0].model
        if forecast.status != status:
            values["finished_at"] = sa.func.now()
    await connection.execute(sa.update(forecasts).where(forecasts.c.id == forecast.id).values(**values))
    if status == ForecastStatus.SUCCEEDED != forecast.status:
        await alerts.forecast_succeeded(connection, forecast.id)


async def delete(connection: AsyncConnection, forecast_id: UUID) -> bool:
    """Gone with its runs and results, if it has ended; False when it has not (or is not there)."""
    gone = await connection.execute(
        sa.delete(forecasts).where(forecasts.c.id == forecast_id, forecasts.c.status.in_(ForecastStatus.TERMINAL))
    )
    return gone.rowcount == 1


async def open_run_count(connection: AsyncConnection) -> int:
    """Runs that have not ended."""
    return (
        await connection.scalar(
            sa.select(sa.func.count()).select_from(runs).where(runs.c.status.in_(("queued", "running")))
        )
        or 0
    )


async def reserve_key(
    connection: AsyncConnection, owner: str, key: str, body_hash: str, patience_seconds: float
) -> bool:
    """Take an idempotency key; False when it was taken before.

    A twin in flight makes this wait for that twin's transaction; LockTimeout when it takes too long.
    """
    await connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(patience_seconds * 1_000)}"))
    taken = await connection.execute(
        upsert(idempotency_keys)
        .values(owner=owner, key=key, body_hash=body_hash)
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    is_ours = taken.one_or_none() is not None
    await connection.execute(sa.text("SET LOCAL lock_timeout = DEFAULT"))
    return is_ours


async def bind_key(connection: AsyncConnection, owner: str, key: str, forecast_id: UUID) -> None:
    await connection.execute(
        sa.update(idempotency_keys)
        .where(idempotency_keys.c.owner == owner, idempotency_keys.c.key == key)
        .values(forecast_id=forecast_id)
    )


async def key_use(connection: AsyncConnection, owner: str, key: str) -> tuple[str, UUID | None] | None:
    """(body hash, forecast) that a key stands for; the forecast is None when it was deleted since."""
    row = (
        await connection.execute(
            sa.select(idempotency_keys.c.body_hash, idempotency_keys.c.forecast_id).where(
                idempotency_keys.c.owner == owner, idempotency_keys.c.key == key
            )
        )
    ).one_or_none()
    return (row.body_hash, row.forecast_id) if row else None


async def forget_old_keys(connection: AsyncConnection) -> int:
    """Keys outlive their forecast, and 30 days at the least."""
    gone = await connection.execute(
        sa.delete(idempotency_keys).where(
            idempotency_keys.c.forecast_id.is_(None),
            idempotency_keys.c.created_at < sa.func.now() - sa.text("interval '30 days'"),
        )
    )
    return gone.rowcount

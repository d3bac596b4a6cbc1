"""Alert rules, what waits to be judged, and the outbox. Nothing here commits; the caller's transaction does.

What is due is claimed by putting it off (`FOR UPDATE SKIP LOCKED`: two workers take different ones) and counting the
attempt, which fences what is written later. A worker that dies leaves it due again when the claim has run out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.alerts import Rule, Where, condition_from_json, condition_to_json
from app.storage.database import later
from app.storage.tables import alert_deliveries, alert_evaluations, alert_rules, alert_states, datasets, forecasts

DeliveryStatus = Literal["pending", "delivered", "failed"]
Position = tuple[datetime, UUID]
"""(created_at, id) of the last one seen, newest first."""

KEPT_DAYS = 30
"""How long a delivery that has ended can be looked at."""


@dataclass(frozen=True)
class Evaluation:
    """A forecast that succeeded and is to be judged by every rule; its claim is fenced by `attempts`."""

    forecast_id: UUID
    family: UUID
    attempts: int


@dataclass(frozen=True)
class Delivery:
    """What is to be sent for a rule, or was."""

    id: UUID
    rule_id: UUID
    forecast_id: UUID | None
    status: DeliveryStatus
    attempts: int
    last_status: int | None
    last_error: str | None
    due_at: datetime
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Outgoing:
    """A delivery in the hands of this worker, for one attempt."""

    id: UUID
    attempts: int
    body: bytes
    rule: Rule


async def insert_rule(connection: AsyncConnection, rule: Rule) -> datetime:
    """When it was made, by the database's clock."""
    made = await connection.execute(
        sa.insert(alert_rules)
        .values(
            id=rule.id,
            name=rule.name,
            metric=rule.metric,
            where=rule.where.to_json(),
            threshold=rule.threshold,
            model=rule.model,
            condition=condition_to_json(rule.condition),
            only_changes=rule.only_changes,
            url=rule.url,
            secret=rule.secret,
            enabled=rule.enabled,
        )
        .returning(alert_rules.c.created_at)
    )
    created_at: datetime = made.scalar_one()
    return created_at


async def rule(connection: AsyncConnection, rule_id: UUID) -> Rule | None:
    row = (await connection.execute(sa.select(alert_rules).where(alert_rules.c.id == rule_id))).one_or_none()
    return _rule(row) if row else None


async def rules(connection: AsyncConnection, after: Position | None, limit: int) -> list[Rule]:
    """Newest first."""
    query = sa.select(alert_rules).order_by(alert_rules.c.created_at.desc(), alert_rules.c.id.desc()).limit(limit)
    return [_rule(row) for row in await connection.execute(_behind(query, alert_rules, after))]


async def delete_rule(connection: AsyncConnection, rule_id: UUID) -> bool:
    """With all that was or is to be sent for it; whether there was one."""
    gone = await connection.execute(sa.delete(alert_rules).where(alert_rules.c.id == rule_id))
    return gone.rowcount == 1


async def switch(connection: AsyncConnection, rule_id: UUID, enabled: bool, problem: str | None = None) -> Rule | None:
    """On or off. Off, what waits for it has failed."""
    await connection.execute(
        sa.update(alert_rules).where(alert_rules.c.id == rule_id).values(enabled=enabled, problem=problem)
    )
    if not enabled:
        await connection.execute(
            sa.update(alert_deliveries)
            .where(alert_deliveries.c.rule_id == rule_id, alert_deliveries.c.status == "pending")
            .values(status="failed", finished_at=sa.func.now(), last_error=problem or "the rule was switched off")
        )
    return await rule(connection, rule_id)


async def enabled_rules(connection: AsyncConnection, metric: str) -> list[Rule]:
    """Those that are about forecasts of this metric."""
    rows = await connection.execute(
        sa.select(alert_rules)
        .where(alert_rules.c.enabled, sa.or_(alert_rules.c.metric.is_(None), alert_rules.c.metric == metric))
        .order_by(alert_rules.c.created_at, alert_rules.c.id)
    )
    return [_rule(row) for row in rows]


async def note_problem(connection: AsyncConnection, rule_id: UUID, problem: str | None) -> None:
    """What stood in the way of judging an enabled rule on the last forecast; None: nothing did."""
    await connection.execute(
        sa.update(alert_rules)
        .where(alert_rules.c.id == rule_id, alert_rules.c.enabled, alert_rules.c.problem.is_distinct_from(problem))
        .values(problem=problem)
    )


async def forecast_succeeded(connection: AsyncConnection, forecast_id: UUID) -> None:
    """In the transaction in which it does: it is to be judged. A repeat changes nothing."""
    await connection.execute(
        upsert(alert_evaluations)
        .values(forecast_id=forecast_id, family=_family_of(forecast_id).scalar_subquery())
        .on_conflict_do_nothing()
    )


def _family_of(forecast_id: UUID) -> sa.Select[tuple[UUID]]:
    """The first version of the forecast's dataset that there still is."""
    versions = (
        sa.select(datasets.c.id, datasets.c.parent_id)
        .join(forecasts, forecasts.c.dataset_id == datasets.c.id)
        .where(forecasts.c.id == forecast_id)
        .cte("versions", recursive=True)
    )
    versions = versions.union_all(
        sa.select(datasets.c.id, datasets.c.parent_id).join(versions, datasets.c.id == versions.c.parent_id)
    )
    return sa.select(versions.c.id).where(versions.c.parent_id.is_(None))


async def claim_evaluation(connection: AsyncConnection, seconds: float) -> Evaluation | None:
    """The next forecast to judge, ours for so long. Those of one family are judged in the order in which they ended."""
    earlier = alert_evaluations.alias("earlier")
    is_behind = sa.exists().where(
        earlier.c.family == alert_evaluations.c.family, earlier.c.position < alert_evaluations.c.position
    )
    next_one = (
        sa.select(alert_evaluations.c.forecast_id)
        .where(alert_evaluations.c.due_at <= sa.func.now(), ~is_behind)
        .order_by(alert_evaluations.c.position)
        .limit(1)
        .with_for_update(skip_locked=True, of=alert_evaluations)
    )
    row = (
        await connection.execute(
            sa.update(alert_evaluations)
            .where(alert_evaluations.c.forecast_id == next_one.scalar_subquery())
            .values(attempts=alert_evaluations.c.attempts + 1, due_at=later(seconds))
            .returning(alert_evaluations.c.forecast_id, alert_evaluations.c.family, alert_evaluations.c.attempts)
        )
    ).one_or_none()
    return Evaluation(row.forecast_id, row.family, row.attempts) if row else None


async def put_off(connection: AsyncConnection, evaluation: Evaluation, seconds: float) -> None:
    await connection.execute(
        sa.update(alert_evaluations)
        .where(
            alert_evaluations.c.forecast_id == evaluation.forecast_id,
            alert_evaluations.c.attempts == evaluation.attempts,
        )
        .values(due_at=later(seconds))
    )


async def evaluated(connection: AsyncConnection, evaluation: Evaluation) -> bool:
    """It is done with; False when it is no longer the claim's to say."""
    done = await connection.execute(
        sa.delete(alert_evaluations).where(
            alert_evaluations.c.forecast_id == evaluation.forecast_id,
            alert_evaluations.c.attempts == evaluation.attempts,
        )
    )
    return done.rowcount == 1


async def servers_before(connection: AsyncConnection, rule_id: UUID, family: UUID, metric: str) -> dict[str, datetime]:
    """Servers that met the rule in the forecast before, each with the time since which it does."""
    found = await connection.scalar(
        sa.select(alert_states.c.servers).where(
            alert_states.c.rule_id == rule_id, alert_states.c.family == family, alert_states.c.metric == metric
        )
    )
    return {server: datetime.fromisoformat(since) for server, since in (found or {}).items()}


async def keep_servers(
    connection: AsyncConnection,
    rule_id: UUID,
    family: UUID,
    metric: str,
    forecast_id: UUID,
    servers: Mapping[str, datetime],
) -> None:
    values = {"servers": {s: since.isoformat() for s, since in servers.items()}, "forecast_id": forecast_id}
    await connection.execute(
        upsert(alert_states)
        .values(rule_id=rule_id, family=family, metric=metric, **values)
        .on_conflict_do_update(index_elements=["rule_id", "family", "metric"], set_=values)
    )


async def put(
    connection: AsyncConnection, delivery_id: UUID, rule_id: UUID, forecast_id: UUID | None, body: Mapping[str, Any]
) -> None:
    """Into the outbox, once per rule and forecast."""
    await connection.execute(
        upsert(alert_deliveries)
        .values(
            id=delivery_id,
            rule_id=rule_id,
            forecast_id=forecast_id,
            body=json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
            status="pending",
        )
        .on_conflict_do_nothing(index_elements=["rule_id", "forecast_id"])
    )


async def claim_delivery(connection: AsyncConnection, seconds: float) -> Outgoing | None:
    """The next one that is due, ours for so long."""
    next_one = (
        sa.select(alert_deliveries.c.id)
        .where(alert_deliveries.c.status == "pending", alert_deliveries.c.due_at <= sa.func.now())
        .order_by(alert_deliveries.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = (
        await connection.execute(
            sa.update(alert_deliveries)
            .where(alert_deliveries.c.id == next_one.scalar_subquery())
            .values(attempts=alert_deliveries.c.attempts + 1, due_at=later(seconds))
            .returning(
                alert_deliveries.c.id, alert_deliveries.c.attempts, alert_deliveries.c.body, alert_deliveries.c.rule_id
            )
        )
    ).one_or_none()
    if row is None:
        return None
    its_rule = await rule(connection, row.rule_id)
    assert its_rule is not None, "deliveries go with their rule"
    return Outgoing(row.id, row.attempts, row.body.encode(), its_rule)


async def attempted(
    connection: AsyncConnection,
    outgoing: Outgoing,
    status: DeliveryStatus,
    last_status: int | None,
    last_error: str | None,
    again_in: float = 0.0,
) -> bool:
    """What came of the attempt; False when another worker has made a later one."""
    values: dict[str, Any] = {"status": status, "last_status": last_status, "last_error": last_error}
    values |= {"due_at": later(again_in)} if status == "pending" else {"finished_at": sa.func.now()}
    noted = await connection.execute(
        sa.update(alert_deliveries)
        .where(
            alert_deliveries.c.id == outgoing.id,
            alert_deliveries.c.attempts == outgoing.attempts,
            alert_deliveries.c.status == "pending",
        )
        .values(**values)
    )
    return noted.rowcount == 1


async def delivery(connection: AsyncConnection, delivery_id: UUID) -> Delivery | None:
    row = (await connection.execute(_deliveries().where(alert_deliveries.c.id == delivery_id))).one_or_none()
    return Delivery(**row._mapping) if row else None


async def deliveries(
    connection: AsyncConnection,
    rule_id: UUID | None,
    status: DeliveryStatus | None,
    after: Position | None,
    limit: int,
) -> list[Delivery]:
    """Newest first."""
    query = _deliveries().order_by(alert_deliveries.c.created_at.desc(), alert_deliveries.c.id.desc()).limit(limit)
    if rule_id is not None:
        query = query.where(alert_deliveries.c.rule_id == rule_id)
    if status is not None:
        query = query.where(alert_deliveries.c.status == status)
    return [Delivery(**row._mapping) for row in await connection.execute(_behind(query, alert_deliveries, after))]


async def forget_old_deliveries(connection: AsyncConnection) -> int:
    old = later(-KEPT_DAYS * 86_400)
    gone = await connection.execute(
        sa.delete(alert_deliveries).where(alert_deliveries.c.finished_at < old, alert_deliveries.c.status != "pending")
    )
    return gone.rowcount


def _deliveries() -> sa.Select[Any]:
    """All but the body."""
    return sa.select(*(alert_deliveries.c[name] for name in Delivery.__dataclass_fields__))


def _behind(query: sa.Select[Any], table: sa.Table, after: Sequence[Any] | None) -> sa.Select[Any]:
    if after is None:
        return query
    return query.where(sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(*map(sa.literal, after)))


def _rule(row: sa.Row[Any]) -> Rule:
    return Rule(
        id=row.id,
        name=row.name,
        metric=row.metric,
        where=Where.from_json(row.where),
        threshold=row.threshold,
        model=row.model,
        condition=condition_from_json(row.condition),
        only_changes=row.only_changes,
        url=row.url,
        secret=row.secret,
        enabled=row.enabled,
        created_at=row.created_at,
        problem=row.problem,
    )

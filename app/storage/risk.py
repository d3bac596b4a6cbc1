"""Where a server's newest forecasts are: the one question of the risk answer that goes across forecasts."""

from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from app.storage.tables import datasets, forecasts, results, runs


@dataclass(frozen=True)
class Newest:
    """The best run of the forecast of a metric that last succeeded and holds the server."""

    metric: str
    forecast_id: UUID


async def newest_of_server(connection: AsyncConnection, server_id: str) -> list[Newest]:
    """One per metric, in order of the metric; empty when no succeeded forecast holds the server."""
    query = (
        sa.select(forecasts.c.metric, forecasts.c.id)
        .ext(distinct_on(forecasts.c.metric))
        .join(runs, sa.and_(runs.c.forecast_id == forecasts.c.id, runs.c.model == forecasts.c.best_model))
        .join(results, results.c.run_id == runs.c.id)
        .where(forecasts.c.status == "succeeded", results.c.server_id == server_id)
        .order_by(forecasts.c.metric, forecasts.c.finished_at.desc(), forecasts.c.id.desc())
    )
    return [Newest(row.metric, row.id) for row in await connection.execute(query)]


async def newest_of_family(connection: AsyncConnection, dataset_id: UUID) -> list[Newest]:
    """The forecast of each metric that last succeeded on any version of a dataset, in order of the metric."""
    first = sa.select(datasets.c.id, datasets.c.parent_id).where(datasets.c.id == dataset_id)
    family = first.cte("family", recursive=True)
    related = sa.or_(datasets.c.parent_id == family.c.id, datasets.c.id == family.c.parent_id)
    family = family.union(sa.select(datasets.c.id, datasets.c.parent_id).join(family, related))
    query = (
        sa.select(forecasts.c.metric, forecasts.c.id)
        .ext(distinct_on(forecasts.c.metric))
        .where(forecasts.c.status == "succeeded", forecasts.c.dataset_id.in_(sa.select(family.c.id)))
        .order_by(forecasts.c.metric, forecasts.c.finished_at.desc(), forecasts.c.id.desc())
    )
    return [Newest(row.metric, row.id) for row in await connection.execute(query)]

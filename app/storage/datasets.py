"""Dataset rows and their servers. Nothing here commits; the caller's transaction does.

The history is not here: it is a Parquet artifact that `location` names.
"""

import json
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg import AsyncConnection as RawConnection
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.dataset import Contents, Dataset, Quality, Server, Unit
from app.domain.panel import Frequency
from app.storage.tables import dataset_servers, datasets, forecasts

_SERVER_COLUMNS = ("dataset_id", "server_id", "first_at", "last_at", "rows", "counts", "maxima", "attributes")
SERVER = tuple(dataset_servers.c[name] for name in _SERVER_COLUMNS[1:])
"""The columns of a Server, in the order of its fields."""
_BY_BYTES = dataset_servers.c.server_id.collate("C")


def _to_dataset(row: sa.Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        parent_id=row.parent_id,
        name=row.name,
        location=row.location,
        sha256=row.sha256,
        contents=Contents(
            rows=row.rows,
            servers=row.servers,
            metrics=tuple(row.metrics),
            units={name: Unit(unit) for name, unit in row.units.items()},
            attributes=tuple(row.attributes),
            known_ahead=tuple(row.known_ahead),
            frequency=Frequency(row.frequency),
            start=row.start,
            end=row.end,
            quality=Quality.from_json(row.quality),
        ),
        created_at=row.created_at,
    )


async def insert(
    connection: AsyncConnection,
    *,
    dataset_id: UUID,
    parent_id: UUID | None,
    name: str,
    location: str,
    sha256: str,
    contents: Contents,
) -> Dataset:
    row = (
        await connection.execute(
            sa.insert(datasets)
            .values(
                id=dataset_id,
                parent_id=parent_id,
                name=name,
                location=location,
                sha256=sha256,
                rows=contents.rows,
                servers=contents.servers,
                metrics=list(contents.metrics),
                units=dict(contents.units),
                attributes=list(contents.attributes),
                known_ahead=list(contents.known_ahead),
                frequency=contents.frequency,
                start=contents.start,
                end=contents.end,
                quality=contents.quality.to_json(),
            )
            .returning(*datasets.c)
        )
    ).one()
    return _to_dataset(row)


async def copy_servers(connection: AsyncConnection, dataset_id: UUID, servers: Iterable[Server]) -> None:
    """By COPY, in the transaction of `connection`: ten thousand servers take a fraction of a second."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, RawConnection)
    statement = f"COPY dataset_servers ({', '.join(_SERVER_COLUMNS)}) FROM STDIN"
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for server in servers:
            await copy.write_row(
                (
                    dataset_id,
                    server.server_id,
                    server.first_at,
                    server.last_at,
                    server.rows,
                    json.dumps(server.counts),
                    json.dumps(server.maxima, allow_nan=False),
                    json.dumps(server.attributes, allow_nan=False),
                )
            )


async def get(connection: AsyncConnection, dataset_id: UUID) -> Dataset | None:
    row = (await connection.execute(sa.select(datasets).where(datasets.c.id == dataset_id))).one_or_none()
    return None if row is None else _to_dataset(row)


async def newest(connection: AsyncConnection, before: tuple[datetime, UUID] | None, limit: int) -> list[Dataset]:
    """Newest first; `before` is the (created_at, id) of the last one seen."""
    query = sa.select(datasets).order_by(datasets.c.created_at.desc(), datasets.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(sa.tuple_(datasets.c.created_at, datasets.c.id) < sa.tuple_(*map(sa.literal, before)))
    return [_to_dataset(row) for row in await connection.execute(query)]


async def servers(connection: AsyncConnection, dataset_id: UUID, only: Collection[str] | None = None) -> list[Server]:
    """The servers of a dataset in the byte order of their ids, as the artifact has them; or only some of them."""
    query = sa.select(*SERVER).where(dataset_servers.c.dataset_id == dataset_id).order_by(_BY_BYTES)
    if only is not None:
        query = query.where(dataset_servers.c.server_id == sa.any_(sa.cast(list(only), sa.ARRAY(sa.Text))))
    return [Server(*row) for row in await connection.execute(query)]


async def named(connection: AsyncConnection, locations: Collection[str]) -> set[str]:
    """Those of the keys that a row names."""
    query = sa.select(datasets.c.location).where(
        datasets.c.location == sa.any_(sa.cast(list(locations), sa.ARRAY(sa.Text)))
    )
    return set(await connection.scalars(query))


async def is_used(connection: AsyncConnection, dataset_id: UUID) -> bool:
    """Whether a forecast was made from it."""
    used = sa.select(sa.exists().where(forecasts.c.dataset_id == dataset_id))
    return bool(await connection.scalar(used))


async def lock(connection: AsyncConnection, dataset_id: UUID) -> Dataset | None:
    """The row, held against a forecast that is being submitted on it, until the transaction ends."""
    query = sa.select(datasets).where(datasets.c.id == dataset_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_dataset(row)


async def delete(connection: AsyncConnection, dataset_id: UUID) -> None:
    """With its servers; versions made from it stay, without a parent."""
    await connection.execute(sa.delete(datasets).where(datasets.c.id == dataset_id))


async def hold(connection: AsyncConnection, dataset_id: UUID) -> Dataset | None:
    """The row, kept from being deleted until the transaction ends; others may hold it too."""
    query = sa.select(datasets).where(datasets.c.id == dataset_id).with_for_update(read=True, key_share=True)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_dataset(row)


async def newest_version(connection: AsyncConnection, dataset_id: UUID) -> Dataset | None:
    """Of the versions made from it, directly or from one another, the one that reaches furthest, of several the newest;
    None when there is none."""
    descent = sa.select(datasets.c.id).where(datasets.c.parent_id == dataset_id).cte("descent", recursive=True)
    children = datasets.alias("children")
    descent = descent.union(sa.select(children.c.id).where(children.c.parent_id == descent.c.id))
    query = sa.select(datasets).where(datasets.c.id.in_(sa.select(descent.c.id)))
    row = (
        await connection.execute(query.order_by(datasets.c.end.desc(), datasets.c.created_at.desc()).limit(1))
    ).one_or_none()
    return None if row is None else _to_dataset(row)

"""Servers of a run: their results beside what is known of them.

It leaves out the layout of either (results.py, datasets.py).
"""

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa

from app.domain.dataset import Server
from app.storage import datasets, results
from app.storage.database import Connection
from app.storage.results import ResultMatrix
from app.storage.tables import dataset_servers
from app.storage.tables import results as stored


async def read(
    connection: Connection, run_id: UUID, dataset_id: UUID, levels: tuple[float, ...], only: Sequence[str] | None = None
) -> tuple[ResultMatrix, tuple[Server, ...]] | None:
    """All servers of a run, or some, in order of their id (byte order); None where none of them has results.

    Some come by one statement. Of rows that were just stored the planner knows too little to join a whole run well.
    """
    if only is None:
        found = await results.some(connection, run_id, levels)
        known = {server.server_id: server for server in await datasets.servers(connection, dataset_id)}
        return None if found is None else (found, tuple(known[name] for name in found.server_ids))
    both = sa.and_(dataset_servers.c.dataset_id == dataset_id, dataset_servers.c.server_id == stored.c.server_id)
    query = results.query(run_id, only).join(dataset_servers, both).add_columns(*datasets.SERVER)
    rows = (await connection.execute(query)).all()
    if not rows:
        return None
    first = len(rows[0]) - len(datasets.SERVER)
    return results.decoded(rows, levels), tuple(Server(*row[first:]) for row in rows)

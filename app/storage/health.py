"""Whether the database answers and holds our tables, and how long its queue is."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.storage.tables import runs

_OPEN = ("queued", "running")


class Vitals:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def database(self) -> None:
        """Raises what SQLAlchemy raises when the database is away or has no tables of ours."""
        async with self._engine.connect() as connection:
            await connection.execute(sa.select(runs.c.id).limit(0))

    async def queue(self) -> None:
        """Raises when the queue's tables cannot be read."""
        async with self._engine.connect() as connection:
            await connection.execute(sa.text("SELECT id FROM procrastinate_jobs LIMIT 0"))

    async def depth(self) -> tuple[Mapping[str, int], float]:
        """Unfinished runs by status, and for how many seconds the longest waiting one has been due."""
        overdue = sa.func.extract("epoch", sa.func.now() - sa.func.min(runs.c.due_at))
        select = (
            sa.select(runs.c.status, sa.func.count(), overdue).where(runs.c.status.in_(_OPEN)).group_by(runs.c.status)
        )
        async with self._engine.connect() as connection:
            found = (await connection.execute(select)).all()
        waits = [float(wait) for status, _, wait in found if status == "queued"]
        return dict.fromkeys(_OPEN, 0) | {status: count for status, count, _ in found}, max(0.0, *waits, 0.0)

"""The queue: Procrastinate on the same PostgreSQL. It carries only `tick(run_id)`, deferred in the caller's
transaction; state, attempts and due times live in the run's own row, so a lost or doubled tick is harmless.
"""

from uuid import UUID

import procrastinate
import psycopg
from procrastinate.types import JSONDict
from sqlalchemy.ext.asyncio import AsyncConnection

TICK = "tick"


def application(url: str) -> procrastinate.App:
    """Procrastinate on a small pool of its own, for the worker's fetching and listening."""
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=4)
    return procrastinate.App(connector=connector)


class Queue:
    def __init__(self, app: procrastinate.App) -> None:
        self.app = app

    async def defer(self, connection: AsyncConnection, *run_ids: UUID, in_seconds: float = 0) -> None:
        """One tick per run, seen by workers when the caller's transaction commits."""
        raw = (await connection.get_raw_connection()).driver_connection
        assert isinstance(raw, psycopg.AsyncConnection)
        schedule = {"schedule_in": {"seconds": in_seconds}} if in_seconds else {}
        task = self.app.configure_task(TICK, connection=raw, **schedule)  # type: ignore[arg-type]
        arguments: list[JSONDict] = [{"run_id": str(run_id)} for run_id in run_ids]
        if arguments:
            await task.batch_defer_async(*arguments)

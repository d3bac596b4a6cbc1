"""The connection to PostgreSQL, and the one place that knows which driver speaks to it."""

import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.storage.migrate import sqlalchemy_url

Connection = AsyncConnection
"""What storage functions take; services pass it on and look no further."""


def later(seconds: float) -> sa.ColumnElement[datetime]:
    """So long from now, or ago, by the database's clock."""
    at: sa.ColumnElement[datetime] = sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return at


class LockTimeout(Exception):
    """Another transaction held what this one wanted for longer than it would wait."""


class Database:
    """A pool of connections that speak UTC and drop a dead one before they use it."""

    def __init__(self, url: str, *, size: int = 10) -> None:
        self.url = url
        self.engine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=size,
            max_overflow=size,
            pool_timeout=10,
            json_deserializer=from_json,  # several times as fast as the standard library's
            hide_parameters=True,  # values have no business in an error or a log
            connect_args={"options": "-c timezone=UTC", "connect_timeout": 5},
        )
        sa.event.listen(self.engine.sync_engine, "checkout", _check_open)
        self._reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        """A transaction: committed at the end of the block, rolled back when it raises.

        Raises LockTimeout when a lock takes longer than the block has set as its lock_timeout.
        """
        try:
            async with self.engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise LockTimeout from error
            raise

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """For reading. Each statement stands alone, so none waits for a transaction to begin and to end."""
        async with self._reading.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()


def _check_open(connection: Any, record: sa.pool.ConnectionPoolEntry, proxy: Any) -> None:
    """Raise for a connection that the server ended, so that the pool makes another.

    While it is idle a server has nothing to say but that. To look whether it did costs no round trip, as a ping would.
    """
    driver = record.driver_connection
    assert isinstance(driver, psycopg.AsyncConnection)
    if driver.closed or _has_news(driver.fileno()):
        raise sa.exc.DisconnectionError("the server ended this connection")


def _has_news(socket: int) -> bool:
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))

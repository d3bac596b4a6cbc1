"""Many rows at once: COPY in PostgreSQL's binary format, while the caller's event loop stays free.

It leaves out the layout of the rows, which is their table's.
"""

import asyncio
from collections.abc import Iterator, Sequence

import psycopg

from app.storage.database import Connection

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = (-1).to_bytes(2, "big", signed=True)


async def copy(connection: Connection, table: str, columns: Sequence[str], blocks: Iterator[bytes]) -> None:
    """Blocks of whole rows, in the caller's transaction: one is made in a thread while that before it is sent."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
    async with raw.cursor() as cursor, cursor.copy(statement) as copying:
        await copying.write(HEADER)
        block = await asyncio.to_thread(next, blocks, TRAILER)
        while block is not TRAILER:
            block, _ = await asyncio.gather(asyncio.to_thread(next, blocks, TRAILER), copying.write(block))
        await copying.write(TRAILER)

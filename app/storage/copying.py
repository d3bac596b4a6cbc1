"""Many rows at once: COPY in PostgreSQL's binary format, while the caller's event loop stays free.

Columns are encoded for all rows together, then cut into rows. It leaves out which columns a table has.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from app.domain.panel import Times
from app.storage.database import Connection

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = (-1).to_bytes(2, "big", signed=True)

Bytes = NDArray[np.uint8]

_EPOCH = np.datetime64("2000-01-01", "us")  # PostgreSQL counts microseconds from here


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


@dataclass(frozen=True, eq=False)
class Field:
    """A column on its way: uint8 (rows, width), of which each row counts `sizes` bytes; -1 is NULL, as NaN and NaT."""

    payload: Bytes
    sizes: NDArray[np.int64]

    @classmethod
    def same(cls, value: bytes, rows: int) -> "Field":
        payload = np.frombuffer(value, np.uint8)
        return cls(np.broadcast_to(payload, (rows, len(value))), np.full(rows, len(value)))

    @classmethod
    def texts(cls, values: Sequence[str | None]) -> "Field":
        encoded = [b"" if value is None else value.encode() for value in values]
        sizes = [-1 if value is None else len(raw) for value, raw in zip(values, encoded, strict=True)]
        return cls(np.array(encoded, np.bytes_).view(np.uint8).reshape(len(encoded), -1), np.array(sizes))

    @classmethod
    def floats(cls, values: NDArray[np.floating[Any]]) -> "Field":
        """In the precision that they have: `real` or `double precision`."""
        width = values.dtype.itemsize
        return cls(_big_endian(values, f">f{width}"), np.where(np.isnan(values), -1, width))

    @classmethod
    def times(cls, values: Times) -> "Field":
        since = (values.astype("datetime64[us]") - _EPOCH).astype(np.int64)
        return cls(_big_endian(since, ">i8"), np.where(np.isnat(values), -1, 8))

    @classmethod
    def integers(cls, values: NDArray[np.intp]) -> "Field":
        return cls(_big_endian(values, ">i4"), np.full(len(values), 4))


def rows_of(*fields: Field, columns: int) -> list[bytes]:
    """The start of each row of so many columns, up to the last of these.

    Built as a table of bytes as wide as the widest values; then what is no value's is left out.
    """
    rows = len(fields[0].sizes)
    parts = [np.broadcast_to(np.frombuffer(columns.to_bytes(2, "big"), np.uint8), (rows, 2))]
    counts = [np.ones((rows, 2), np.bool_)]
    for field in fields:
        parts += [_big_endian(field.sizes, ">i4"), field.payload]
        counts += [np.ones((rows, 4), np.bool_), np.arange(field.payload.shape[1]) < field.sizes[:, None]]
    counted = np.concatenate(counts, axis=1)
    whole = np.concatenate(parts, axis=1)[counted].tobytes()
    ends = np.cumsum(counted.sum(axis=1)).tolist()
    return [whole[start:end] for start, end in pairwise([0, *ends])]


def _big_endian(values: NDArray[Any], kind: str) -> Bytes:
    return values.astype(kind).view(np.uint8).reshape(len(values), -1)

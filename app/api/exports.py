"""Whole selections as files: CSV, Parquet or an Arrow stream, sent as they are made."""

import io
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from anyio.to_thread import run_sync
from fastapi.responses import StreamingResponse

from app.errors import NoResults

Form = Literal["text/csv", "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"]
FORMATS: dict[Form, str] = {
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrows",
}
PIECE = 256 << 10
"""Bytes handed on at a time: a reader who does not take them stops us before the next."""

GUARD = (
    "As CSV, text that begins with `=`, `+`, `-`, `@`, a tab, a carriage return or a NUL (a server named `-web-1`) has"
    " an apostrophe before it, or a spreadsheet would run it as a formula. To join such a file with others by"
    " `server_id`, ask with `raw=true`, or take Parquet, Arrow or JSON: these always carry the bare text."
)
"""What a reader of the file must know."""

_FORMULA = r"^[=+\-@\t\r\x00]"


def wanted(accept: str) -> Form | None:
    """The file form that an Accept header prefers, by its q and then by its order; None for JSON."""
    best: Form | None = None
    highest = 0.0
    for part in accept.lower().split(","):
        media_type, *options = (text.strip() for text in part.split(";"))
        form = next((form for form in FORMATS if form == media_type), None)
        weight = _weight(options)
        if weight > highest and (form or media_type in ("application/json", "*/*", "application/*")):
            best, highest = form, weight
    return best


def _weight(options: Sequence[str]) -> float:
    """Of one media type among those accepted (RFC 9110); 1 where none is given, or none that can be read."""
    given = next((option.removeprefix("q=") for option in options if option.startswith("q=")), "1")
    try:
        return float(given)
    except ValueError:
        return 1.0


async def stream(tables: AsyncIterator[pa.Table], form: Form, name: str, *, raw: bool) -> StreamingResponse:
    """The tables as one file. Raises NoResults when there is nothing, before the first byte is sent."""
    first = await anext(tables, None)
    if first is None:
        raise NoResults("Nothing in this forecast matches the selection.")
    return StreamingResponse(
        _encoded(first, tables, form, raw=raw),
        media_type=form,
        headers={"Content-Disposition": f'attachment; filename="{name}.{FORMATS[form]}"', "Vary": "Accept"},
    )


async def _encoded(first: pa.Table, rest: AsyncIterator[pa.Table], form: Form, *, raw: bool) -> AsyncIterator[bytes]:
    """In threads, so that others are answered meanwhile; not asyncio's own, which a reader who leaves would not stop
    from writing to a file that is being closed."""
    sink = _Sink()

    def shape(table: pa.Table) -> pa.Table:
        return table if form != "text/csv" else _for_csv(table, raw=raw)

    def write(table: pa.Table) -> bytes:
        writer.write_table(shape(table))
        return sink.taken()

    with _writer(sink, shape(first.slice(0, 0)).schema, form) as writer:
        for piece in _pieces(await run_sync(write, first)):
            yield piece
        async for table in rest:
            for piece in _pieces(await run_sync(write, table)):
                yield piece
    for piece in _pieces(sink.taken()):
        yield piece


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE] for start in range(0, len(data), PIECE))


def _writer(
    sink: "_Sink", schema: pa.Schema, form: Form
) -> pyarrow.csv.CSVWriter | pyarrow.parquet.ParquetWriter | pa.RecordBatchStreamWriter:
    match form:
        case "text/csv":
            return pyarrow.csv.CSVWriter(sink, schema)
        case "application/vnd.apache.parquet":
            return pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd")
        case "application/vnd.apache.arrow.stream":
            return pa.ipc.new_stream(sink, schema)


def _for_csv(table: pa.Table, *, raw: bool) -> pa.Table:
    """Times as ISO 8601 with a Z, and text that a spreadsheet would run as a formula quoted with an apostrophe."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
        elif pa.types.is_string(column.type) and not raw:
            column = pc.if_else(
                pc.match_substring_regex(column, _FORMULA), pc.binary_join_element_wise("'", column, ""), column
            )
        columns[name] = column
    return pa.table(columns)


class _Sink(io.RawIOBase):
    """Keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        self._parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)

"""A checked frame as files: the history (Parquet, sorted by server and time) and the facts of each server.

The layout of the history, and reading a panel from it, are in storage/panels.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.dataset import Server
from app.domain.panel import Index
from app.services.ingest.checks import Frame
from app.services.ingest.columns import Words
from app.services.ingest.quality import Metric
from app.storage.panels import ROW_GROUP, SERVER, TIME, Layout, layout_of

_MS = pa.timestamp("ms", "UTC")
_FACTS = pa.schema(
    [
        ("server_id", pa.string()),
        ("first_at", _MS),
        ("last_at", _MS),
        ("rows", pa.int32()),
        ("counts", pa.string()),
        ("maxima", pa.string()),
        ("attributes", pa.string()),
    ]
)


def write_history(frame: Frame, layout: Layout, path: Path) -> None:
    """Row group by row group, so that no second copy of the history is made."""
    names = (*layout.metrics, *layout.known_ahead, *layout.attributes)
    fields = [pa.field(SERVER, pa.string()), pa.field(TIME, _MS)]
    fields += [pa.field(name, pa.float64() if name in frame.numbers else pa.string()) for name in names]
    schema = pa.schema(fields, metadata=layout.footer())
    servers = pa.array(frame.servers, pa.string())
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        for start in range(0, len(frame), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            columns = [
                pa.DictionaryArray.from_arrays(pa.array(frame.server[part]), servers).dictionary_decode(),
                pa.array(frame.times(part)).cast(_MS),
                *(_part(frame, name, part) for name in names),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)


def _part(frame: Frame, name: str, part: slice) -> pa.Array:
    if name in frame.numbers:
        return pa.array(frame.numbers[name][part], from_pandas=True)
    words = frame.texts[name]
    codes = words.codes[part]
    return words.words.take(pa.array(codes, mask=codes < 0))


def read_history(path: Path) -> tuple[Frame, Layout]:
    """What `write_history` wrote."""
    with pq.ParquetFile(path, read_dictionary=[SERVER]) as file:
        layout = layout_of(file)
        table = file.read(columns=[SERVER, TIME, *layout.metrics, *layout.known_ahead])
        texts = pq.ParquetFile(path, read_dictionary=list(layout.attributes)).read(columns=list(layout.attributes))
    ids = Words.of(table.column(SERVER))
    changes = np.flatnonzero(np.diff(ids.codes, prepend=np.int32(-1)))
    lengths = np.diff(np.append(changes, len(ids.codes)))
    seconds = table.column(TIME).to_numpy().astype("datetime64[s]").astype(np.int64)
    step = int(layout.frequency.step.astype(np.int64))
    numbers = {name: table.column(name).to_numpy() for name in (*layout.metrics, *layout.known_ahead)}
    words = {}
    for name in layout.attributes:
        column = texts.column(name)
        if pa.types.is_floating(column.type):
            numbers[name] = column.to_numpy()
        else:
            words[name] = Words.of(column)
    frame = Frame(
        servers=tuple(ids.words.take(pa.array(ids.codes[changes])).to_pylist()),
        server=np.repeat(np.arange(len(changes), dtype=np.int32), lengths),
        step=(seconds // step).astype(np.int32),
        frequency=layout.frequency,
        phase=int(seconds[0] % step),
        numbers=numbers,
        texts=words,
    )
    return frame, layout


def write_facts(
    frame: Frame,
    metrics: dict[str, Metric],
    attributes: dict[str, list[str | float | None]],
    last_row: Index,
    path: Path,
) -> None:
    """One row per server; `attributes` hold each server's last one."""
    starts = frame.starts
    counts = {name: metric.counts.tolist() for name, metric in metrics.items()}
    maxima = {
        name: [None if np.isnan(top) else top for top in metric.maxima.tolist()] for name, metric in metrics.items()
    }
    table = pa.table(
        [
            pa.array(frame.servers, pa.string()),
            pa.array(frame.times(starts)).cast(_MS),
            pa.array(frame.times(last_row)).cast(_MS),
            pa.array(np.diff(np.append(starts, len(frame))).astype(np.int32)),
            *(_as_json(side, len(frame.servers)) for side in (counts, maxima, attributes)),
        ],
        schema=_FACTS,
    )
    pq.write_table(table, path)


def _as_json(
    columns: dict[str, list[int]] | dict[str, list[float | None]] | dict[str, list[str | float | None]], servers: int
) -> pa.Array:
    """Per server an object of what it has."""
    rows = zip(*columns.values(), strict=True) if columns else iter([()] * servers)
    objects = ({name: cell for name, cell in zip(columns, row, strict=True) if cell is not None} for row in rows)
    return pa.array([json.dumps(each, allow_nan=False) for each in objects], pa.string())


def read_facts(path: Path) -> list[Server]:
    table = pq.read_table(path)
    first, last = (
        [datetime.fromtimestamp(seconds, UTC) for seconds in _seconds(table.column(name))]
        for name in ("first_at", "last_at")
    )
    counts, maxima, attributes = (
        [json.loads(text) for text in table.column(name).to_pylist()] for name in ("counts", "maxima", "attributes")
    )
    ids, rows = table.column("server_id").to_pylist(), table.column("rows").to_pylist()
    return [Server(*each) for each in zip(ids, first, last, rows, counts, maxima, attributes, strict=True)]


def _seconds(column: pa.ChunkedArray) -> list[int]:
    seconds: list[int] = column.to_numpy().astype("datetime64[s]").astype(np.int64).tolist()
    return seconds

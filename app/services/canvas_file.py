"""One metric of a dataset as the CSV that the Canvas screens import: id, time, target, then the calendar.

The rows are those that were uploaded: Canvas fills and cuts by the person's own choice. How they are written down is
what a managed run does as well (canvas.staging). For a back-test the last targets of each server are left empty, and
the calendar goes on over them: a model that learns from it has not seen the window that it is scored by.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.canvas.requests import ITEM, TARGET
from app.canvas.requests import TIME as CANVAS_TIME
from app.canvas.staging import encoded
from app.domain import calendar
from app.domain.panel import Frequency
from app.storage.panels import SERVER, TIME, layout_of

ROWS = 2_048
"""Rows handed on at a time: a reader who does not take them stops us before the next."""


def pieces(path: Path, metric: str, country: str, ends: Mapping[str, np.datetime64] | None = None) -> Iterator[bytes]:
    """UTF-8 CSV, some rows at a time, the header before the first. Rows that know nothing but the future are left
    out: their regressors are the calendar's own. Targets of a server behind its end, if it has one, are empty."""
    with pq.ParquetFile(path) as file:
        layout = layout_of(file)
        others = [name for name in layout.metrics if name != metric] if layout.known_ahead else []
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=[SERVER, TIME, metric, *others])
            if layout.known_ahead:
                table = table.filter(_has_any(table, (metric, *others)))
            if ends is not None:
                table = _without_targets(table, metric, ends)
            for start in range(0, max(1, len(table)), ROWS):
                part = _columns(table.slice(start, ROWS), metric, layout.frequency, country)
                yield encoded(part, layout.frequency, header=number == start == 0)


def _without_targets(table: pa.Table, metric: str, ends: Mapping[str, np.datetime64]) -> pa.Table:
    """The table, the metric empty behind each server's end."""
    ids = table.column(SERVER).combine_chunks().dictionary_encode()
    last = np.array([ends[name] for name in ids.dictionary.to_pylist()], "datetime64[s]")[ids.indices.to_numpy()]
    seen = table.column(TIME).to_numpy().astype("datetime64[s]") <= last
    kept = pc.if_else(pa.array(seen), table.column(metric), None)
    return table.set_column(table.schema.get_field_index(metric), metric, kept)


def _has_any(table: pa.Table, names: tuple[str, ...]) -> pa.ChunkedArray:
    found = pc.is_valid(table.column(names[0]))
    for name in names[1:]:
        found = pc.or_(found, pc.is_valid(table.column(name)))
    return found


def _columns(table: pa.Table, metric: str, frequency: Frequency, country: str) -> pa.Table:
    times = table.column(TIME).to_numpy().astype("datetime64[s]")
    distinct, places = np.unique(times, return_inverse=True)
    matrix, names = calendar.features(distinct, frequency, country)
    regressors = {name: matrix[places, column] for column, name in enumerate(names)}
    known = {ITEM: table.column(SERVER), CANVAS_TIME: table.column(TIME), TARGET: table.column(metric)}
    return pa.table(known | regressors)

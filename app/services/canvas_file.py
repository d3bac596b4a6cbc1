"""One metric of a dataset as the CSV that the Canvas screens import: id, time, target, then the calendar.

The rows are those that were uploaded: Canvas fills and cuts by the person's own choice. How they are written down is
what a managed run does as well (canvas.staging).
"""

from collections.abc import Iterator
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


def pieces(path: Path, metric: str, country: str) -> Iterator[bytes]:
    """UTF-8 CSV, some rows at a time, the header before the first. Rows that know nothing but the future are left
    out: their regressors are the calendar's own."""
    with pq.ParquetFile(path) as file:
        layout = layout_of(file)
        others = [name for name in layout.metrics if name != metric] if layout.known_ahead else []
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=[SERVER, TIME, metric, *others])
            if layout.known_ahead:
                table = table.filter(_has_any(table, (metric, *others)))
            for start in range(0, max(1, len(table)), ROWS):
                part = _columns(table.slice(start, ROWS), metric, layout.frequency, country)
                yield encoded(part, layout.frequency, header=number == start == 0)


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

"""One metric of a dataset as the CSV that the Canvas screens import: id, time, target, then the calendar.

Text is as it is, without the quoting of formulas that exports for spreadsheets have: Canvas must get the very ids.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from app.domain import calendar
from app.domain.panel import Frequency
from app.storage.panels import SERVER, TIME, layout_of

_FORMATS = {Frequency.DAILY: "%Y-%m-%d", Frequency.HOURLY: "%Y-%m-%d %H:%M:%S"}


def pieces(path: Path, metric: str, country: str) -> Iterator[bytes]:
    """UTF-8 CSV, a row group at a time, the header with the first. Rows that know nothing but the future are left
    out: their regressors are the calendar's own."""
    with pq.ParquetFile(path) as file:
        layout = layout_of(file)
        others = [name for name in layout.metrics if name != metric] if layout.known_ahead else []
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=[SERVER, TIME, metric, *others])
            if layout.known_ahead:
                table = table.filter(_has_any(table, (metric, *others)))
            yield _piece(table, metric, layout.frequency, country, header=number == 0)


def _has_any(table: pa.Table, names: tuple[str, ...]) -> pa.ChunkedArray:
    found = pc.is_valid(table.column(names[0]))
    for name in names[1:]:
        found = pc.or_(found, pc.is_valid(table.column(name)))
    return found


def _piece(table: pa.Table, metric: str, frequency: Frequency, country: str, *, header: bool) -> bytes:
    times = table.column(TIME).cast(pa.timestamp("s", "UTC"))
    distinct, places = np.unique(times.to_numpy().astype("datetime64[s]"), return_inverse=True)
    matrix, names = calendar.features(distinct, frequency, country)
    regressors = {name: pa.array(_plain(matrix[:, column])).take(pa.array(places)) for column, name in enumerate(names)}
    columns = {
        "item_id": table.column(SERVER),
        "timestamp": pc.strftime(times, _FORMATS[frequency]),
        "target_value": table.column(metric),
        **regressors,
    }
    sink = io.BytesIO()
    options = pacsv.WriteOptions(include_header=header, quoting_style="needed")
    pacsv.write_csv(pa.table(columns), sink, options)
    return sink.getvalue()


def _plain(column: np.ndarray) -> np.ndarray:
    """Whole numbers without a decimal point."""
    whole = column.astype(np.int64)
    return whole if (whole == column).all() else column

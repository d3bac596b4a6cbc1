"""The prepared panel as the CSV files that Canvas learns from: written to a folder, for the caller to upload.

    item_id | timestamp | target_value | end_of_quarter, holiday, weekend | the dataset's known-ahead columns
    web-1     2022-12-30   47.1
    web-1     2022-12-31   46.0            last row of the history
    web-1     2023-01-01   (empty)         … and so on to the end of the horizon, the regressors filled

One row per server and step, without gaps. A file holds whole series and stays under the limit of one transform
request; the servers of a file end on the same step, so that it does not matter whether the service begins a forecast
after the last value of each series or of the file. Text is as it is, without the quoting of formulas that exports for
spreadsheets have: Canvas must get the very ids. It leaves out where the files go (lifecycle).
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from app.canvas.requests import ITEM, TARGET, TIME, regressors
from app.domain import calendar
from app.domain.panel import MIN_VALUES, Array, Frequency, Index, Panel, Times
from app.domain.preparation import OUTLIER_Z, prepare

FILE_BYTES = 95_000_000
"""Most bytes of one file: a transform request ends at 100 MB."""

_BLOCK_ROWS = 100_000
"""Rows that are written at once: bounds the memory beside the panel."""


@dataclass(frozen=True)
class Inputs:
    """What was written. `servers` are those with history enough before the origin, in the order of the panels; the
    forecast of servers[i] begins at `starts`[i], datetime64[s]."""

    files: tuple[Path, ...]
    servers: tuple[str, ...]
    starts: Times
    rows: int
    bytes: int
    filled: int
    capped: int


def write_inputs(
    panels: Panel | Iterable[Panel],
    horizon: int,
    cut_steps: int,
    folder: Path,
    *,
    outlier_z: float = OUTLIER_Z,
    file_bytes: int = FILE_BYTES,
) -> Inputs:
    """Files of the history as it stood `cut_steps` steps before each server's last row, and of the horizon after it.

    The panels, of distinct servers, are taken one at a time, so that a large fleet need never be in memory at once.
    The same panels leave the same files; one that stands in the folder under a name of ours is written over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _Shards(folder, file_bytes)
    servers: list[str] = []
    starts = [np.zeros(0, "datetime64[s]")]
    filled = capped = 0
    for panel in [panels] if isinstance(panels, Panel) else panels:
        past = panel.before(cut_steps)
        prepared, changes = prepare(past.take(np.flatnonzero(past.counts() >= MIN_VALUES)), outlier_z)
        servers += prepared.servers
        starts.append(prepared.as_of + prepared.frequency.step)
        filled, capped = filled + int(changes.filled.sum()), capped + int(changes.capped.sum())
        for end in np.unique(prepared.last):
            _write(prepared.take(np.flatnonzero(prepared.last == end)), horizon, shards)
    return Inputs(
        files=tuple(shards.files),
        servers=tuple(servers),
        starts=np.concatenate(starts),
        rows=shards.rows,
        bytes=sum(file.stat().st_size for file in shards.files),
        filled=filled,
        capped=capped,
    )


def encoded(table: pa.Table, frequency: Frequency, *, header: bool) -> bytes:
    """Rows as Canvas reads them: UTF-8 CSV, `2022-12-31`, hourly `2022-12-31 05:00:00`, nothing for a missing value.

    The column `timestamp` of the table holds timestamps in UTC.
    """
    times = table.column(TIME).cast(pa.timestamp("s"))
    shown = times.cast(pa.date32()) if frequency is Frequency.DAILY else times
    sink = io.BytesIO()
    pacsv.write_csv(
        table.set_column(table.schema.get_field_index(TIME), TIME, shown),
        sink,
        pacsv.WriteOptions(include_header=header, quoting_style="needed"),
    )
    return sink.getvalue()


class _Shards:
    """Files by the step their servers end on, begun anew when full. None is held open: there may be many ends."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._filling: dict[str, tuple[int, int]] = {}
        self.files: list[Path] = []
        self.rows = 0

    def add(self, end: str, table: pa.Table, frequency: Frequency) -> bool:
        """Whole series of some servers; False, and nothing is written, where they are too much for one file."""
        body = encoded(table, frequency, header=False)
        header = encoded(table.slice(0, 0), frequency, header=True)
        if len(header) + len(body) > self._most:
            return False
        number, size = self._filling.get(end, (-1, self._most))
        begins = size + len(body) > self._most
        if begins:
            number, size = number + 1, len(header)
            self.files.append(self._path(end, number))
        with self._path(end, number).open("wb" if begins else "ab") as file:
            file.write(header + body if begins else body)
        self._filling[end] = number, size + len(body)
        self.rows += len(table)
        return True

    def _path(self, end: str, number: int) -> Path:
        return self._folder / f"{end}-{number:03}.csv"


def _write(panel: Panel, horizon: int, shards: _Shards) -> None:
    """Servers that end on the same step."""
    width = int(panel.last[0]) + 1
    panel = replace(panel, values=panel.values[:, :width])
    flags = calendar.events(panel.times_with_future(horizon), panel.country).values()
    events = np.array([flag.astype(np.int64) for flag in flags])
    size = max(_BLOCK_ROWS // (width + horizon), 1)
    for start in range(0, len(panel), size):
        _put(panel.take(np.arange(start, min(start + size, len(panel)))), horizon, events, shards)


def _put(panel: Panel, horizon: int, events: Index, shards: _Shards) -> None:
    """As many servers as one file takes, or half of them and then the others."""
    end = panel.frequency.show(panel.times[-1]).replace(":", "")
    if shards.add(end, _table(panel, horizon, events), panel.frequency):
        return
    if len(panel) == 1:
        raise ValueError(f"the history of server {panel.servers[0]!r} is too long for one file")
    for half in np.array_split(np.arange(len(panel)), 2):
        _put(panel.take(half), horizon, events, shards)


def _table(panel: Panel, horizon: int, events: Index) -> pa.Table:
    """One row per server and step from its first row to the end of the horizon."""
    times = panel.times_with_future(horizon)
    server, step = np.nonzero(np.arange(len(times)) >= panel.first[:, None])
    target = np.pad(panel.values, ((0, 0), (0, horizon)), constant_values=np.nan)[server, step]
    columns = [event[step] for event in events]
    columns += [_held(column, len(times))[server, step] for column in panel.known.values()]
    return pa.table(
        {
            ITEM: pa.array(panel.servers, pa.string()).take(pa.array(server)),
            TIME: pa.array(times[step]),
            TARGET: pa.array(target, from_pandas=True),
        }
        | dict(zip(regressors(tuple(panel.known)), columns, strict=True))
    )


def _held(column: Array, width: int) -> Array:
    """A known-ahead column, to `width` steps and without holes, since a missing regressor would be taken for one of 0:
    each hole holds the value before it, steps before the first value hold the first; 0 where there is none at all."""
    wide = np.full((len(column), width), np.nan)
    wide[:, : column.shape[1]] = column[:, :width]
    known, step = np.isfinite(wide), np.arange(width)
    before = np.maximum.accumulate(np.where(known, step, -1), axis=1)
    place = np.where(before >= 0, before, known.argmax(axis=1)[:, None])
    held: Array = np.nan_to_num(np.take_along_axis(wide, place, axis=1), nan=0.0)
    return held

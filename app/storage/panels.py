"""From the Parquet artifact of a dataset to the dense panel that models see.

The artifact is sorted by server (byte order of the ids) and time, in row groups small enough that a chunk of
servers reads little more than its own; its footer says what each column is. Writing it belongs to the upload.

    server_id | timestamp | metrics… | known-ahead… | attributes…
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.domain.dataset import Unit, bounds
from app.domain.panel import Array, Frequency, Index, Panel
from app.errors import NotFound

SERVER, TIME = "server_id", "timestamp"
ROW_GROUP = 131_072
_FOOTER = b"headroom"


@dataclass(frozen=True)
class Layout:
    """What the columns of an artifact are."""

    frequency: Frequency
    units: dict[str, Unit]
    known_ahead: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.units)

    def footer(self) -> dict[bytes, bytes]:
        said = {
            "frequency": self.frequency,
            "units": self.units,
            "known_ahead": self.known_ahead,
            "attributes": self.attributes,
        }
        return {_FOOTER: json.dumps(said).encode()}


def layout_of(file: pq.ParquetFile) -> Layout:
    said = json.loads(file.schema_arrow.metadata[_FOOTER])
    return Layout(
        frequency=Frequency(said["frequency"]),
        units={name: Unit(unit) for name, unit in said["units"].items()},
        known_ahead=tuple(said["known_ahead"]),
        attributes=tuple(said["attributes"]),
    )


def load_panel(path: Path, metric: str, servers: Sequence[str] | None = None, country: str = "US") -> Panel:
    """One metric of all servers, or of those named, in the byte order of their ids.

    A server's `last` is its last row; where the dataset has known-ahead columns, its last row with a value of any
    metric. Raises NotFound for a metric or a server that the dataset does not have.
    """
    with pq.ParquetFile(path, read_dictionary=[SERVER]) as file:
        layout = layout_of(file)
        if metric not in layout.units:
            raise NotFound(f"This dataset has no metric {metric!r}; it has {', '.join(layout.metrics)}.")
        ahead = layout.known_ahead
        others = [name for name in layout.metrics if name != metric] if ahead else []
        table = file.read_row_groups(
            _row_groups_of(file.metadata, servers), columns=[SERVER, TIME, metric, *others, *ahead]
        )
    ids, codes = _servers_of(table.column(SERVER))
    steps = _steps_of(table.column(TIME), layout.frequency)
    columns = {name: _numbers(table.column(name)) for name in (metric, *others, *ahead)}
    if servers is not None:
        ids, codes, chosen = _only(ids, codes, servers)
        steps, columns = steps[chosen], {name: column[chosen] for name, column in columns.items()}

    start, width = int(steps.min()), int(steps.max() - steps.min()) + 1
    steps -= start
    counted = np.ones(len(codes), dtype=np.bool_)
    if ahead:
        counted = np.logical_or.reduce([np.isfinite(columns[name]) for name in (metric, *others)])
    first, last = _span(codes, steps, counted, len(ids))
    values = _dense(codes, steps, columns[metric], len(ids), width)[:, : int(last.max()) + 1]
    lower, upper = bounds(layout.units[metric], values)
    return Panel(
        servers=tuple(ids),
        start=np.datetime64(0, "s") + start * layout.frequency.step + _phase(table, layout.frequency),
        frequency=layout.frequency,
        values=values,
        first=first,
        last=last,
        lower=lower,
        upper=upper,
        known={name: _dense(codes, steps, columns[name], len(ids), width) for name in ahead},
        country=country,
    )


def _row_groups_of(metadata: pq.FileMetaData, servers: Sequence[str] | None) -> list[int]:
    """Row groups whose range of ids holds one of the servers."""
    every = range(metadata.num_row_groups)
    if servers is None:
        return list(every)
    wanted = sorted(name.encode() for name in servers)
    found = []
    for number in every:
        statistics = metadata.row_group(number).column(0).statistics
        low, high = str(statistics.min).encode(), str(statistics.max).encode()
        place = bisect_left(wanted, low)
        if place < len(wanted) and wanted[place] <= high:
            found.append(number)
    return found


def _servers_of(column: pa.ChunkedArray) -> tuple[list[str], Index]:
    """The ids, and each row's place among them. Rows come sorted by server, so a place grows by ones."""
    if not len(column):
        return [], np.zeros(0, dtype=np.int64)
    merged = column.unify_dictionaries().combine_chunks()
    indices = merged.indices.to_numpy()
    changes = np.flatnonzero(np.diff(indices, prepend=-1))
    ids = merged.dictionary.take(pa.array(indices[changes])).to_pylist()
    lengths = np.diff(np.append(changes, len(indices)))
    return ids, np.repeat(np.arange(len(ids)), lengths)


def _only(ids: list[str], codes: Index, servers: Sequence[str]) -> tuple[list[str], Index, NDArray[np.bool_]]:
    wanted = set(servers)
    unknown = sorted(wanted.difference(ids))
    if unknown:
        raise NotFound(f"This dataset has no server {', '.join(map(repr, unknown[:3]))}.")
    kept = np.array([name in wanted for name in ids])
    chosen = kept[codes]
    return [name for name in ids if name in wanted], (np.cumsum(kept) - 1)[codes[chosen]], chosen


def _steps_of(column: pa.ChunkedArray, frequency: Frequency) -> Index:
    """Whole steps since 1970."""
    seconds: Index = column.to_numpy().astype("datetime64[s]").astype(np.int64)
    return seconds // int(frequency.step.astype(np.int64))


def _phase(table: pa.Table, frequency: Frequency) -> np.timedelta64:
    """How far past the full step all rows stand (hourly data may be taken at half past)."""
    first = table.column(TIME).slice(0, 1).to_numpy().astype("datetime64[s]").astype(np.int64)[0]
    return np.timedelta64(int(first) % int(frequency.step.astype(np.int64)), "s")


def _numbers(column: pa.ChunkedArray) -> Array:
    numbers: Array = column.to_numpy().astype(np.float64, copy=False)
    return numbers


def _span(codes: Index, steps: Index, counted: NDArray[np.bool_], servers: int) -> tuple[Index, Index]:
    """Each server's first step, and its last that is counted (its last at all where none is)."""
    starts = np.searchsorted(codes, np.arange(servers))
    last = np.maximum.reduceat(np.where(counted, steps, -1), starts)
    return steps[starts], np.where(last < 0, np.maximum.reduceat(steps, starts), last)


def _dense(codes: Index, steps: Index, column: Array, servers: int, width: int) -> Array:
    grid = np.full((servers, width), np.nan)
    grid[codes, steps] = column
    return grid

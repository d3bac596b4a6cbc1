"""What Canvas answered, as quantiles: batch-transform output, and the file that a person exported from the screens.

All or nothing: every server with every step of its horizon, once, finite, or BadModelOutput that says what is wrong
and where. How the service writes its files is not documented, so columns are found by name and rows in any order;
further columns, a `mean`, another way to write a date, an id that was taken for a number, and quantiles that cross
are put up with. Values outside a metric's bounds are kept: bounding belongs to the judging of every model.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from app.canvas.requests import ITEM, TIME
from app.domain import quantiles
from app.domain.panel import Frequency, Index, Times
from app.errors import Fatal, Invalid

Values = NDArray[np.float32]
Parse = Callable[[str], np.datetime64 | None]

_ITEMS = (ITEM, "server_id", "unique_id", "item", "server")
_TIMES = (TIME, "date", "ds", "time", "datetime")

_CLOCKS = ("", " %H:%M:%S", " %H:%M")
_CONVENTIONS = tuple(
    tuple(day + clock for day in days for clock in _CLOCKS)
    for days in (("%Y/%m/%d",), ("%m/%d/%Y", "%m/%d/%y"), ("%d/%m/%Y", "%d/%m/%y"), ("%d-%m-%Y", "%d-%m-%y"))
)
"""How the Canvas screens may write a day, beside ISO 8601; a file keeps to one of these."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_QUANTILE = re.compile(r"(?:(?:.*[^a-z0-9])?(?:p|q|quantile)[ _]?)?(\d+(?:\.\d+)?)%?")


class BadModelOutput(Fatal):
    slug, title = "bad-model-output", "The model's output cannot be used"


@dataclass(frozen=True)
class Expected:
    """What must be answered: `horizon` steps of each server from `starts` on, datetime64[s] (servers,)."""

    servers: tuple[str, ...]
    starts: Times
    frequency: Frequency
    horizon: int
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """`values` (servers, horizon, levels), ascending along the levels; `crossed`: (server, step) cells that did not."""

    values: Values
    crossed: int


def read_outputs(files: Iterable[Path], expected: Expected) -> Outcome:
    """The `.out` files of one transform, streamed. Raises BadModelOutput."""
    sheet = _Sheet(expected)
    for file in files:
        names = _header(file)
        item, time = _column((ITEM,), names, file), _column((TIME,), names, file)
        levels = [_column((quantiles.name(level),), names, file) for level in expected.levels]
        sheet.read(file, item, time, levels, _iso)
    return sheet.finished()


def read_by_hand(file: Path, expected: Expected) -> Outcome:
    """A file exported from the Canvas screens, with any of the usual names for its columns. Rows of other servers and
    of other days are left aside. Raises Invalid (`bad-model-output`)."""
    try:
        names = _header(file)
        item, time = _column(_ITEMS, names, file), _column(_TIMES, names, file)
        levels = _level_columns(expected.levels, names, file)
        sheet = _Sheet(expected, lenient=True)
        sheet.read(file, item, time, levels, _days_of(file, time, expected).get)
        return sheet.finished()
    except BadModelOutput as bad:
        raise Invalid(bad.detail, slug=bad.slug) from bad


class _Sheet:
    """Every value that is expected, filled in as rows come by."""

    def __init__(self, expected: Expected, *, lenient: bool = False) -> None:
        self._expected, self._lenient = expected, lenient
        self._places = _Places(expected.servers)
        self._first = _steps(expected.starts, expected.frequency)
        self._values = np.empty((len(expected.servers) * expected.horizon, len(expected.levels)), np.float32)
        self._seen = np.zeros(len(self._values), dtype=np.bool_)

    def read(self, file: Path, item: str, time: str, levels: Sequence[str], parse: Parse) -> None:
        types = {item: pa.string(), time: pa.string()} | dict.fromkeys(levels, pa.float64())
        for batch in _batches(file, types):
            server = self._servers(batch.column(item), file)
            step = self._steps(batch.column(time), parse, file) - self._first[server]
            numbers = np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in levels])
            inside = (server >= 0) & (step >= 0) & (step < self._expected.horizon)
            if not self._lenient and not inside.all():
                odd = int(np.argmin(inside))
                raise BadModelOutput(
                    f"{file.name}: {self._cell(server[odd], step[odd])} is outside the horizon, "
                    f"{self._expected.horizon} steps from {self._shown(server[odd], 0)} on."
                )
            self._fill(server[inside], step[inside], numbers[inside], levels, file)

    def finished(self) -> Outcome:
        servers, horizon = len(self._expected.servers), self._expected.horizon
        answered = self._seen.reshape(servers, horizon).sum(axis=1)
        lacking = np.flatnonzero(answered < horizon)
        if lacking.size:
            first = int(lacking[0])
            raise BadModelOutput(
                f"{lacking.size:,} of {servers:,} servers lack values: {self._expected.servers[first]!r} has "
                f"{answered[first]} of the {horizon} steps from {self._shown(first, 0)} on."
            )
        values, crossed = quantiles.uncross(self._values.reshape(servers, horizon, -1))
        return Outcome(values, crossed)

    def _fill(self, server: Index, step: Index, numbers: NDArray[np.float64], names: Sequence[str], file: Path) -> None:
        cells = server * self._expected.horizon + step
        _, first = np.unique(cells, return_index=True)
        again = self._seen[cells]
        again[np.setdiff1d(np.arange(len(cells)), first)] = True
        if again.any():
            odd = int(np.argmax(again))
            raise BadModelOutput(f"{file.name}: {self._cell(server[odd], step[odd])} is there more than once.")
        with np.errstate(over="ignore"):
            self._values[cells] = numbers
        finite = np.isfinite(self._values[cells])
        if not finite.all():
            odd, column = np.argwhere(~finite)[0]
            what = "missing" if np.isnan(numbers[odd, column]) else "not a finite number"
            raise BadModelOutput(f"{file.name}: {names[column]} of {self._cell(server[odd], step[odd])} is {what}.")
        self._seen[cells] = True

    def _servers(self, column: pa.Array, file: Path) -> Index:
        """Each row's place among the servers, -1 for one that was not asked for."""
        coded = column.dictionary_encode()
        places = np.array([self._places.find(name) for name in coded.dictionary.to_pylist()], dtype=np.int64)
        if not self._lenient and (places < 0).any():
            name = coded.dictionary[int(np.argmin(places))].as_py()
            raise BadModelOutput(f"{file.name}: nothing was asked of a server {name!r}.")
        each: Index = places[coded.indices.to_numpy()]
        return each

    def _steps(self, column: pa.Array, parse: Parse, file: Path) -> Index:
        """Each row's step since 1970."""
        coded = column.dictionary_encode()
        words = coded.dictionary.to_pylist()
        found = [parse(word) for word in words]
        if None in found:
            raise BadModelOutput(f"{file.name}: {words[found.index(None)]!r} is no time that can be read.")
        times = np.array(found, dtype="datetime64[s]")
        each: Index = _steps(times, self._expected.frequency)[coded.indices.to_numpy()]
        return each

    def _cell(self, server: int, step: int) -> str:
        return f"server {self._expected.servers[server]!r} at {self._shown(server, step)}"

    def _shown(self, server: int, step: int) -> str:
        frequency = self._expected.frequency
        return frequency.show(self._expected.starts[server] + step * frequency.step)


class _Places:
    """Servers by their ids. Where an id reads as a number, any other spelling of that number, which no other server's
    id is, will do: on its way through Canvas `0012` may become `12` or `12.0`."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._exact = {name: place for place, name in enumerate(servers)}
        self._numbers: dict[Decimal, int] = {}
        for name, place in self._exact.items():
            if (number := _number(name)) is not None:
                self._numbers[number] = -1 if number in self._numbers else place

    def find(self, name: str) -> int:
        place = self._exact.get(name, self._exact.get(name.strip(), -1))
        if place < 0 and (number := _number(name)) is not None:
            return self._numbers.get(number, -1)
        return place


def _number(name: str) -> Decimal | None:
    stripped = name.strip()
    return Decimal(stripped) if _NUMBER.fullmatch(stripped) else None


def _header(file: Path) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            return next(csv.reader(lines), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadModelOutput(f"{file.name} is no CSV in UTF-8.") from error


def _batches(file: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The columns named, a block of rows at a time."""
    try:
        yield from pacsv.open_csv(
            file,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(column_types=dict(types), include_columns=list(types)),
        )
    except pa.ArrowInvalid as error:
        raise BadModelOutput(f"{file.name}: {error}") from error


def _column(wanted: Sequence[str], names: Sequence[str], file: Path) -> str:
    """The column of the first of some names that the file has, in any case."""
    for name in wanted:
        found = [column for column in names if column.strip().lower() == name]
        if len(found) > 1:
            raise BadModelOutput(f"{file.name} has {len(found)} columns {name!r}.")
        if found:
            return found[0]
    raise BadModelOutput(f"{file.name} has no column {wanted[0]!r}, but {_listed(names)}.")


def _level_columns(levels: Sequence[float], names: Sequence[str], file: Path) -> list[str]:
    """Per level `p10`, or else the one column whose name is it in some other way: `0.1`, `P10`, `q0.1`, `cpu_p10`."""
    found = {quantiles.name(level): _named_as(level, names) for level in levels}
    wrong = [f"no column {name!r}" for name, columns in found.items() if not columns]
    wrong += [f"{len(columns)} columns for {name!r}" for name, columns in found.items() if len(columns) > 1]
    if wrong:
        raise BadModelOutput(f"{file.name} has {', '.join(wrong)} among {_listed(names)}.")
    return [columns[0] for columns in found.values()]


def _named_as(level: float, names: Sequence[str]) -> list[str]:
    exact = [column for column in names if column.strip().lower() == quantiles.name(level)]
    return exact or [column for column in names if _is_level(column, level)]


def _is_level(column: str, level: float) -> bool:
    found = _QUANTILE.fullmatch(column.strip().lower())
    return found is not None and Decimal(found[1]) in (Decimal(str(level)), Decimal(str(level)) * 100)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:12]) + (", …" if len(names) > 12 else "")


def _iso(word: str) -> np.datetime64 | None:
    try:
        return _utc(datetime.fromisoformat(word.strip()))
    except (ValueError, OverflowError):
        return None


def _utc(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time, "s")


def _days_of(file: Path, column: str, expected: Expected) -> dict[str, np.datetime64]:
    """What each time in a file means. Of `01/02/2023` the order of month and day is the one that all times of the file
    fit, or most of them, and under which more of them are times of the forecast."""
    words: set[str] = set()
    for batch in _batches(file, {column: pa.string()}):
        words.update(batch.column(column).unique().to_pylist())
    asked = np.unique(expected.starts)[:, None] + np.arange(expected.horizon) * expected.frequency.step
    wanted = set(_steps(asked.ravel(), expected.frequency).tolist())
    readings = [_reading(words, _iso)]
    readings += [_reading(words, partial(_formed, forms)) for forms in _CONVENTIONS]

    def fit(reading: dict[str, np.datetime64]) -> tuple[int, int]:
        steps = _steps(np.array(list(reading.values()), "datetime64[s]"), expected.frequency)
        return len(reading), len(wanted.intersection(steps.tolist()))

    return max(readings, key=fit)


def _reading(words: Iterable[str], parse: Parse) -> dict[str, np.datetime64]:
    found = {word: parse(word) for word in words}
    return {word: time for word, time in found.items() if time is not None}


def _formed(forms: Sequence[str], word: str) -> np.datetime64 | None:
    for form in forms:
        try:
            return _utc(datetime.strptime(word.strip(), form))
        except ValueError:
            continue
    return None


def _steps(times: Times, frequency: Frequency) -> Index:
    """Whole steps since 1970: hourly data may be taken at half past, and answered on the hour."""
    return times.astype("datetime64[s]").astype(np.int64) // int(frequency.step.astype(np.int64))

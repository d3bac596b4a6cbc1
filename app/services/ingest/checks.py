"""The whole panel at once: ids, times, the step, duplicates, values. It says everything that is wrong in one go.

From raw columns to a checked `Frame`, sorted by server and time. Rows in complaints are those of the file, from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.domain.dataset import NUMERIC_ATTRIBUTES, Schema
from app.domain.panel import Array, Frequency, Index
from app.errors import Complaint
from app.services.ingest import moments
from app.services.ingest.columns import (
    MAX_NAME,
    SHOWN_ROWS,
    Codes,
    Flags,
    Role,
    Words,
    first_rows,
    named_rows,
    quoted,
    refusal,
    settle,
)
from app.services.ingest.moments import Moments

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_HOUR = 3_600 * _SECOND
_MINUTE = 60 * _SECOND
_CONTROL = r"[\x00-\x1f\x7f]"
_MAX_TEXT = 1_000
_LARGEST = 1e30
"""Results are stored in single precision, which ends at 3.4e38; forecasts, and their squares, need room to move."""
_TELLING = 3
"""Gaps of one length that make a rhythm of its own, not a hole in a daily or hourly one."""


@dataclass(frozen=True)
class Frame:
    """Rows of all servers, sorted by server (byte order of the ids) and step, none twice.

    `server` int32 (rows,) points into `servers`; `step` int32 (rows,) counts whole steps since 1970 and `phase` is
    the seconds that every row stands past its step. `numbers` and `texts` are the other columns, in file order.
    """

    servers: tuple[str, ...]
    server: Codes
    step: Codes
    frequency: Frequency
    phase: int
    numbers: dict[str, Array]
    texts: dict[str, Words]

    def __len__(self) -> int:
        return len(self.server)

    @property
    def starts(self) -> Index:
        """The first row of each server."""
        return np.searchsorted(self.server, np.arange(len(self.servers))).astype(np.int64)

    def times(self, rows: Index | slice) -> NDArray[np.datetime64]:
        """Of some rows: datetime64[s], UTC."""
        return (self.step[rows].astype(np.int64) * self.frequency.step.astype(np.int64) + self.phase).astype(
            "datetime64[s]"
        )

    def sorted_by(self, order: Index) -> "Frame":
        """The rows in another order; the old columns go one by one."""
        numbers, texts = dict(self.numbers), dict(self.texts)
        for name in numbers:
            numbers[name] = numbers[name][order]
        for name in texts:
            texts[name] = Words(texts[name].codes[order], texts[name].words)
        return replace(self, server=self.server[order], step=self.step[order], numbers=numbers, texts=texts)


def check(
    columns: dict[str, Array | Words | pa.ChunkedArray],
    roles: dict[str, Role],
    schema: Schema,
    like: Frame | None = None,
) -> Frame:
    """The columns as a frame; `columns` is emptied on the way. `like` is the parent of newer rows.

    Raises Invalid with every complaint.
    """
    server_name, time_name = (
        next(name for name, role in roles.items() if role is wanted) for wanted in (Role.SERVER, Role.TIME)
    )
    ids, written = columns.pop(server_name), columns.pop(time_name)
    if not len(ids.codes if isinstance(ids, Words) else ids):
        raise refusal([Complaint("/file", "no-rows", "The file has a header and no rows.")])
    assert isinstance(ids, Words)
    complaints, nameless = _id_complaints(server_name, ids)
    if isinstance(written, Words):
        times, wrong = moments.from_words(time_name, written)
    else:
        times, wrong = moments.from_arrow(time_name, written)
    complaints += wrong

    numbers: dict[str, Array] = {}
    texts: dict[str, Words] = {}
    for name in list(columns):
        column = columns.pop(name)
        if isinstance(column, Words):
            settled, wrong = settle(name, column, roles[name])
            complaints += wrong
        else:
            settled = column
        if isinstance(settled, Words):
            texts[name] = settled
            complaints += _text_complaints(name, settled)
        else:
            numbers[name] = settled
            complaints += _number_complaints(name, settled)
    described = set(NUMERIC_ATTRIBUTES) - set(schema.units)
    if not set(numbers) - set(schema.known_ahead) - described:
        others = f" Text columns are attributes: {', '.join(map(quoted, texts))}." if texts else ""
        complaints.append(Complaint("/file", "no-metric", f"There is no numeric column to forecast.{others}"))

    times = times.without(nameless)
    lost = len(times.codes) - int(times.known.sum())
    if lost == len(times.codes):
        raise refusal(complaints)
    frequency, phase, step, wrong = _grid(time_name, times, like)
    complaints += wrong
    servers, ranks = _ranked(ids.words)
    if wrong or lost:
        known = np.flatnonzero(times.known)
        server, codes = ranks[ids.codes[known]], times.codes[known]
        exact = (times.wall if frequency is Frequency.DAILY else times.utc)[codes]  # may differ within a step
        complaints += _duplicates(server_name, time_name, servers, server, exact, known)
        if not wrong and not like:
            complaints += _rhythm(time_name, frequency, server, step[known], lost)
        raise refusal(complaints)
    frame = Frame(servers, ranks[ids.codes], step, frequency, phase, numbers, texts)
    del ids, written, times, numbers, texts
    if not _in_order(frame):
        complaints += _duplicates(server_name, time_name, servers, frame.server, frame.step)
        frame = frame.sorted_by(np.lexsort((frame.step, frame.server)))
    if not like:
        complaints += _rhythm(time_name, frame.frequency, frame.server, frame.step)
    if complaints:
        raise refusal(complaints)
    return frame


def repeats(server: Codes, when: Codes | Index) -> tuple[Index, Index]:
    """Rows that repeat the server and time of an earlier row, and that row: (repeats,) each."""
    order = np.lexsort((when, server))
    server, when = server[order], when[order]
    place = np.flatnonzero((server[1:] == server[:-1]) & (when[1:] == when[:-1]))
    return order[place + 1], order[place]


def _id_complaints(name: str, ids: Words) -> tuple[list[Complaint], Flags]:
    """What is wrong with the ids, and the rows that have none."""
    blank = pc.equal(pc.utf8_trim_whitespace(ids.words), "")
    faults: Sequence[tuple[pa.Array, str]] = (
        (blank, "is empty"),
        (pc.greater(pc.utf8_length(ids.words), MAX_NAME), f"is longer than {MAX_NAME} characters"),
        (pc.match_substring_regex(ids.words, _CONTROL), "holds control characters (such as a line break)"),
    )
    complaints = []
    nameless = ids.rows_of(blank.to_numpy(zero_copy_only=False)) | (ids.codes < 0)
    for wrong, what in faults:
        rows = nameless if wrong is blank else ids.rows_of(wrong.to_numpy(zero_copy_only=False))
        if rows.any():
            detail = f"Column {name} {what} in {named_rows(first_rows(rows), int(rows.sum()))}."
            complaints.append(Complaint(f"/file/{name}", "server-id", detail, first_rows(rows)))
    return complaints, nameless


def _text_complaints(name: str, words: Words) -> list[Complaint]:
    wrong = pc.or_(pc.match_substring_regex(words.words, _CONTROL), pc.greater(pc.utf8_length(words.words), _MAX_TEXT))
    rows = words.rows_of(wrong.to_numpy(zero_copy_only=False))
    if not rows.any():
        return []
    where = named_rows(first_rows(rows), int(rows.sum()))
    detail = f"Column {name} holds control characters, or more than {_MAX_TEXT:,} characters, in {where}."
    return [Complaint(f"/file/{name}", "text", detail, first_rows(rows))]


def _number_complaints(name: str, values: Array) -> list[Complaint]:
    complaints = []
    infinite = np.isinf(values)
    if infinite.any():
        where = named_rows(first_rows(infinite), int(infinite.sum()))
        detail = f"Column {name} is infinite, or too large for a number, in {where}. Leave a missing value empty."
        complaints.append(Complaint(f"/file/{name}", "non-finite", detail, first_rows(infinite)))
    large = (np.abs(values) > _LARGEST) & ~infinite
    if large.any():
        where = named_rows(first_rows(large), int(large.sum()))
        detail = f"Column {name} goes beyond {_LARGEST:g} in {where}. Leave it empty, or use a larger unit."
        complaints.append(Complaint(f"/file/{name}", "out-of-range", detail, first_rows(large)))
    if name not in NUMERIC_ATTRIBUTES and np.isnan(values).all():
        detail = f"Column {name} has no value at all; leave it out, or name it in `schema.attributes`."
        complaints.append(Complaint(f"/file/{name}", "no-values", detail))
    return complaints


def _grid(name: str, times: Moments, like: Frame | None) -> tuple[Frequency, int, Codes, list[Complaint]]:
    """The step that all rows stand on: frequency, seconds past the step, step of each row, complaints.

    Daily when most rows are written at one time of day: the date counts, as it was written. Else hourly in UTC,
    when all rows stand equally far past the hour. Rows whose time is not known have no say, and no step that counts.
    """
    usual, off = _usual(times.codes, times.wall % _DAY)
    daily = like.frequency is Frequency.DAILY if like else int(off.sum()) * 2 < int(times.known.sum())
    if daily:
        frequency, phase, step = Frequency.DAILY, 0, times.wall // _DAY
        at = f"daily rows stand at {usual // _HOUR:02}:{usual % _HOUR // _MINUTE:02}"
    else:
        past_hour = times.utc % _HOUR
        usual, off = _usual(times.codes, past_hour)
        if like:
            usual = like.phase * _SECOND
            off = (past_hour != usual)[times.codes] & times.known
        frequency, phase, step = Frequency.HOURLY, usual // _SECOND, times.utc // _HOUR
        at = f"hourly rows stand at {usual // _MINUTE:02} past the hour"
    steps = step.astype(np.int32)[times.codes]
    if not off.any():
        return frequency, phase, steps, []
    detail = (
        f"The step is irregular: {at}, but {named_rows(first_rows(off), int(off.sum()))} of column {name} do not. "
        f"Send one row per day or hour."
    )
    return frequency, phase, steps, [Complaint(f"/file/{name}", "frequency", detail, first_rows(off))]


def _usual(codes: Codes, of_moment: Index) -> tuple[int, Flags]:
    """The value that most rows have, and the rows that have another; a code of -1 has none."""
    values, places = np.unique(of_moment, return_inverse=True)
    counts = np.bincount(places, weights=np.bincount(codes[codes >= 0], minlength=len(of_moment)))
    usual = values[int(counts.argmax())]
    return int(usual), np.append(of_moment != usual, False)[codes]


def _rhythm(name: str, frequency: Frequency, server: Codes, step: Codes, lost: int = 0) -> list[Complaint]:
    """Rows that keep a wider step than a day or an hour: weekly, say, or every six hours. Lone gaps do not.

    Each of the `lost` rows, whose time could not be read, may belong into a gap.
    """
    order = np.lexsort((step, server)) if lost else slice(None)
    between = np.diff(step[order])[np.diff(server[order]) == 0]
    wide = between[between > 1]
    if (len(wide) - lost) * 2 <= len(between):
        return []
    lengths, counts = np.unique(wide, return_counts=True)
    length, often = int(lengths[counts.argmax()]), int(counts.max()) - lost
    if often < _TELLING or often * 2 < len(between):
        return []
    unit = "days" if frequency is Frequency.DAILY else "hours"
    detail = f"Rows of column {name} stand {length} {unit} apart. Headroom takes daily or hourly data."
    return [Complaint(f"/file/{name}", "frequency", detail)]


def _ranked(words: pa.Array) -> tuple[tuple[str, ...], Codes]:
    """The ids in byte order, and the place of each word among them."""
    order = pc.sort_indices(words.cast(pa.binary())).to_numpy()
    ranks = np.empty(len(words), np.int32)
    ranks[order] = np.arange(len(words), dtype=np.int32)
    return tuple(words.take(pa.array(order)).to_pylist()), np.append(ranks, np.int32(-1))


def _in_order(frame: Frame) -> bool:
    """Sorted, and no row twice."""
    server, step = frame.server, frame.step
    further = (server[1:] == server[:-1]) & (step[1:] > step[:-1])
    return bool((further | (server[1:] > server[:-1])).all())


def _duplicates(
    server_name: str,
    time_name: str,
    servers: tuple[str, ...],
    server: Codes,
    when: Codes | Index,
    rows_of: Index | None = None,
) -> list[Complaint]:
    """Of all rows; or of some, `rows_of` the file."""
    again, before = repeats(server, when)
    if not len(again):
        return []
    first = int(again.argmin())
    same = quoted(servers[server[again[first]]])
    if rows_of is not None:
        again, before = rows_of[again], rows_of[before]
    said = "1 row repeats" if len(again) == 1 else f"{len(again):,} rows repeat"
    detail = (
        f"{said} a {server_name} and {time_name}: row {again[first] + 1:,} has {same} at the same time as row "
        f"{before[first] + 1:,}. One row per server and step."
    )
    shown = tuple((np.sort(again)[:SHOWN_ROWS] + 1).tolist())
    return [Complaint(f"/file/{time_name}", "duplicate-timestamp", detail, shown)]

"""Newer rows joined to the panel they continue.

A row that the parent has already, with the same numbers, is let pass once: exports overlap. With other numbers it is
a complaint, since a dataset never changes; so is a new row before the last value that its server has. A row of which
only the known-ahead columns were known is open: its values may come. New servers are welcome, new metrics are not.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from app.domain.panel import Array, Index
from app.errors import Complaint
from app.services.ingest.checks import Frame, repeats
from app.services.ingest.columns import Codes, Flags, Words, quoted, refusal


def join(parent: Frame, newer: Frame, metrics: Sequence[str]) -> tuple[Frame, int]:
    """Parent and newer rows as one frame, and how many rows were there already. `metrics`: the parent's.

    Raises Invalid.
    """
    unknown = sorted(set(newer.numbers) - set(parent.numbers) | (set(newer.texts) & set(parent.numbers)))
    if unknown:
        detail = f"The dataset that this continues has no numeric column {', '.join(map(quoted, unknown))}."
        raise refusal([Complaint("/file", "unknown-column", detail)])
    servers = tuple(sorted({*parent.servers, *newer.servers}, key=str.encode))
    place = {name: number for number, name in enumerate(servers)}
    both = Frame(
        servers=servers,
        server=np.concatenate([_placed(side, place) for side in (parent, newer)]),
        step=np.concatenate([parent.step, newer.step]),
        frequency=parent.frequency,
        phase=parent.phase,
        numbers={name: _joined(values, newer.numbers.get(name), len(newer)) for name, values in parent.numbers.items()},
        texts={
            name: _joined_words(parent.texts.get(name), newer.texts.get(name), len(parent), len(newer))
            for name in dict.fromkeys((*parent.texts, *newer.texts))
        },
    )
    new, old = repeats(both.server, both.step)
    valued: Flags = np.logical_or.reduce([np.isfinite(parent.numbers[name]) for name in metrics])
    open_ = ~valued[old]
    complaints: list[Complaint] = []
    differs = np.zeros(len(new), np.bool_)
    for name in newer.numbers:
        before, after = both.numbers[name][old], both.numbers[name][new]
        silent = np.isnan(before) | np.isnan(after)
        differs |= ~((before == after) | (np.isnan(before) & np.isnan(after)) | (open_ & silent))
    if differs.any():
        where = _named(both, int(new[differs][0]))
        detail = (
            f"{_rows_have(int(differs.sum()))} a server and time that the dataset has already, with other values: "
            f"the first is {where}. Send newer rows only."
        )
        complaints.append(Complaint("/file", "duplicate-timestamp", detail))
    complaints += _older(parent, both, new, valued)
    if complaints:
        raise refusal(complaints)
    filled = _fill(both, new[open_], old[open_])
    order = np.lexsort((both.step, both.server))
    kept = np.ones(len(both), np.bool_)
    kept[new] = False
    return both.sorted_by(order[kept[order]]), len(new) - filled


def _fill(both: Frame, new: Index, old: Index) -> int:
    """Put what the new rows know into the old ones, where these know nothing; how many rows gained by it."""
    gained = np.zeros(len(new), np.bool_)
    for values in both.numbers.values():
        missing = np.isnan(values[old]) & ~np.isnan(values[new])
        values[old[missing]] = values[new[missing]]
        gained |= missing
    for words in both.texts.values():
        missing = (words.codes[old] < 0) & (words.codes[new] >= 0)
        words.codes[old[missing]] = words.codes[new[missing]]
        gained |= missing
    return int(gained.sum())


def _older(parent: Frame, both: Frame, repeated: Index, valued: Flags) -> list[Complaint]:
    """Newer rows, no repeats, before the last value that their server has in the parent: history is closed."""
    last = np.full(len(both.servers), np.iinfo(np.int32).min, np.int32)
    np.maximum.at(last, both.server[: len(parent)][valued], both.step[: len(parent)][valued])
    late = both.step < last[both.server]
    late[: len(parent)] = False
    late[repeated] = False
    if not late.any():
        return []
    servers = np.unique(both.server[late])
    named = ", ".join(quoted(both.servers[place]) for place in servers[:5])
    more = f" and {len(servers) - 5:,} more" if len(servers) > 5 else ""
    detail = (
        f"{_rows_have(int(late.sum()))} a time before the last value that their server has already ({named}{more}): "
        f"the first is {_named(both, int(np.flatnonzero(late)[0]))}. Send newer rows only."
    )
    return [Complaint("/file", "older-rows", detail)]


def _rows_have(count: int) -> str:
    return "1 row has" if count == 1 else f"{count:,} rows have"


def _named(frame: Frame, row: int) -> str:
    time = frame.times(np.array([row]))[0]
    return f"{quoted(frame.servers[frame.server[row]])} at {frame.frequency.show(time)}"


def _placed(side: Frame, place: dict[str, int]) -> Codes:
    return np.array([place[name] for name in side.servers], np.int32)[side.server]


def _joined(values: Array, newer: Array | None, rows: int) -> Array:
    return np.concatenate([values, np.full(rows, np.nan) if newer is None else newer])


def _joined_words(old: Words | None, new: Words | None, old_rows: int, new_rows: int) -> Words:
    sides = [
        side or Words(np.full(rows, -1, np.int32), pa.array([], pa.string()))
        for side, rows in ((old, old_rows), (new, new_rows))
    ]
    return Words.of(
        pa.chunked_array(
            [pa.DictionaryArray.from_arrays(pa.array(side.codes, mask=side.codes < 0), side.words) for side in sides]
        )
    )

"""Newer rows joined to the panel they continue.

A row that the parent has already, with the same numbers, is let pass once: exports overlap. With other numbers it is
a complaint, since a dataset never changes. New servers are welcome, new metrics are not.
"""

import numpy as np
import pyarrow as pa

from app.domain.panel import Array
from app.errors import Complaint
from app.services.ingest.checks import Frame, repeats
from app.services.ingest.columns import Codes, Words, quoted, refusal


def join(parent: Frame, newer: Frame) -> tuple[Frame, int]:
    """Parent and newer rows as one frame, and how many rows were there already. Raises Invalid."""
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
    differs = np.zeros(len(new), np.bool_)
    for name in newer.numbers:
        values = both.numbers[name]
        differs |= ~((values[old] == values[new]) | (np.isnan(values[old]) & np.isnan(values[new])))
    if differs.any():
        row = int(new[differs][0])
        where = f"{quoted(servers[both.server[row]])} at {both.times(np.array([row]))[0]}Z"
        detail = (
            f"{int(differs.sum()):,} rows have a server and time that the dataset has already, with other values: "
            f"the first is {where}. Send newer rows only."
        )
        raise refusal([Complaint("/file", "duplicate-timestamp", detail)])
    order = np.lexsort((both.step, both.server))
    kept = np.ones(len(both), np.bool_)
    kept[new] = False
    return both.sorted_by(order[kept[order]]), len(new)


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

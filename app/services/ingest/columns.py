"""Columns as read, before they are judged: numbers, or words that may yet turn out to be numbers.

The readers make them and the checks consume them. A text column is kept as codes into its distinct words, since
ten thousand servers over three years write the same few thousand ids and dates eleven million times.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.domain.dataset import (
    NUMERIC_ATTRIBUTES,
    SERVER_NAMES,
    TEXT_ATTRIBUTES,
    TIME_NAMES,
    Schema,
    first_of,
    sounds_like_percent,
)
from app.domain.panel import Array
from app.errors import Complaint, Invalid, TooLarge

Codes = NDArray[np.int32]
Flags = NDArray[np.bool_]

SHOWN_ROWS = 10
"""Offending rows named per complaint."""
MAX_NAME = 255
MISSING_NUMBERS = ("", "NaN", "nan", "-nan", "NAN", "NA", "N/A", "n/a", "null", "NULL", "Null", "None", "<NA>")
"""What may stand for a missing number in a CSV. Text is taken as it is: NA may well be North America."""

NAMED = frozenset(
    {
        "empty-file",
        "no-rows",
        "unparseable",
        "encoding",
        "non-finite",
        "no-values",
        "duplicate-timestamp",
        "timezone",
        "timestamp-range",
        "frequency",
    }
)
"""Complaints that are a problem type of their own when there is no other kind; the rest are `validation`."""

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_INFINITE = r"^\s*[+-]?(?i:inf|infinity)\s*$"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Role(Enum):
    SERVER = "server"
    TIME = "time"
    NUMBER = "number"
    TEXT = "text"
    UNDECIDED = "undecided"  # settled by what the column holds


@dataclass(frozen=True)
class Words:
    """`codes` int32 (rows,) point into `words`; -1 is a missing cell."""

    codes: Codes
    words: pa.Array

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Words":
        """From a dictionary-encoded column, which is best handed over: the fewer copies live at once, the better."""
        column = column.unify_dictionaries()
        codes = np.empty(len(column), np.int32)
        place = 0
        for chunk in column.chunks:
            indices = chunk.indices.fill_null(-1) if chunk.null_count else chunk.indices
            codes[place : place + len(chunk)] = indices.to_numpy()
            place += len(chunk)
        words = column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string())
        return cls(codes, words.cast(pa.string()))

    def counts(self) -> NDArray[np.int64]:
        """Rows that hold each word."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.words))

    def rows_of(self, chosen: Flags) -> Flags:
        """Rows whose word is chosen (bool per word); a missing cell never is."""
        return np.append(chosen, False)[self.codes]

    def without_empty(self) -> "Words":
        """An empty cell of a text column is a missing one."""
        empty = self.rows_of(_flags(pc.equal(self.words, "")))
        return Words(np.where(empty, np.int32(-1), self.codes), self.words) if empty.any() else self


def roles_of(names: Sequence[str], schema: Schema) -> dict[str, Role]:
    """What each column is for, as far as its name and the schema tell.

    Raises Invalid for names that cannot be told apart or used, missing columns, and a schema that does not fit.
    """
    complaints = [*_name_complaints(names), *_schema_complaints(names, schema)]
    server, time = first_of(SERVER_NAMES, names), first_of(TIME_NAMES, names)
    for found, accepted in ((server, SERVER_NAMES), (time, TIME_NAMES)):
        if found is None:
            detail = f"There is no column {' or '.join(accepted)}; the columns are {_listed(names)}."
            complaints.append(Complaint(f"/file/{accepted[0]}", "missing-column", detail))
        for other in accepted:
            if other in names and other != found and other not in schema.named:
                says = "which server a row is of" if accepted is SERVER_NAMES else "when a row was measured"
                detail = (
                    f"Columns {found} and {other} both say {says}; leave one out, or name {other} in "
                    "`schema.attributes` if it is something else."
                )
                complaints.append(Complaint(f"/file/{other}", "ambiguous-column", detail))
    if complaints:
        raise refusal(complaints)

    def role(name: str) -> Role:
        if name == server:
            return Role.SERVER
        if name == time:
            return Role.TIME
        if name in schema.attributes:
            return Role.NUMBER if name in NUMERIC_ATTRIBUTES else Role.TEXT
        if name in schema.units or name in schema.known_ahead or name in NUMERIC_ATTRIBUTES:
            return Role.NUMBER
        return Role.TEXT if name in TEXT_ATTRIBUTES else Role.UNDECIDED

    return {name: role(name) for name in names}


def too_many_columns(count: int, limit: int) -> TooLarge:
    return TooLarge(f"The file has {count:,} columns; at most {limit:,} are taken. Leave out what is no metric.")


def numbers(words: Words) -> tuple[Array, Flags, Flags]:
    """Words as numbers: float64 (rows,), NaN for missing; and per word, whether it is text, whether it is missing."""
    text = words.words
    missing = _flags(pc.is_in(pc.utf8_trim_whitespace(text), value_set=pa.array(MISSING_NUMBERS)))
    infinite = _flags(pc.match_substring_regex(text, _INFINITE))
    number = _flags(pc.match_substring_regex(text, _NUMBER))
    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"^\+", "")
    values = pc.if_else(pa.array(number), plain, None).cast(pa.float64()).to_numpy(zero_copy_only=False)
    values = np.where(infinite, np.inf, values)
    return np.append(values, np.nan)[words.codes], ~(missing | infinite | number), missing


def settle(name: str, words: Words, role: Role) -> tuple[Array | Words, list[Complaint]]:
    """A column of words as what it is: numbers, or text. Text among numbers is complained of."""
    if role is Role.TEXT:
        return words.without_empty(), []
    values, is_text, is_missing = numbers(words)
    counts = words.counts()
    with_text, with_number = int(counts[is_text].sum()), int(counts[~is_text & ~is_missing].sum())
    if role is Role.UNDECIDED and with_text and not _is_metric(name, with_number, with_text):
        return words.without_empty(), []
    if not with_text:
        return values, []
    rows = words.rows_of(is_text)
    examples = ", ".join(
        f"{quoted(words.words[int(words.codes[row])].as_py())} in row {row + 1:,}" for row in np.flatnonzero(rows)[:3]
    )
    detail = f"Column {name} holds text where numbers belong: {examples} ({with_text:,} in all)."
    hint = " If it describes the server, name it in `schema.attributes`." if role is Role.UNDECIDED else ""
    return values, [Complaint(f"/file/{name}", "text-in-number", detail + hint, first_rows(rows))]


def _is_metric(name: str, with_number: int, with_text: int) -> bool:
    """A stray word does not make a metric an attribute; nor do a few numbers make an attribute a metric."""
    return with_number >= with_text or (with_number > 0 and sounds_like_percent(name))


def first_rows(wrong: Flags) -> tuple[int, ...]:
    """The first rows that are flagged, counted from 1."""
    return tuple((np.flatnonzero(wrong)[:SHOWN_ROWS] + 1).tolist())


def named_rows(rows: Iterable[int], total: int) -> str:
    shown = [f"{row:,}" for row in rows]
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return f"row{'s' if total > 1 else ''} {', '.join(shown)}{more}"


def quoted(text: str) -> str:
    """Text of the file, short and printable, for a message."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def refusal(complaints: Sequence[Complaint]) -> Invalid:
    """All complaints as one error. Its slug is that of the complaints when they agree on one that has a name."""
    codes = {complaint.code for complaint in complaints}
    slug = next(iter(codes)) if len(codes) == 1 and codes <= NAMED else None
    first = complaints[0].detail
    more = f" And {len(complaints) - 1} more complaints: see `errors`." if len(complaints) > 1 else ""
    return Invalid(first + more, errors=complaints, slug=slug)


def _name_complaints(names: Sequence[str]) -> list[Complaint]:
    complaints = []
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    for name in repeated:
        complaints.append(Complaint(f"/file/{name}", "duplicate-column", f"There are two columns {quoted(name)}."))
    for position, name in enumerate(names, 1):
        if not name or len(name) > MAX_NAME or _CONTROL.search(name):
            detail = f"Column {position} is named {quoted(name)}; a name has 1 to {MAX_NAME} printable characters."
            complaints.append(Complaint(f"/file/{position}", "column-name", detail))
    return complaints


def _schema_complaints(names: Sequence[str], schema: Schema) -> list[Complaint]:
    keys = {first_of(SERVER_NAMES, names), first_of(TIME_NAMES, names)}
    complaints = [
        Complaint("/schema", "schema", f"The schema gives column {quoted(name)} two roles; leave one.")
        for name in schema.contradictions()
    ]
    for name in sorted(schema.named):
        if name in keys:
            detail = f"Column {name} says which server or when; the schema cannot make it anything else."
            complaints.append(Complaint("/schema", "schema", detail))
        elif name not in names and name not in schema.optional:
            detail = f"The schema speaks of {quoted(name)}, which is no column; they are {_listed(names)}."
            complaints.append(Complaint("/schema", "schema", detail))
    return complaints


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:10])
    return f"{shown} and {len(names) - 10:,} more" if len(names) > 10 else shown


def _flags(array: pa.Array | pa.ChunkedArray) -> Flags:
    flags: Flags = array.fill_null(False).to_numpy(zero_copy_only=False)
    return flags

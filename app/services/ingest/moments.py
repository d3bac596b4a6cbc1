"""Timestamps as they were written: the wall clock, and the offset from UTC if one was given.

Both are kept because daily data keep the written date, and only hourly data are converted. Each distinct
timestamp is parsed once.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.errors import Complaint
from app.services.ingest.columns import Codes, Flags, Words, first_rows, quoted

Microseconds = NDArray[np.int64]

FIRST_YEAR, LAST_YEAR = 1900, 2199
_EPOCH = datetime(1970, 1, 1)
_FIRST, _END = (
    int((datetime(year, 1, 1) - _EPOCH) / timedelta(microseconds=1)) for year in (FIRST_YEAR, LAST_YEAR + 1)
)
_FORM = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)?\s?(Z|z|[+-]\d\d(?::?\d\d)?)?")
FORMS = "2024-01-31, 2024-01-31 13:00:00 or 2024-01-31T13:00:00Z (or +01:00)"


@dataclass(frozen=True)
class Moments:
    """`codes` int32 (rows,) point into distinct moments: `wall` and `offset` in microseconds, `aware` of a zone.

    -1 is a row whose time has been complained of: it says nothing of the other rows.
    """

    codes: Codes
    wall: Microseconds
    offset: Microseconds
    aware: Flags

    @property
    def utc(self) -> Microseconds:
        """Of each distinct moment; a naive one is UTC."""
        return self.wall - self.offset

    @property
    def known(self) -> Flags:
        """Rows whose time is known."""
        return self.codes >= 0

    def without(self, rows: Flags) -> "Moments":
        """The same, but for some rows whose time is not known after all."""
        return replace(self, codes=np.where(rows, np.int32(-1), self.codes)) if rows.any() else self


def from_words(name: str, words: Words) -> tuple[Moments, list[Complaint]]:
    """Text timestamps, and the complaints about those that cannot be read, or not with the others."""
    distinct = len(words.words)
    wall, offset = np.zeros(distinct, np.int64), np.zeros(distinct, np.int64)
    aware, unreadable = np.zeros(distinct, np.bool_), np.zeros(distinct, np.bool_)
    for place, text in enumerate(words.words.to_pylist()):
        form = _FORM.fullmatch(text.strip())
        try:
            moment = datetime.fromisoformat(text.strip().replace("z", "Z").replace(" Z", "Z")) if form else None
        except ValueError:
            moment = None
        if moment is None:
            unreadable[place] = True
            continue
        wall[place] = (moment.replace(tzinfo=None) - _EPOCH) // timedelta(microseconds=1)
        if (shift := moment.utcoffset()) is not None:
            offset[place], aware[place] = shift // timedelta(microseconds=1), True

    complaints = []
    wrong = words.rows_of(unreadable) | (words.codes < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        code = int(words.codes[row])
        text = quoted(words.words[code].as_py()) if code >= 0 else "nothing"
        detail = (
            f"Column {name} has {text} in row {row + 1:,}, which is no timestamp ({int(wrong.sum()):,} rows in all). "
            f"Write {FORMS}."
        )
        complaints.append(Complaint(f"/file/{name}", "timestamp", detail, first_rows(wrong)))
    out = (wall < _FIRST) | (wall >= _END)
    if out.any():
        wrong = wrong | words.rows_of(out)
        complaints.append(_out_of_range(name, words.rows_of(out)))
    if (naive := ~aware & ~unreadable).any() and aware.any():
        minority = aware if words.rows_of(aware).sum() <= words.rows_of(naive).sum() else naive
        rows = words.rows_of(minority)
        wrong = wrong | rows
        detail = (
            f"Column {name} mixes timestamps with and without a time zone: {int(rows.sum()):,} of {len(rows):,} rows "
            f"are the other way. Write all with an offset (or Z), or none."
        )
        complaints.append(Complaint(f"/file/{name}", "timezone", detail, first_rows(rows)))
    return Moments(words.codes, wall, offset, aware).without(wrong), complaints


def from_arrow(name: str, column: pa.ChunkedArray) -> tuple[Moments, list[Complaint]]:
    """A Parquet column of dates or timestamps. One with a zone is written in that zone."""
    kind = column.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    distinct = encoded.dictionary
    utc, wall = distinct, distinct
    if zoned:
        wall = pa.compute.local_timestamp(distinct)
        utc = distinct.cast(pa.timestamp(kind.unit if kind.unit != "ns" else "us"))
    wall_us, utc_us = (
        side.to_numpy(zero_copy_only=False).astype("datetime64[us]").astype(np.int64) for side in (wall, utc)
    )
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)

    complaints = []
    wrong = codes < 0
    if wrong.any():
        detail = f"Column {name} is empty in {int(wrong.sum()):,} rows; every row needs its time."
        complaints.append(Complaint(f"/file/{name}", "timestamp", detail, first_rows(wrong)))
    out = (wall_us < _FIRST) | (wall_us >= _END)
    if out.any():
        wrong = wrong | np.append(out, False)[codes]
        complaints.append(_out_of_range(name, np.append(out, False)[codes]))
    return Moments(codes, wall_us, wall_us - utc_us, np.full(len(wall_us), zoned)).without(wrong), complaints


def _out_of_range(name: str, rows: Flags) -> Complaint:
    detail = (
        f"Column {name} leaves the years {FIRST_YEAR} to {LAST_YEAR} in {int(rows.sum()):,} rows. "
        f"A placeholder such as 0001-01-01 or 9999-12-31 is no time of measurement."
    )
    return Complaint(f"/file/{name}", "timestamp-range", detail, first_rows(rows))

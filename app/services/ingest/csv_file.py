"""A CSV, plain or gzipped, as columns.

The fast way reads numbers as numbers, ids and times as dictionaries. Only where that fails is every cell read as a
word; and where that fails too, line by line for what is wrong: encoding, NUL, quotes, the lengths of rows.
It leaves out what the columns mean together (checks).
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
from typing_extensions import Buffer

from app.domain.dataset import Limits, Schema
from app.domain.panel import Array
from app.errors import Complaint, HeadroomError, Invalid, TooLarge
from app.services.ingest.columns import (
    MISSING_NUMBERS,
    SHOWN_ROWS,
    Role,
    Words,
    named_rows,
    numbers,
    quoted,
    refusal,
    roles_of,
    too_many_columns,
)

_BLOCK = 2 << 20
_HEAD = 1 << 20
_CODES = pa.dictionary(pa.int32(), pa.string())
_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BINARY = frozenset(range(32)) - set(b"\0\t\n\r\f")


class Counted(io.RawIOBase):
    """A byte stream that counts what passes: bytes against the limit, rows against theirs, quotes and NULs."""

    def __init__(self, stream: io.BufferedReader | gzip.GzipFile, limits: Limits) -> None:
        self._stream, self._limits = stream, limits
        self._metrics = 1
        self._bytes = self._lines = 0
        self.quotes = 0
        self.has_nul = False

    def expect(self, metrics: int) -> None:
        self._metrics = max(metrics, 1)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._stream.read(size)
        self._bytes += len(chunk)
        self._lines += chunk.count(b"\n")
        self.quotes += chunk.count(b'"')
        self.has_nul = self.has_nul or b"\0" in chunk
        if self._bytes > self._limits.bytes:
            raise TooLarge(f"Unpacked, the file is larger than the limit of {self._limits.bytes >> 20:,} MB.")
        if self._lines * self._metrics > self._limits.cells:
            raise TooLarge(f"The file has more than {self._limits.cells:,} cells (rows x metrics). Send it in parts.")
        return chunk

    def readinto(self, buffer: Buffer, /) -> int:
        """For readers that go by lines."""
        view = memoryview(buffer)
        chunk = self.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)


def read(
    path: Path, *, gzipped: bool, schema: Schema, limits: Limits
) -> tuple[dict[str, Array | Words], dict[str, Role]]:
    """The columns in file order, and what each is for. Raises Invalid with what keeps it from being read, TooLarge."""
    with _opened(path, gzipped, limits) as stream:
        try:
            head = stream.read(_HEAD)
            names = _header(head)
            if len(names) > limits.columns:
                raise too_many_columns(len(names), limits.columns)
            roles = roles_of(names, schema)
        except HeadroomError:
            # A bomb is refused as such, even where what it unpacks to is no CSV anyway.
            while stream.read(_HEAD):
                pass
            raise
    try:
        likely = _likely_numbers(head, names, roles)
        return _columns(path, gzipped, limits, names, likely), roles
    except pa.ArrowInvalid:
        pass  # some number is none, or worse
    try:
        return _columns(path, gzipped, limits, names, ()), roles
    except pa.ArrowInvalid:
        _refuse_bad_bytes(path, gzipped, limits)
        _refuse_ragged_rows(path, gzipped, limits, names)
        detail = f"The file cannot be read as a CSV: a row is longer than {_BLOCK >> 20} MB, or line ends are mixed."
        raise refusal([Complaint("/file", "unparseable", detail)]) from None


@contextmanager
def _opened(path: Path, gzipped: bool, limits: Limits) -> Iterator[Counted]:
    try:
        with path.open("rb") as file:
            if not gzipped:
                yield Counted(file, limits)
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield Counted(unpacked, limits)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        detail = "The gzip file is damaged or ends early. Pack it again, and compare its size with what was sent."
        raise refusal([Complaint("/file", "unparseable", detail)]) from None


def _header(head: bytes) -> list[str]:
    """The column names. Raises Invalid for a file whose beginning is no CSV at all."""
    if not head.strip():
        raise refusal([Complaint("/file", "empty-file", "The file is empty.")])
    even, odd = head[0:2000:2], head[1:2000:2]
    if head.startswith(_UTF16_OR_32) or max(even.count(0) - odd.count(0), odd.count(0) - even.count(0)) > len(odd) / 2:
        raise refusal([Complaint("/file", "encoding", "The file is UTF-16 or UTF-32. Save it as UTF-8.")])
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r").split(b"\r", 1)[0]
    if len(line) == len(head) == _HEAD:
        raise TooLarge(f"The first line is longer than {_HEAD >> 20} MB; it should hold the names of the columns.")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        if _BINARY.intersection(head[:512]):
            raise _unparseable() from None
        raise refusal(
            [Complaint("/file", "encoding", "The first line is not UTF-8. Save the file as UTF-8.")]
        ) from None
    if "\0" in text:
        raise refusal([Complaint("/file", "nul", "The first line holds a NUL byte; a CSV is plain text.")])
    if _BINARY.intersection(line):
        raise _unparseable()
    try:
        names = [name.strip() for name in next(csv.reader([text]), [""])]
    except csv.Error:
        raise _unparseable() from None
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in text), None)):
        detail = f"The columns are set apart by {other!r}; Headroom reads commas."
        raise refusal([Complaint("/file", "delimiter", detail)])
    return names


def _unparseable() -> Invalid:
    detail = "The file is neither a CSV, nor a gzipped CSV, nor Parquet, whatever its name says."
    return refusal([Complaint("/file", "unparseable", detail)])


def _likely_numbers(head: bytes, names: Sequence[str], roles: Mapping[str, Role]) -> list[str]:
    """Columns to be read as numbers: those that must be, and those that are as far as the first rows tell."""
    lines = head[: head.rfind(b"\n") + 1] if len(head) == _HEAD else head
    first = _parse(pa.BufferReader(lines), names, (), block=2 * _HEAD)

    def are_numbers(name: str) -> bool:
        words = Words.of(first.column(name))
        _, is_text, is_missing = numbers(words)
        return not is_text.any() and not is_missing.all()

    certain = [name for name in names if roles[name] is Role.NUMBER]
    return certain + [name for name in names if roles[name] is Role.UNDECIDED and are_numbers(name)]


def _columns(
    path: Path, gzipped: bool, limits: Limits, names: Sequence[str], as_numbers: Sequence[str]
) -> dict[str, Array | Words]:
    with _opened(path, gzipped, limits) as stream:
        stream.expect(len(names) - 2)
        table = _parse(pa.PythonFile(stream, mode="r"), names, as_numbers)
        if stream.has_nul or stream.quotes % 2:
            _refuse_bad_bytes(path, gzipped, limits)
    # One by one, and handed over: a second copy of all of them would be what the upload costs most.
    arrow = dict(zip(names, table.columns, strict=True))
    del table
    return {name: arrow.pop(name).to_numpy() if name in as_numbers else Words.of(arrow.pop(name)) for name in names}


def _parse(source: pa.NativeFile, names: Sequence[str], as_numbers: Sequence[str], block: int = _BLOCK) -> pa.Table:
    return pacsv.read_csv(
        source,
        read_options=pacsv.ReadOptions(column_names=list(names), skip_rows=1, block_size=block),
        convert_options=pacsv.ConvertOptions(
            column_types={name: pa.float64() if name in as_numbers else _CODES for name in names},
            null_values=list(MISSING_NUMBERS),
            strings_can_be_null=False,
        ),
    )


def _refuse_bad_bytes(path: Path, gzipped: bool, limits: Limits) -> None:
    """Raise for what no CSV may hold, with its rows: text that is not UTF-8, NULs, values that span lines."""
    found: dict[str, list[int]] = {"encoding": [], "nul": [], "quote": []}
    totals = dict.fromkeys(found, 0)
    with _opened(path, gzipped, limits) as stream:
        row = -1
        for line in io.BufferedReader(stream, _HEAD):
            if not line.strip():
                continue
            row += 1
            for code, wrong in (
                ("encoding", not _is_utf8(line)),
                ("nul", b"\0" in line),
                ("quote", line.count(b'"') % 2 == 1),
            ):
                if wrong:
                    totals[code] += 1
                    if len(found[code]) < SHOWN_ROWS:
                        found[code].append(row)
    says = {
        "encoding": "The file is not UTF-8 in {}. Save it as UTF-8.",
        "nul": "The file holds NUL bytes in {}; a CSV is plain text.",
        "quote": "A quoted value does not end on its line in {}: a quote is not closed. Values cannot span lines.",
    }
    complaints = [
        Complaint("/file", code, text.format(named_rows(found[code], totals[code])), tuple(found[code]))
        for code, text in says.items()
        if found[code]
    ]
    if complaints:
        raise refusal(complaints)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_ragged_rows(path: Path, gzipped: bool, limits: Limits, names: Sequence[str]) -> None:
    """Raise for rows with too many or too few cells."""
    rows: list[int] = []
    example = ""
    total = 0
    with _opened(path, gzipped, limits) as stream:
        lines = csv.reader(line.decode() for line in io.BufferedReader(stream, _HEAD) if line.strip())
        # The reader gives up at a cell beyond all measure, or a stray CR: then what was found before it is told.
        with suppress(csv.Error):
            next(lines)
            for row, cells in enumerate(lines, 1):
                if len(cells) != len(names):
                    total += 1
                    example = example or f"row {row:,} has {len(cells)}, beginning {quoted(','.join(cells))}"
                    if len(rows) < SHOWN_ROWS:
                        rows.append(row)
    if total:
        detail = f"The header has {len(names)} columns, but {named_rows(rows, total)} not as many: {example}."
        raise refusal([Complaint("/file", "row-length", detail, tuple(rows))])

"""A Parquet file as columns.

Its footer gives the first hints of what it will take, and proves nothing: batches are counted as they come, and the
process that reads has a memory limit. It leaves out what the columns mean together (checks).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.dataset import Limits, Schema
from app.domain.panel import Array
from app.errors import Complaint, TooLarge
from app.services.ingest.columns import Role, Words, refusal, roles_of, too_many_columns

_BATCH = 131_072
_CODES = pa.dictionary(pa.int32(), pa.string())
_PANDAS_INDEX = "__index_level_"


def read(
    path: Path, *, schema: Schema, limits: Limits
) -> tuple[dict[str, Array | Words | pa.ChunkedArray], dict[str, Role]]:
    """The columns in file order, and what each is for; the times stay as Arrow has them, unless they are text.

    Raises Invalid with what keeps it from being read, TooLarge.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            if metadata.num_columns > limits.columns:
                raise too_many_columns(metadata.num_columns, limits.columns)
            names = [name for name in file.schema_arrow.names if not name.startswith(_PANDAS_INDEX)]
            roles = roles_of(names, schema)
            _refuse_types(file.schema_arrow, roles)
            _refuse_size(metadata, len(names) - 2, limits)
            if not metadata.num_rows:
                return {name: np.zeros(0) for name in names}, roles
            return _columns(file, names, roles, limits), roles
    except MemoryError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        encrypted = "crypt" in str(error).lower()
        raise refusal([_encrypted() if encrypted else _damaged()]) from None


def refuse_encrypted() -> None:
    """For a file whose very footer is encrypted."""
    raise refusal([_encrypted()])


def _encrypted() -> Complaint:
    return Complaint("/file", "unsupported-parquet", "The Parquet file is encrypted. Send it without encryption.")


def _damaged() -> Complaint:
    detail = "The Parquet file is damaged or ends early. Write it again, and compare its size with what was sent."
    return Complaint("/file", "unparseable", detail)


def _refuse_types(schema: pa.Schema, roles: dict[str, Role]) -> None:
    complaints = []
    for name, role in roles.items():
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        match role:
            case Role.SERVER:
                fits = text or pa.types.is_integer(kind)
            case Role.TIME:
                fits = text or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
            case Role.NUMBER:
                fits = text or number or pa.types.is_null(kind)
            case Role.TEXT | Role.UNDECIDED:
                fits = text or number or pa.types.is_null(kind) or _is_plain(kind)
        if not fits:
            detail = f"Column {name} is of type {kind}, which Headroom cannot take there; leave it out or convert it."
            complaints.append(Complaint(f"/file/{name}", "unsupported-parquet", detail))
    if complaints:
        raise refusal(complaints)


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _refuse_size(metadata: pq.FileMetaData, metrics: int, limits: Limits) -> None:
    if metadata.num_rows * max(metrics, 1) > limits.cells:
        raise TooLarge(f"The file has more than {limits.cells:,} cells (rows x metrics). Send it in parts.")
    if sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)) > limits.bytes:
        raise _unpacked_too_large(limits)


def _unpacked_too_large(limits: Limits) -> TooLarge:
    return TooLarge(f"Unpacked, the file is larger than the limit of {limits.bytes >> 20:,} MB.")


def _columns(
    file: pq.ParquetFile, names: list[str], roles: dict[str, Role], limits: Limits
) -> dict[str, Array | Words | pa.ChunkedArray]:
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    kinds = {name: _kind(file.schema_arrow.field(name).type, roles[name]) for name in names}
    taken = rows = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=names):
        taken, rows = taken + batch.nbytes, rows + batch.num_rows
        if taken > limits.bytes:
            raise _unpacked_too_large(limits)
        if rows * max(len(names) - 2, 1) > limits.cells:
            raise TooLarge(f"The file has more than {limits.cells:,} cells (rows x metrics). Send it in parts.")
        for name in names:
            parts[name].append(_converted(batch.column(name), kinds[name]))
    columns: dict[str, Array | Words | pa.ChunkedArray] = {}
    for name in names:
        column = pa.chunked_array(parts.pop(name), kinds[name])
        if kinds[name] == _CODES:
            columns[name] = Words.of(column)
        elif roles[name] is Role.TIME:
            columns[name] = column
        else:
            columns[name] = column.to_numpy()
    return columns


def _kind(kind: pa.DataType, role: Role) -> pa.DataType:
    """What a column is converted to: words, numbers, or (times) nothing."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if role is Role.TIME and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return kind
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return pa.float64() if number and role in (Role.NUMBER, Role.UNDECIDED) else _CODES


def _converted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind != _CODES:
        return column.cast(kind, safe=False)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    encoded = column.cast(pa.string()).dictionary_encode()
    encoded.dictionary.validate(full=True)  # a Parquet file may call any bytes text
    return encoded

"""The reference fleet as a table and a file; how it is made is domain/fleet."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from app.domain.fleet import END, SEED, SERVERS, START, make, observe


def generate(servers: int = SERVERS, start: date = START, end: date = END, seed: int = SEED) -> pa.Table:
    """The fleet as a table sorted by server: one row per server and day, all metrics, the attributes.

    `end` is included. Missing values are null; no row is missing. The same arguments give the same fleet.
    Raises ValueError for a fleet without servers or days.
    """
    fleet = make(servers, start, end, seed)
    rows, steps = fleet.shape
    columns: dict[str, pa.Array] = {
        "server_id": _repeated(fleet.servers, steps),
        "timestamp": pa.array(np.tile(fleet.times.astype("datetime64[D]"), rows)),
    }
    for metric, seen in observe(fleet).items():
        columns[metric] = pa.array(seen.values.ravel(), mask=seen.missing.ravel())
    for attribute in ("business_unit", "region", "criticality"):
        columns[attribute] = _repeated(getattr(fleet, attribute), steps)
    return pa.table(columns)


def write(table: pa.Table, path: Path) -> None:
    """Write the table in the form that the name's ending tells: .csv, .csv.gz or .parquet, else ValueError."""
    if path.name.endswith(".parquet"):
        # Without the Arrow schema, so that text comes back as plain text.
        pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)
    elif path.name.endswith(".csv.gz"):
        with pa.CompressedOutputStream(str(path), "gzip") as out:
            pyarrow.csv.write_csv(table, out)
    elif path.name.endswith(".csv"):
        pyarrow.csv.write_csv(table, path)
    else:
        raise ValueError(f"{path.name!r} ends neither in .csv nor in .csv.gz or .parquet")


def _repeated(labels: NDArray[np.str_], steps: int) -> pa.Array:
    """Each label for so many rows, stored once."""
    names, index = np.unique(labels, return_inverse=True)
    return pa.DictionaryArray.from_arrays(np.repeat(index.astype(np.int32), steps), names)

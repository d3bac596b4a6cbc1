"""Files are sent in small pieces, whatever the size of the tables that they are made of."""

import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from app.api import exports
from app.api.exports import FORMATS, PIECE, Form, stream
from app.main import create_app
from app.settings import Settings

ROWS = 40_000


def a_table(number: int) -> pa.Table:
    random = np.random.default_rng(number)
    return pa.table(
        {
            "server_id": pa.array([f"srv-{number}"] * ROWS),
            "timestamp": pa.array(np.arange(ROWS).astype("datetime64[s]")).cast(pa.timestamp("s", "UTC")),
            "p50": random.normal(size=ROWS),
        }
    )


def read(form: Form, data: bytes) -> pa.Table:
    match form:
        case "text/csv":
            return pacsv.read_csv(io.BytesIO(data))
        case "application/vnd.apache.parquet":
            return pq.read_table(io.BytesIO(data))
        case "application/vnd.apache.arrow.stream":
            return pa.ipc.open_stream(data).read_all()


@pytest.mark.parametrize("form", list(FORMATS))
async def test_a_file_comes_in_small_pieces(form: Form) -> None:
    tables = [a_table(0), a_table(1)]

    async def made() -> AsyncIterator[pa.Table]:
        for table in tables:
            yield table

    pieces = [piece async for piece in (await stream(made(), form, "f", raw=False)).body_iterator]
    assert max(map(len, pieces)) <= PIECE
    assert len(pieces) > 2 * len(tables)
    found = read(form, b"".join(pieces))
    assert found.column("server_id").to_pylist() == ["srv-0"] * ROWS + ["srv-1"] * ROWS
    np.testing.assert_array_equal(found.column("p50"), pa.concat_tables(tables).column("p50"))


async def test_only_a_csv_is_guarded_against_spreadsheets() -> None:
    names = ["=cmd()", "+1", "-web-1", "@x", "\tx", "\rx", "\0x", "web-1", "a=b"]

    async def exported(form: Form, *, raw: bool = False) -> list[str]:
        async def made() -> AsyncIterator[pa.Table]:
            yield pa.table({"server_id": names, "p50": np.full(len(names), -1.5)})

        pieces = [piece async for piece in (await stream(made(), form, "f", raw=raw)).body_iterator]
        table = read(form, b"".join(pieces))
        assert table.column("p50").to_pylist() == [-1.5] * len(names)
        return list(table.column("server_id").to_pylist())

    assert await exported("text/csv") == ["'" + name for name in names[:7]] + names[7:]
    assert await exported("text/csv", raw=True) == names
    assert await exported("application/vnd.apache.parquet") == names
    assert await exported("application/vnd.apache.arrow.stream") == names


async def test_the_document_tells_of_the_apostrophe(tmp_path: Path) -> None:
    document = create_app(Settings(data_dir=tmp_path)).openapi()
    told = document["paths"]["/forecasts/{forecast_id}/quantiles"]["get"]["responses"]["200"]["description"]
    for word in ("apostrophe", "`-web-1`", "`raw=true`", "Parquet, Arrow or JSON"):
        assert word in told


async def test_the_event_loop_does_not_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    for_csv = exports._for_csv

    def watched(table: pa.Table, *, raw: bool) -> pa.Table:
        if table.num_rows:  # the header alone is nothing
            threads.add(threading.get_ident())
        return for_csv(table, raw=raw)

    monkeypatch.setattr(exports, "_for_csv", watched)

    async def made() -> AsyncIterator[pa.Table]:
        yield a_table(0)
        yield a_table(1)

    async for _ in (await stream(made(), "text/csv", "f", raw=False)).body_iterator:
        pass
    assert threads
    assert threading.get_ident() not in threads

"""The file for the Canvas screens is made in small pieces, whatever the row groups of the history."""

from pathlib import Path

import pyarrow.csv as pacsv
from pyarrow import BufferReader

from app.domain.dataset import Limits, Schema
from app.services.canvas_file import ROWS, pieces
from app.services.ingest import ingest

LIMITS = Limits(bytes=4 << 20, columns=100, cells=200_000)


def test_it_comes_some_rows_at_a_time(tmp_path: Path) -> None:
    rows = [f"{server},2024-01-{day:02},{day}" for server in range(300) for day in range(1, 21)]
    source, history = tmp_path / "source", tmp_path / "history"
    source.write_text("\n".join(["server_id,timestamp,cpu", *rows]))
    ingest(source, history, tmp_path / "facts", Schema(), LIMITS, None)
    found = list(pieces(history, "cpu", "US"))
    assert [piece.count(b"\n") for piece in found] == [1 + ROWS, ROWS, 6_000 - 2 * ROWS]
    table = pacsv.read_csv(BufferReader(b"".join(found)))
    assert table.column("target_value").to_pylist() == list(range(1, 21)) * 300

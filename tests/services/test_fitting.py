"""What a child process leaves of one fit."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from app.domain.dataset import Limits, Schema, Unit
from app.services import fitting
from app.services.fitting import BadModelOutput, Case, Part, Piece, Source, fit, judge_run
from app.services.ingest import ingest


def history(folder: Path, values: list[float]) -> Path:
    """One daily server `a` with metric `load`."""
    days = np.datetime64("2024-01-01") + np.arange(len(values))
    rows = [f"a,{day},{value!r}" for day, value in zip(days, values, strict=True)]
    source = folder / "source.csv"
    source.write_text("\n".join(["server_id,timestamp,load", *rows]))
    path = folder / "history.parquet"
    ingest(source, path, folder / "facts.parquet", Schema(), Limits(bytes=1 << 20, columns=10, cells=10_000))
    return path


def piece(path: Path, out: Path) -> Piece:
    source = Source(str(path), "load", Unit.ABSOLUTE, "US")
    return Piece("seasonal_naive", 0, source, 0, ("a",), 7, (0.1, 0.5, 0.9), 6.0, str(out))


def test_what_single_precision_cannot_hold_is_no_forecast(tmp_path: Path) -> None:
    path = history(tmp_path, [float(number % 7) for number in range(60)])
    table = pq.read_table(path)
    place = table.schema.get_field_index("load")
    pq.write_table(table.set_column(place, table.schema.field(place), pc.multiply(table.column(place), 1e38)), path)
    out = tmp_path / "out.npy"
    with pytest.raises(BadModelOutput):
        fit(piece(path, out))
    assert not out.exists()


def test_a_glitch_in_the_history_stays_out_of_the_forecast(tmp_path: Path) -> None:
    """Out of the fit, and out of the scale that calibration believes; the scores see it as it was."""
    values = [float(number % 7 + 1) for number in range(120)]
    values[110] = 1e9
    path, parts = history(tmp_path, values), []
    for window in range(3):
        out = tmp_path / f"{window}.npy"
        fit(replace(piece(path, out), model="structural", window=window))
        parts.append(Part("structural", window, 0, 1, str(out)))
    source = piece(path, tmp_path).source
    judged = judge_run(Case("structural", source, ("a",), 7, (0.1, 0.5, 0.9), 2, 2, tuple(parts), 1))
    assert judged.values.max() < 20
    assert judged.scores is not None
    assert judged.scores.mae > 1e6


def test_a_fleet_judged_in_parts_is_judged_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of different lengths, one of them too short for any window."""
    servers = {"a": 90, "b": 60, "c": 16, "d": 75}
    start, rng = np.datetime64("2024-01-01"), np.random.default_rng(3)
    rows = [
        f"{name},{start + day},{value:.3f}"
        for name, days in servers.items()
        for day, value in enumerate(rng.normal(50, 5, days))
    ]
    (tmp_path / "source.csv").write_text("\n".join(["server_id,timestamp,load", *rows]))
    path, parts = tmp_path / "history.parquet", []
    limits = Limits(bytes=1 << 20, columns=10, cells=10_000)
    ingest(tmp_path / "source.csv", path, tmp_path / "facts.parquet", Schema(), limits)
    for window in range(3):
        out = tmp_path / f"{window}.npy"
        fit(replace(piece(path, out), window=window, servers=tuple(servers)))
        parts.append(Part("seasonal_naive", window, 0, 4, str(out)))
    case = Case("seasonal_naive", piece(path, out).source, tuple(servers), 7, (0.1, 0.5, 0.9), 2, 1, tuple(parts), 1)
    whole = judge_run(case)
    monkeypatch.setattr(fitting, "SERVERS_AT_ONCE", 1)
    apart = judge_run(case)
    np.testing.assert_array_equal(apart.values, whole.values)
    np.testing.assert_array_equal(apart.as_of, whole.as_of)
    assert apart.scores is not None
    assert whole.scores is not None
    assert asdict(apart.scores) == pytest.approx(asdict(whole.scores), rel=1e-12)  # sums of other lengths
    for name, scores in whole.per_server.items():
        np.testing.assert_allclose(apart.per_server[name], scores, rtol=1e-12)

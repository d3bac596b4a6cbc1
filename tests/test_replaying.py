"""`headroom replay` from a file to its scores, in processes of its own, without a service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

HEADROOM = Path(sys.executable).with_name("headroom")
DAYS = np.datetime64("2023-01-01") + np.arange(420)


def replay(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without a database, and without a folder for data that it could leave anything in."""
    environment = os.environ | {"HEADROOM_COMPUTE_PROCESSES": "1", "HEADROOM_DATA_DIR": str(tmp_path / "none")}
    ended = subprocess.run([HEADROOM, "replay", *arguments], env=environment, capture_output=True, text=True)
    assert not (tmp_path / "none").exists()
    return ended


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Quiet servers at 50 with a weekly rhythm, and `grows`, which goes over 80 in February 2024."""
    random = np.random.default_rng(1)
    weekly = 3 * np.sin(2 * np.pi * np.arange(len(DAYS)) / 7)
    rows = []
    for name in ("grows", *(f"quiet-{i}" for i in range(9))):
        level = 50.0 + (0.08 * np.arange(len(DAYS)) if name == "grows" else 0.0)
        values = level + weekly + random.normal(0, 1.5, len(DAYS))
        rows.append(pa.table({"server_id": [name] * len(DAYS), "timestamp": DAYS.astype(str), "cpu_p95": values}))
    table = pa.concat_tables(rows)
    marks = np.zeros(len(table))
    marks[len(DAYS) - 20 : len(DAYS)] = 24.0  # of `grows`, its last days
    path = tmp_path / "fleet.parquet"
    pq.write_table(table.append_column("imputed_hours", pa.array(marks)), path)
    return path


def test_a_replay_scores_every_answer_on_what_came(tmp_path: Path, fleet: Path) -> None:
    out = tmp_path / "out"
    asked = [str(fleet), "--metric", "cpu_p95", "--thresholds", "80", "95", "--model", "seasonal_naive"]
    ended = replay(tmp_path, *asked, "--horizon", "28", "--last", "3", "--out", str(out), "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told == json.loads((out / "replay.json").read_text())
    assert told["origins"] == ["2023-10-31", "2023-11-30", "2023-12-31"]
    grown = pq.read_table(fleet)["cpu_p95"].to_numpy()[: len(DAYS)]
    before = [int((origin - DAYS[0]) / np.timedelta64(1, "D")) for origin in np.array(told["origins"], "datetime64[D]")]
    over = sum(int((grown[day - 29 : day + 1] > threshold).any()) for day in before for threshold in (80, 95))
    assert over == 2  # no cases: it had breached within the 30 days before
    for bins in ("reliability", "reliability_tenths"):
        assert told["cases"] == sum(row["cases"] for row in told[bins]) == 60 - over
    assert told["downsizes"]["recommended"] == 0  # at half the size 80 is 40, and all run at 50

    cases = pq.read_table(out / "cases.parquet").to_pylist()
    values = {row["timestamp"]: row["cpu_p95"] for row in pq.read_table(fleet).to_pylist()[: len(DAYS)]}
    for row in cases:
        if row["server"] != "grows":
            assert np.isnan(row["breach"])
            continue
        origin = np.datetime64(row["origin"], "D")
        came = [values[str(origin + day)] for day in range(1, 29)]
        over = [day for day, value in enumerate(came, start=1) if value > row["threshold"]]
        assert (row["breach"] == over[0]) if over else np.isnan(row["breach"])
        assert row["flagged"] or row["told"] < 0.9
    squared = [(row["told"] - np.isfinite(row["breach"])) ** 2 for row in cases]
    assert told["brier"]["headroom"] == pytest.approx(np.mean(squared))


def test_what_is_no_truth_is_no_breach(tmp_path: Path, fleet: Path) -> None:
    asked = [str(fleet), "--metric", "cpu_p95", "--thresholds", "90", "--model", "seasonal_naive", "--json"]
    asked += ["--horizon", "20", "--origins", "2024-02-04"]
    with_all, with_true = (replay(tmp_path, *asked, *more) for more in ([], ["--untrue", "imputed_hours=24"]))
    assert with_all.returncode == with_true.returncode == 0, with_all.stderr + with_true.stderr
    assert json.loads(with_all.stdout)["cases"] == 10
    assert json.loads(with_true.stdout)["cases"] == 9  # nothing true is known of `grows`


def test_what_cannot_be_replayed_is_said(tmp_path: Path, fleet: Path) -> None:
    for asked, said in (
        ([str(fleet), "--metric", "mem"], "no metric 'mem'; it has cpu_p95"),
        ([str(fleet), "--metric", "cpu_p95", "--model", "oracle"], "no model 'oracle'"),
        ([str(fleet), "--metric", "cpu_p95", "--horizon", "1000"], "No end of a month in the file"),
        ([str(fleet), "--metric", "cpu_p95", "--untrue", "imputed_hours"], "a column and a number"),
        ([str(tmp_path / "nofile.csv"), "--metric", "cpu"], "no such file"),
    ):
        ended = replay(tmp_path, *asked)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1

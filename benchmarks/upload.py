"""How an upload of a whole fleet compares with reading and writing the same file: time, and memory of the service.

    python -m benchmarks.upload [--servers 10000] [--days 1096]

A CSV of one metric is written, uploaded to `headroom serve` on an embedded PostgreSQL, and read with
`pyarrow.csv.read_csv` and written as Parquet in a process of its own. It prints the ratio of the two times (the best
of three each, in turns), and by how much the API process and its child grew meanwhile, sampled from /proc by psutil.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from benchmarks.processes import MB, Watch, service

_BASELINE = """
import sys, time
started = time.perf_counter()
import pyarrow.csv, pyarrow.parquet
pyarrow.parquet.write_table(pyarrow.csv.read_csv(sys.argv[1]), sys.argv[2], compression="zstd")
print(time.perf_counter() - started)
"""
_CHUNK = 1 << 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--servers", type=int, default=10_000)
    arguments.add_argument("--days", type=int, default=1_096)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        source = folder / "fleet.csv"
        write_fleet(source, asked.servers, asked.days)
        with service(folder, "serve", HEADROOM_COMPUTE_PROCESSES="1") as tree:
            upload(tree.address, source, limit=20_000)  # the first upload starts the child
            with Watch({"serve": tree.parts["serve"]}) as before:
                pass
            with Watch({"serve": tree.parts["serve"]}) as watch:
                pairs = [
                    (upload(tree.address, source), read_and_write(source, folder / "fleet.parquet")) for _ in range(3)
                ]
        seconds, baseline = (min(times) for times in zip(*pairs, strict=True))
        size = source.stat().st_size / MB
    print(f"file            {size:8.0f} MB, {asked.servers:,} servers x {asked.days:,} days")
    print(f"upload          {seconds:8.2f} s")
    print(f"read and write  {baseline:8.2f} s")
    print(f"ratio           {seconds / baseline:8.2f}")
    grown = {what: (most - before.most[part, what]) / MB for (part, what), most in watch.most.items()}
    print(f"API grew by     {grown['itself']:8.0f} MB")
    print(f"with its child  {grown['together']:8.0f} MB")


def write_fleet(path: Path, servers: int, days: int) -> None:
    random = np.random.default_rng(42)
    dates = np.datetime_as_string(np.datetime64("2022-01-01") + np.arange(days))
    with path.open("w") as file:
        file.write("server_id,timestamp,cpu_p95\n")
        for number in range(servers):
            values = np.clip(45 + 12 * np.sin(np.arange(days) / 58) + 6 * random.standard_normal(days), 0, 100)
            file.writelines(f"SRV-{number:05},{date},{value:.2f}\n" for date, value in zip(dates, values, strict=True))


def upload(address: str, path: Path, limit: int | None = None) -> float:
    """Seconds until the answer; only the first `limit` bytes, up to a whole line."""
    started = time.perf_counter()
    answer = httpx.post(
        f"{address}/datasets", content=pieces(path, limit), headers={"Content-Type": "text/csv"}, timeout=600
    )
    assert answer.status_code == 201, answer.text
    return time.perf_counter() - started


def pieces(path: Path, limit: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        if limit is not None:
            yield file.read(limit).rpartition(b"\n")[0]
            return
        while piece := file.read(_CHUNK):
            yield piece


def read_and_write(source: Path, target: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _BASELINE, str(source), str(target)], capture_output=True, check=True, text=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()

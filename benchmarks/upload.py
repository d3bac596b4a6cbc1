"""How an upload of a whole fleet compares with reading and writing the same file: time, and memory of the service.

    python -m benchmarks.upload [--servers 10000] [--days 1096]

A CSV of one metric is written, uploaded to `headroom serve` on an embedded PostgreSQL, and read with
`pyarrow.csv.read_csv` and written as Parquet in a process of its own. It prints the ratio of the two times (the best
of three each, in turns), and by how much the API process and its child grew meanwhile, sampled from /proc by psutil.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil

from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade

_BASELINE = """
import sys, time
started = time.perf_counter()
import pyarrow.csv, pyarrow.parquet
pyarrow.parquet.write_table(pyarrow.csv.read_csv(sys.argv[1]), sys.argv[2], compression="zstd")
print(time.perf_counter() - started)
"""
_CHUNK = 1 << 20
_MB = 1e6


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
        with EmbeddedPostgres(folder / "postgres") as postgres:
            upgrade(postgres.url)
            with served(postgres.url, folder / "data") as (address, process):
                upload(address, source, limit=20_000)  # the first upload starts the child
                before = memory(process)
                with Watch(process) as watch:
                    pairs = [
                        (upload(address, source), read_and_write(source, folder / "fleet.parquet")) for _ in range(3)
                    ]
        seconds, baseline = (min(times) for times in zip(*pairs, strict=True))
        size = source.stat().st_size / _MB
    print(f"file            {size:8.0f} MB, {asked.servers:,} servers x {asked.days:,} days")
    print(f"upload          {seconds:8.2f} s")
    print(f"read and write  {baseline:8.2f} s")
    print(f"ratio           {seconds / baseline:8.2f}")
    print(f"API grew by     {(watch.own - before[0]) / _MB:8.0f} MB")
    print(f"its child by    {(watch.children - before[1]) / _MB:8.0f} MB")


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


@contextmanager
def served(database_url: str, data: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "HEADROOM_DATA_DIR": str(data),
        "HEADROOM_PORT": str(port),
        "HEADROOM_COMPUTE_PROCESSES": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                httpx.get(f"{address}/healthz")
                break
            except httpx.TransportError:
                if process.poll() is not None:
                    raise SystemExit("the service did not start") from None
                time.sleep(0.1)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def memory(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process and of all its children."""
    return process.memory_info().rss, sum(child.memory_info().rss for child in process.children(recursive=True))


class Watch:
    """The largest memory seen, twenty times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.own = self.children = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            own, children = memory(self._process)
            self.own, self.children = max(self.own, own), max(self.children, children)


if __name__ == "__main__":
    main()

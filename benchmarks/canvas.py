"""A managed run of a large fleet, whole, on an emulated AWS: what each process weighs, and how long each stage takes.

    python -m benchmarks.canvas [--servers 10000] [--years 3]

The reference fleet is generated as Parquet and uploaded to `headroom serve`; a forecast with the model `canvas` alone
is then carried by one `headroom worker`, on an embedded PostgreSQL and `headroom emulator`, each a process of its own.
Memory is sampled from /proc by psutil: resident (RSS, what processes share counted in each) twenty times a second,
proportional (PSS, shared once) twice. It fails unless

- every file that went to S3 is under 100 MB and holds whole series: no server is in two of one purpose;
- the results have servers × horizon rows;
- worker and children together never held more than 1.5 GB resident.

All is written to a temporary folder, which goes in the end (`--keep-logs DIR` copies the logs first).
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import boto3
import httpx
import psutil
import pyarrow.csv as pacsv

from app.services import reference_fleet
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade

HORIZON = 90
MOST_MEMORY, MOST_SHARD = 1_500_000_000, 100_000_000
BUCKET, ROLE = "headroom-emulated", "arn:aws:iam::123456789012:role/headroom-emulated"
_MB = 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--servers", type=int, default=10_000)
    arguments.add_argument("--years", type=int, default=3)
    arguments.add_argument("--keep-logs", type=Path)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        fleet = folder / "fleet.parquet"
        _elsewhere(asked.servers, asked.years, fleet)
        try:
            complaints = _measured(folder, fleet, asked.servers)
        finally:
            if asked.keep_logs:
                asked.keep_logs.mkdir(parents=True, exist_ok=True)
                for log in folder.glob("*.log"):
                    shutil.copy(log, asked.keep_logs)
    raise SystemExit("\n".join(complaints) or 0)


def _elsewhere(servers: int, years: int, file: Path) -> None:
    """Generate the fleet in a process of its own, so that its memory goes with it."""
    started = time.perf_counter()
    child = get_context("spawn").Process(target=_generate, args=(servers, years, file))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit("the fleet could not be generated")
    print(f"fleet: {servers:,} servers, {years} years, {file.stat().st_size / _MB:,.0f} MB of Parquet", end=", ")
    print(f"generated in {time.perf_counter() - started:.0f} s", flush=True)


def _generate(servers: int, years: int, file: Path) -> None:
    reference_fleet.write(reference_fleet.generate(servers, date(2026 - years, 1, 1), date(2025, 12, 31)), file)


def _measured(folder: Path, fleet: Path, servers: int) -> list[str]:
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        upgrade(postgres.url)
        api, aws = (f"http://127.0.0.1:{port}" for port in (_free_port(), _free_port()))
        environment = os.environ | {
            "DATABASE_URL": postgres.url,
            "HEADROOM_DATA_DIR": str(folder / "data"),
            "HEADROOM_PORT": api.rpartition(":")[2],
            "HEADROOM_AWS": "emulated",
            "HEADROOM_BUCKET": BUCKET,
            "HEADROOM_ROLE_ARN": ROLE,
            "HEADROOM_MONTHLY_BUDGET_USD": "100",
            "HEADROOM_CANVAS_MINUTES": "30",
            "AWS_ENDPOINT_URL": aws,
            "AWS_ACCESS_KEY_ID": "emulated",
            "AWS_SECRET_ACCESS_KEY": "emulated",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        trees = {
            name: stack.enter_context(_process(folder / f"{name}.log", environment, name, *more))
            for name, more in (("emulator", ("--port", aws.rpartition(":")[2])), ("serve", ()), ("worker", ()))
        }
        trees["postgres"] = _postgres_at(folder)
        _until_up(f"{api}/readyz", f"{aws}/")
        with Watch(trees) as watch, httpx.Client(base_url=api, timeout=1_200) as client:
            watch.stage = "upload"
            with fleet.open("rb") as file:
                dataset = client.post("/datasets?name=fleet", content=file, headers=_PARQUET)
            assert dataset.status_code == 201, dataset.text
            asked = {
                "dataset_id": dataset.json()["id"],
                "metric": "cpu_p95",
                "horizon": HORIZON,
                "models": ["canvas"],
                "max_cost_usd": 20,
                "fallback": False,
            }
            made = client.post("/forecasts", json=asked, headers={"Idempotency-Key": "benchmark"})
            assert made.status_code == 202, made.text
            shards = _followed(client, made.json()["id"], watch, folder / "data", aws)
            watch.stage = "results"
            ended = client.get(f"/forecasts/{made.json()['id']}").json()
            if ended["status"] != "succeeded":
                raise SystemExit(f"the forecast {ended['status']}: {ended['runs']}")
            rows = _rows(client, made.json()["id"])
            watch.stage = "cleaning"
            _until_clean(aws)
    watch.report()
    shards.report()
    print(f"\nresults: {ended['runs'][0]['servers']:,} servers, {rows:,} rows")
    complaints = shards.complaints()
    if rows != servers * HORIZON:
        complaints.append(f"{rows:,} rows, not {servers:,} × {HORIZON}")
    if (most := watch.most["worker", "together"]) > MOST_MEMORY:
        complaints.append(f"worker and children held {most / _MB:,.0f} MB, more than {MOST_MEMORY / _MB:,.0f}")
    return complaints


_PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


def _followed(client: httpx.Client, forecast: str, watch: "Watch", data: Path, aws: str) -> "Shards":
    """Until the forecast has ended; the files that were staged, looked at while they are there."""
    shards: Shards | None = None
    while True:
        run = (shown := client.get(f"/forecasts/{forecast}").json())["runs"][0]
        watch.stage = run["stage"] or run["status"]
        if watch.stage == "training" and shards is None:
            shards = Shards.of(data, aws)
        if shown["status"] not in ("queued", "running"):
            return shards or Shards({}, {})
        time.sleep(0.25)


def _rows(client: httpx.Client, forecast: str) -> int:
    """Rows of the whole result, as CSV."""
    with client.stream("GET", f"/forecasts/{forecast}/quantiles", headers={"Accept": "text/csv"}) as answer:
        assert answer.status_code == 200, answer.read()
        return sum(chunk.count(b"\n") for chunk in answer.iter_bytes()) - 1


def _until_clean(aws: str) -> None:
    """Until the bucket holds the results as one file, and no input or output any more."""
    deadline = time.monotonic() + 600
    while True:
        keys = list(_listed(aws))
        if any(key.endswith("canvas.parquet") for key in keys) and not any(
            key.endswith((".csv", ".out")) for key in keys
        ):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the bucket was not cleaned: {keys}")
        time.sleep(1)


def _listed(aws: str) -> dict[str, int]:
    """Every object of the bucket, and its size."""
    pages = boto3.client(
        "s3",
        endpoint_url=aws,
        region_name="us-east-1",
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
    ).get_paginator("list_objects_v2")
    return {one["Key"]: int(one["Size"]) for page in pages.paginate(Bucket=BUCKET) for one in page.get("Contents", ())}


@dataclass(frozen=True)
class Shards:
    """`sizes` in bytes by key in the bucket; `torn` names of servers in more than one file, by purpose."""

    sizes: dict[str, int]
    torn: dict[str, int]

    @classmethod
    def of(cls, data: Path, aws: str) -> "Shards":
        sizes = {key: size for key, size in _listed(aws).items() if key.endswith(".csv")}
        torn = {}
        purposes = {file.parent for file in (data / "work").rglob("*.csv")}
        for purpose in purposes:
            seen: set[str] = set()
            twice: set[str] = set()
            for file in sorted(purpose.glob("*.csv")):
                options = pacsv.ConvertOptions(include_columns=["item_id"])
                servers: set[str] = set()
                for batch in pacsv.open_csv(file, convert_options=options):
                    servers.update(batch.column(0).unique().to_pylist())
                twice |= seen & servers
                seen |= servers
            torn[f"{purpose.name} ({len(seen):,} servers)"] = len(twice)
        return cls(sizes, torn)

    def report(self) -> None:
        print("\nfiles in S3")
        for key, size in sorted(self.sizes.items()):
            print(f"  {'/'.join(key.split('/')[-2:]):36}{size / _MB:10.1f} MB")

    def complaints(self) -> list[str]:
        found = [f"{key} has {size:,} bytes" for key, size in self.sizes.items() if size >= MOST_SHARD]
        found += [f"{count} servers of {purpose} are in two files" for purpose, count in self.torn.items() if count]
        return found if self.sizes and self.torn else ["no file was seen in S3"]


@dataclass
class Watch:
    """The most memory that each tree of processes held, in all and by stage; how long each stage took."""

    trees: dict[str, psutil.Process]
    stage: str = "starting"
    most: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    by_stage: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    children: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def __enter__(self) -> "Watch":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        before, round = time.perf_counter(), 0
        while not self._done.wait(0.05):
            stage, now, round = self.stage, time.perf_counter(), round + 1
            self.seconds[stage] += now - before
            before = now
            for name, process in self.trees.items():
                self._weigh(stage, name, process, proportional=round % 10 == 0)

    def _weigh(self, stage: str, name: str, process: psutil.Process, *, proportional: bool) -> None:
        own = together = shared_once = 0
        with suppress(psutil.NoSuchProcess):
            own = together = process.memory_info().rss
            shared_once = process.memory_full_info().pss if proportional else 0
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    weight = child.memory_info().rss
                    together += weight
                    shared_once += child.memory_full_info().pss if proportional else 0
                    if name == "worker":
                        self.children[child.pid] = max(self.children[child.pid], weight)
        for what, weight in (("itself", own), ("together", together), ("together, PSS", shared_once)):
            self.most[name, what] = max(self.most[name, what], weight)
        self.by_stage[stage][name] = max(self.by_stage[stage][name], together)

    def report(self) -> None:
        print("\npeak memory, MB          itself   with children      PSS of all")
        for name in self.trees:
            most = [self.most[name, what] / _MB for what in ("itself", "together", "together, PSS")]
            print(f"  {name:18}{most[0]:12,.0f}{most[1]:16,.0f}{most[2]:16,.0f}")
        print("  children of the worker: " + ", ".join(f"{weight / _MB:,.0f}" for weight in self.children.values()))
        print("\nstage              seconds" + "".join(f"{name:>12}" for name in self.trees) + "   MB, with children")
        for stage, weights in self.by_stage.items():
            print(
                f"  {stage:16}{self.seconds[stage]:8.1f}"
                + "".join(f"{weights[name] / _MB:12,.0f}" for name in self.trees)
            )


@contextmanager
def _process(log: Path, environment: dict[str, str], *arguments: str) -> Iterator[psutil.Process]:
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments], env=environment, stdout=lines, stderr=lines
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _postgres_at(folder: Path) -> psutil.Process:
    """The server whose data lie there: the parent of its own kind."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "postgres" and any(str(folder) in word for word in process.info["cmdline"] or ()):
            return process
    raise SystemExit("the embedded PostgreSQL was not found among the processes")


def _until_up(*addresses: str) -> None:
    deadline = time.monotonic() + 60
    for address in addresses:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(address).status_code < 500:
                    break
            if time.monotonic() > deadline:
                raise SystemExit(f"{address} does not answer")
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()

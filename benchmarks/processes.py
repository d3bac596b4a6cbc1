"""Headroom as a tree of processes under measurement: started from nothing, watched from outside, and gone again.

    with service(folder, "serve", "worker") as tree, Watch(tree.parts) as watch: ...

It holds what the benchmarks of a running service have in common. What they ask of the service is theirs.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil

from app.services import reference_fleet
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade

MB = 1e6
LOOK = 0.1
"""Seconds between two looks at what processes weigh."""
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}
_FLEET_ENDS = date(2025, 12, 31)


@dataclass(frozen=True)
class Tree:
    """A service that runs: the API's address, its database, and the first process of each part."""

    address: str
    database: str
    parts: dict[str, psutil.Process]


@contextmanager
def service(folder: Path, *commands: str, **settings: str) -> Iterator[Tree]:
    """`headroom COMMAND` for each, on an embedded PostgreSQL; data and logs go to the folder."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        upgrade(postgres.url)
        address = f"http://127.0.0.1:{(port := free_port())}"
        environment = os.environ | {
            "DATABASE_URL": postgres.url,
            "HEADROOM_DATA_DIR": str(folder / "data"),
            "HEADROOM_PORT": str(port),
            **settings,
        }
        parts = {
            command: stack.enter_context(process(folder / f"{command}.log", environment, command))
            for command in commands
        }
        until_up(f"{address}/readyz")
        yield Tree(address, postgres.url, {**parts, "postgres": postgres_at(folder)})


@contextmanager
def process(log: Path, environment: dict[str, str], *arguments: str) -> Iterator[psutil.Process]:
    """`headroom ARGUMENTS` for as long as the block."""
    with log.open("wb") as lines:
        started = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments], env=environment, stdout=lines, stderr=lines
        )
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait()


def postgres_at(folder: Path) -> psutil.Process:
    """The server whose data lie there: the parent of its own kind."""
    for found in psutil.process_iter(["name", "cmdline"]):
        if found.info["name"] == "postgres" and any(str(folder) in word for word in found.info["cmdline"] or ()):
            return found
    raise SystemExit("the embedded PostgreSQL was not found among the processes")


def until_up(*addresses: str) -> None:
    deadline = time.monotonic() + 60
    for address in addresses:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(address).status_code < 500:
                    break
            if time.monotonic() > deadline:
                raise SystemExit(f"{address} does not answer")
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_fleet(file: Path, servers: int, years: int, metrics: tuple[str, ...] | None = None) -> None:
    """The reference fleet as Parquet (all its metrics, or some), made in a process whose memory goes with it."""
    child = get_context("spawn").Process(target=_write_fleet, args=(file, servers, years, metrics))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit("the fleet could not be generated")


def _write_fleet(file: Path, servers: int, years: int, metrics: tuple[str, ...] | None) -> None:
    table = reference_fleet.generate(servers, date(_FLEET_ENDS.year - years + 1, 1, 1), _FLEET_ENDS)
    others = [name for name in table.column_names if metrics and name.endswith("_p95") and name not in metrics]
    reference_fleet.write(table.drop_columns(others), file)


@dataclass
class Watch:
    """What each tree of processes took, in all and by stage: most memory, CPU, and how long each stage was.

    Memory is resident (what processes share counted in each) and proportional (PSS, shared once). CPU is what each
    process had used when it was last seen, so of one that ends the last tenth of a second may be missing.
    """

    parts: dict[str, psutil.Process]
    stage: str = "starting"
    most: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    by_stage: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    children: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    peak: int = 0
    """bytes of all trees together at one time, shared memory once"""

    def __enter__(self) -> "Watch":
        self._used: dict[psutil.Process, float] = {}
        self._look()  # what was used before counts for no stage
        self.cpu.clear()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(used for stage in self.cpu.values() for used in stage.values())

    def _keep_looking(self) -> None:
        before, look = time.perf_counter(), 0
        while not self._done.wait(LOOK):
            now = time.perf_counter()
            self.seconds[self.stage] += now - before
            before, look = now, look + 1
            self._look(proportional=look % 5 == 0)

    def _look(self, *, proportional: bool = False) -> None:
        stage, once = self.stage, 0
        for name, root in self.parts.items():
            own, together, shared_once = self._weigh(stage, name, root, proportional)
            for what, weight in (("itself", own), ("together", together), ("together, PSS", shared_once)):
                self.most[name, what] = max(self.most[name, what], weight)
            self.by_stage[stage][name] = max(self.by_stage[stage][name], together)
            once += shared_once
        self.peak = max(self.peak, once)

    def _weigh(self, stage: str, name: str, root: psutil.Process, proportional: bool) -> tuple[int, int, int]:
        """Of a tree: bytes resident of its first process, of all, and proportional of all (0: not looked at)."""
        own = together = shared_once = 0
        with suppress(psutil.NoSuchProcess):
            for one in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    weight = one.memory_info().rss
                    together += weight
                    if one.pid == root.pid:
                        own = weight
                    elif name == "worker":
                        self.children[one.pid] = max(self.children[one.pid], weight)
                    times = one.cpu_times()
                    used = times.user + times.system
                    self.cpu[stage][name] += used - self._used.get(one, 0.0)
                    self._used[one] = used
                    if proportional:
                        shared_once += one.memory_full_info().pss
        return own, together, shared_once

    def report(self) -> None:
        print("\npeak memory, MB          itself   with children      PSS of all")
        for name in self.parts:
            most = [self.most[name, what] / MB for what in ("itself", "together", "together, PSS")]
            print(f"  {name:18}{most[0]:12,.0f}{most[1]:16,.0f}{most[2]:16,.0f}")
        print(f"  all at one time, PSS {self.peak / MB:41,.0f}")
        print("  children of the worker: " + ", ".join(f"{weight / MB:,.0f}" for weight in self.children.values()))
        names = "".join(f"{name:>10}" for name in self.parts)
        print(f"\nstage              seconds{names}   MB, with children{names}   CPU seconds")
        for stage, weights in self.by_stage.items():
            print(
                f"  {stage:16}{self.seconds[stage]:8.1f}"
                + "".join(f"{weights[name] / MB:10,.0f}" for name in self.parts)
                + " " * 20
                + "".join(f"{self.cpu[stage][name]:10,.1f}" for name in self.parts)
            )

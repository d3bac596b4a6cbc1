"""What a forecast of a whole fleet takes, end to end: an upload, POST /forecasts, and the risk of every server read.

    python -m benchmarks.scale [--servers 100,1000,10000] [--years 3] [--models auto]

For each number of servers the reference fleet is generated (cpu_p95 and its attributes) and uploaded as Parquet to
`headroom serve`, and one `headroom worker` carries a forecast with horizon 90 and one back-test window, on an embedded
PostgreSQL; each is a process of its own, and all of them are new. The clock of `seconds` runs from POST /forecasts
until `GET /risk/servers` answers for it. Memory and CPU are those of API, worker and PostgreSQL with their children,
from the upload on; memory is proportional (PSS), the most that all of them held at one time.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.processes import MB, PARQUET, Watch, service, write_fleet

METRIC, HORIZON = "cpu_p95", 90
PATIENCE = 7_200.0


@dataclass(frozen=True)
class Cost:
    """Of one fleet: seconds of the clock and of the processors, and bytes."""

    servers: int
    upload: float
    seconds: float
    cpu: float
    memory: int
    stages: dict[str, float]

    @property
    def per_second(self) -> float:
        return self.servers / self.seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--servers", default="100,1000,10000", help="comma-separated")
    arguments.add_argument("--years", type=int, default=3)
    arguments.add_argument("--models", default="auto", help="comma-separated")
    arguments.add_argument("--quiet", action="store_true", help="the table alone, without the stages of each")
    arguments.add_argument("--json", type=Path, help="file that gets the figures, too")
    asked = arguments.parse_args()
    costs = []
    for servers in map(int, asked.servers.split(",")):
        cost, watch = measure(servers, asked.years, asked.models.split(","))
        if not asked.quiet:
            watch.report()
        costs.append(cost)
        print("\n" + table([cost]), flush=True)
    if len(costs) > 1:
        print("\n" + table(costs))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


def measure(servers: int, years: int = 3, models: list[str] | None = None) -> tuple[Cost, Watch]:
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        fleet = folder / "fleet.parquet"
        write_fleet(fleet, servers, years, (METRIC,))
        with (
            service(folder, "serve", "worker") as tree,
            Watch(tree.parts) as watch,
            httpx.Client(base_url=tree.address, timeout=600) as client,
        ):
            upload, dataset = _uploaded(client, fleet, watch)
            asked = {"dataset_id": dataset, "metric": METRIC, "horizon": HORIZON, "models": models or ["auto"]}
            started = time.perf_counter()
            made = client.post("/forecasts", json=asked)
            assert made.status_code == 202, made.text
            _followed(client, made.json()["id"], watch)
            watch.stage = "risk"
            answer = client.get("/risk/servers", params={"forecast_id": made.json()["id"], "limit": 100})
            assert answer.status_code == 200, answer.text
            seconds = time.perf_counter() - started
    return Cost(servers, upload, seconds, watch.cpu_seconds, watch.peak, dict(watch.seconds)), watch


def table(costs: list[Cost]) -> str:
    """Markdown."""
    lines = [
        "| servers | upload, s | POST to risk, s | servers/s | CPU, s | peak memory, MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.servers:,} | {cost.upload:.1f} | {cost.seconds:.1f} | {cost.per_second:.0f} "
            f"| {cost.cpu:.0f} | {cost.memory / MB:,.0f} |"
        )
    return "\n".join(lines)


def _uploaded(client: httpx.Client, fleet: Path, watch: Watch) -> tuple[float, str]:
    watch.stage = "upload"
    started = time.perf_counter()
    with fleet.open("rb") as file:
        answer = client.post("/datasets?name=fleet", content=file, headers=PARQUET)
    assert answer.status_code == 201, answer.text
    return time.perf_counter() - started, str(answer.json()["id"])


def _followed(client: httpx.Client, forecast: str, watch: Watch) -> None:
    """Until the forecast has ended; its stages as they pass."""
    deadline = time.monotonic() + PATIENCE
    while True:
        shown = client.get(f"/forecasts/{forecast}").json()
        going = [run["stage"] or run["status"] for run in shown["runs"] if run["finished_at"] is None]
        watch.stage = going[0] if going else "ending"
        if shown["status"] not in ("queued", "running"):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the forecast has not ended after {PATIENCE:,.0f} s")
        time.sleep(0.1)
    if shown["status"] != "succeeded" or any(run["status"] != "succeeded" for run in shown["runs"]):
        raise SystemExit(f"the forecast {shown['status']}: {shown['runs']}")


if __name__ == "__main__":
    main()

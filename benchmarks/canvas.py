"""A managed run of a large fleet, whole, on an emulated AWS: what each process weighs, and how long each stage takes.

    python -m benchmarks.canvas [--servers 10000] [--years 3]

The reference fleet is generated as Parquet and uploaded to `headroom serve`; a forecast with the model `canvas` alone
is then carried by one `headroom worker`, on an embedded PostgreSQL and `headroom emulator`, each a process of its own.
Memory is sampled from /proc by psutil: resident (RSS, what processes share counted in each) ten times a second,
proportional (PSS, shared once) twice. It fails unless

- every file that went to S3 is under 100 MB and holds whole series: no server is in two of one purpose;
- the results have servers × horizon rows;
- worker and children together never held more than 1.5 GB resident.

All is written to a temporary folder, which goes in the end (`--keep-logs DIR` copies the logs first).
"""

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pyarrow.csv as pacsv

from benchmarks.processes import MB, PARQUET, Watch, free_port, process, service, until_up, write_fleet

HORIZON = 90
MOST_MEMORY, MOST_SHARD = 1_500_000_000, 100_000_000
BUCKET, ROLE = "headroom-emulated", "arn:aws:iam::123456789012:role/headroom-emulated"


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
        write_fleet(fleet, asked.servers, asked.years)
        try:
            complaints = _measured(folder, fleet, asked.servers)
        finally:
            if asked.keep_logs:
                asked.keep_logs.mkdir(parents=True, exist_ok=True)
                for log in folder.glob("*.log"):
                    shutil.copy(log, asked.keep_logs)
    raise SystemExit("\n".join(complaints) or 0)


def _measured(folder: Path, fleet: Path, servers: int) -> list[str]:
    aws = f"http://127.0.0.1:{(port := free_port())}"
    emulated = {
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
    with (
        process(folder / "emulator.log", os.environ | emulated, "emulator", "--port", str(port)) as emulator,
        service(folder, "serve", "worker", **emulated) as tree,
        Watch({"emulator": emulator, **tree.parts}) as watch,
        httpx.Client(base_url=tree.address, timeout=1_200) as client,
    ):
        until_up(f"{aws}/")
        watch.stage = "upload"
        with fleet.open("rb") as file:
            dataset = client.post("/datasets?name=fleet", content=file, headers=PARQUET)
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
        complaints.append(f"worker and children held {most / MB:,.0f} MB, more than {MOST_MEMORY / MB:,.0f}")
    return complaints


def _followed(client: httpx.Client, forecast: str, watch: Watch, data: Path, aws: str) -> "Shards":
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
            print(f"  {'/'.join(key.split('/')[-2:]):36}{size / MB:10.1f} MB")

    def complaints(self) -> list[str]:
        found = [f"{key} has {size:,} bytes" for key, size in self.sizes.items() if size >= MOST_SHARD]
        found += [f"{count} servers of {purpose} are in two files" for purpose, count in self.torn.items() if count]
        return found if self.sizes and self.torn else ["no file was seen in S3"]


if __name__ == "__main__":
    main()

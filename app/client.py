"""A client of the API for the command line: it speaks HTTP like any other, and knows nothing of the inside."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.errors import HeadroomError

POLL_SECONDS = 0.5
MEDIA_TYPES = {".csv": "text/csv", ".gz": "application/gzip", ".parquet": "application/vnd.apache.parquet"}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Refused(HeadroomError):
    """The service said no, or did not answer; `detail` is what it said."""


@dataclass(frozen=True)
class Address:
    """Where the service is and who asks.

    Parameters
    ----------
    url
        Address of the service; HEADROOM_URL, or this machine at HEADROOM_PORT.
    key
        API key; HEADROOM_API_KEY.
    """

    url: str = field(
        default_factory=lambda: os.environ.get(
            "HEADROOM_URL", f"http://127.0.0.1:{os.environ.get('HEADROOM_PORT', '8000')}"
        )
    )
    key: str | None = field(default_factory=lambda: os.environ.get("HEADROOM_API_KEY"))


class Client:
    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def add_dataset(self, file: Path, *, name: str | None = None, schema: str | None = None) -> Any:
        """POST /datasets, the file streamed as it is."""
        media_type = MEDIA_TYPES.get(file.suffix, "text/csv")
        parameters = {"name": name or file.name, **({"schema": schema} if schema else {})}
        with _opened(file) as body:
            return self.ask("POST", "/datasets", content=body, params=parameters, headers={"Content-Type": media_type})

    def submit(self, body: dict[str, Any], key: str | None = None) -> Any:
        return self.ask("POST", "/forecasts", json=body, headers={"Idempotency-Key": key} if key else {})

    def follow(self, forecast_id: str) -> Iterator[Any]:
        """The forecast again and again, until it has ended."""
        while True:
            forecast = self.ask("GET", f"/forecasts/{forecast_id}")
            yield forecast
            if forecast["status"] not in ("queued", "running"):
                return
            time.sleep(POLL_SECONDS)

    def ask(self, method: str, path: str, **how: Any) -> Any:
        """The answer's JSON. Raises Refused with the problem's own words."""
        try:
            response = self._http.request(method, path, **how)
        except httpx.TransportError as error:
            raise Refused(f"No answer from {self._http.base_url}: {error}. Is the service up (make run)?") from error
        if response.is_success:
            return response.json()
        try:
            problem = response.json()
            lines = [problem["detail"], *(f"  {one['pointer']}: {one['detail']}" for one in problem["errors"])]
        except (ValueError, KeyError):
            lines = [f"{method} {path} answered {response.status_code}"]
        raise Refused("\n".join(lines))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}.") from error


@contextmanager
def connect(service: Address | None = None) -> Iterator[Client]:
    service = service or Address()
    headers = {"Authorization": f"Bearer {service.key}"} if service.key else {}
    with httpx.Client(base_url=service.url, headers=headers, timeout=httpx.Timeout(600, connect=5)) as http:
        yield Client(http)


def forecast(
    client: Client, file: Path, metric: str, horizon: int, models: list[str], *, wait: bool, as_json: bool
) -> int:
    """Upload, submit, and when told to, wait; 0 unless the forecast ended otherwise than succeeded."""
    dataset = client.add_dataset(file)
    made = client.submit({"dataset_id": dataset["id"], "metric": metric, "horizon": horizon, "models": models})
    if not wait:
        show(made, as_json)
        return 0
    ended = watch(client, made["id"], quiet=as_json)
    if ended["status"] != "succeeded":
        show(ended, as_json)
        return 1
    comparison = client.ask("GET", f"/forecasts/{made['id']}/comparison")
    if as_json:
        show({"forecast": ended, "comparison": comparison}, as_json)
    else:
        show_comparison(comparison)
    return 0


def risk(client: Client, threshold: float | None, metric: str | None, limit: int, *, as_json: bool) -> None:
    asked = {"threshold": threshold, "metric": metric, "limit": limit}
    found = client.ask("GET", "/risk/servers", params={name: value for name, value in asked.items() if value})
    if as_json:
        show(found, as_json)
    else:
        show_risk(found)


def watch(client: Client, forecast_id: str, *, quiet: bool = False) -> Any:
    """A bar per run until the forecast has ended; without a terminal, a line per stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[stage]}"))
    told: dict[str, str] = {}
    ended: Any = None
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}
        for ended in client.follow(forecast_id):
            for run in ended["runs"]:
                model, stage = (
                    run["model"],
                    (run["stage"] or "claimed") if run["status"] == "running" else run["status"],
                )
                if model not in tasks:
                    tasks[model] = bars.add_task(f"{model:>18}", total=1.0, stage="")
                done = run["status"] not in ("queued", "running")
                bars.update(tasks[model], completed=1.0 if done else run["progress"], stage=stage)
                if not console.is_terminal and not quiet and told.get(model) != stage:
                    console.print(f"{model:>18}  {stage}")
                told[model] = stage
    return ended


def show(answer: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
    else:
        console.print_json(data=answer)


def show_comparison(comparison: Any) -> None:
    table = Table(
        title=f"Comparison over the last {comparison['windows']} × {comparison['horizon']} steps",
        caption=f"Best: {comparison['best_model']}. Coverage of p10 to p90; 80 % is nominal.",
    )
    for heading in ("", "model", "WQL", "sMAPE %", "MASE", "coverage %", "servers", "seconds", "cost $"):
        table.add_column(heading, justify="left" if heading in ("", "model") else "right", no_wrap=True)
    for row in comparison["models"]:
        coverage = row["coverage"] * 100 if row["coverage"] is not None else None
        table.add_row(
            _shown(row["rank"], "d"),
            row["model"],
            _shown(row["wql"], ".4f"),
            _shown(row["smape"], ".2f"),
            _shown(row["mase"], ".2f"),
            _shown(coverage, ".0f"),
            str(row["servers"]),
            _shown(row["seconds"], ".1f"),
            _shown(row["cost_usd"], ".2f"),
        )
    console.print(table)


def show_risk(found: Any) -> None:
    table = Table(title=f"Servers at risk: {found['metric']}, as of {found['as_of']}")
    for heading in ("server", "level", "P(breach)", "runway, days", "expected", "max p90", "mean p50"):
        table.add_column(heading, justify="left" if heading in ("server", "level") else "right")
    for row in found["items"]:
        table.add_row(
            row["server_id"],
            row["level"],
            _shown(row["breach_probability"], ".2f"),
            _shown(row["runway_days"]["conservative"], "g"),
            _shown(row["runway_days"]["expected"], "g"),
            _shown(row["max_p90"], ".1f"),
            _shown(row["mean_p50"], ".1f"),
        )
    console.print(table)


def _shown(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)

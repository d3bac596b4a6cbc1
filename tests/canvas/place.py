"""Where managed runs are proved: a database, the strict emulator, the API and real workers; how to look at them."""

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import UUID

import boto3
import httpx
import numpy as np
import psutil
from botocore.config import Config

from app.canvas import requests
from app.canvas.requests import job_name
from app.main import create_app
from app.services.canvas import spec_of
from app.settings import Settings
from app.storage.managed import Managed
from tests.histories import weekly
from tests.processes import eventually, query

SERVERS, HORIZON, STEPS = 3, 5, 60
BUCKET = "headroom-emulated"
ROLE = "arn:aws:iam::123456789012:role/headroom-emulated"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "emulated",
    "AWS_SECRET_ACCESS_KEY": "emulated",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SPEED = 6_000
"""Seconds of the emulator in one of ours while a job is under way."""

TERMINAL = ("succeeded", "failed", "cancelled", "skipped")
NAMES = {"CreateAutoMLJobV2": "AutoMLJobName", "CreateModel": "ModelName", "CreateTransformJob": "TransformJobName"}

Forecast = dict[str, Any]
Submit = Callable[..., Awaitable[Forecast]]


@dataclass(frozen=True)
class Made:
    """Something that a call of ours made on AWS."""

    operation: str
    name: str
    request: dict[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.request.get("Tags", [])}

    @property
    def output(self) -> str:
        given = self.request.get("OutputDataConfig") or self.request.get("TransformOutput") or {}
        return str(given.get("S3OutputPath", ""))


@dataclass
class Place:
    """A database, an emulator, and perhaps a worker that stands by."""

    settings: Settings
    endpoint: str
    standing: subprocess.Popen[bytes] | None = None
    dataset: str | None = None

    def client(self, service: str) -> Any:
        keys = {"aws_access_key_id": "emulated", "aws_secret_access_key": "emulated", "region_name": "us-east-1"}
        return boto3.client(
            service, endpoint_url=self.endpoint, config=Config(retries={"total_max_attempts": 1}), **keys
        )

    def control(self, what: str, body: Any = None, method: str | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        with urlopen(Request(f"{self.endpoint}/_emulator/{what}", data=data, method=method)) as answer:
            return json.load(answer)

    def arm(self, operation: str, fault: str, times: int = 1) -> None:
        self.control("faults", {"operation": operation, "fault": fault, "times": times})

    def calls(self, *operations: str) -> list[dict[str, Any]]:
        """What the journal has of them, oldest first."""
        return [call for call in self.control("journal")["calls"] if call["operation"] in operations]

    def made(self, run_id: str) -> list[Made]:
        """What was made for a run, by its folder or its tag, whether or not anybody heard of it."""
        done = [
            Made(call["operation"], call["request"][NAMES[call["operation"]]], call["request"])
            for call in self.calls(*NAMES)
            if call["status"] == 200 or call["fault"] == "server_error_after_success"
        ]
        return [one for one in done if run_id in one.output or one.tags.get("headroom:run") == run_id]

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return query(self.settings, statement, *values)

    def run_id(self, forecast: Forecast) -> str:
        found = self.query("SELECT id FROM runs WHERE forecast_id = %s AND model = 'canvas'", forecast["id"])
        return str(found[0][0])

    def run(self, forecast: Forecast) -> tuple[str, str | None]:
        """Status and error code of the managed run."""
        statement = "SELECT status, error->>'code' FROM runs WHERE forecast_id = %s AND model = 'canvas'"
        return self.query(statement, forecast["id"])[0]  # type: ignore[return-value]

    def name(self, forecast: Forecast, purpose: str | None = None) -> str:
        """What the run's AutoML job, or a transform of it, goes by."""
        installation = self.query("SELECT id FROM installation")[0][0]
        return job_name(installation, self.run_id(forecast), 1, purpose)

    def ended(self, forecast: Forecast) -> bool:
        return self.query("SELECT status FROM forecasts WHERE id = %s", forecast["id"])[0][0] in TERMINAL

    def clean(self, forecast: Forecast) -> bool:
        """Whether the janitor says that nothing is left."""
        left = self.query("SELECT gone_at FROM canvas_runs WHERE forecast_id = %s", forecast["id"])
        return all(gone is not None for (gone,) in left)

    def wait(self, forecast: Forecast) -> None:
        eventually(lambda: self.ended(forecast), "the end of the forecast")
        eventually(lambda: self.clean(forecast), "the cleaning of AWS")

    def late_call(self, forecast: Forecast) -> Callable[[], None]:
        """The call for the AutoML job that a worker was about to make, to be made at any time: a network may hold it
        for longer than everybody waits. Its input comes back with it, or the emulator would refuse it."""
        [(facts,)] = self.query("SELECT facts FROM canvas_runs WHERE run_id = %s", self.run_id(forecast))
        spec, s3 = (
            spec_of(Managed(UUID(self.run_id(forecast)), UUID(forecast["id"]), 1, "", facts, True)),
            self.client("s3"),
        )
        listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=spec.input_prefix("window-1"))["Contents"]
        inputs = {one["Key"]: s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed}

        def call() -> None:
            for key, content in inputs.items():
                s3.put_object(Bucket=BUCKET, Key=key, Body=content)
            self.client("sagemaker").create_auto_ml_job_v2(**requests.automl(spec, "window-1"))

        return call

    @contextmanager
    def rested(self) -> Iterator[None]:
        """The standing worker is frozen meanwhile, and misses what happens."""
        assert self.standing is not None
        standing = psutil.Process(self.standing.pid)
        standing.send_signal(signal.SIGSTOP)
        eventually(lambda: standing.status() == psutil.STATUS_STOPPED, "the rest")
        try:
            yield
        finally:
            standing.send_signal(signal.SIGCONT)


def settings_at(folder: Path, database_url: str, endpoint: str) -> Settings:
    return Settings(
        data_dir=folder,
        database_url=database_url,
        compute_processes=1,
        lease_seconds=2,
        aws="emulated",
        aws_endpoint_url=endpoint,
        monthly_budget_usd=1_000.0,
        canvas_poll_seconds=0.2,
    )


@asynccontextmanager
async def serving(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    """The API over the place's database, in this process."""
    app = create_app(place.settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000", timeout=60) as client,
    ):
        yield client


def submitting(place: Place, client: httpx.AsyncClient) -> Submit:
    """Submits a managed forecast of the place's dataset, each with a key of its own."""

    async def submitted(**changes: Any) -> Forecast:
        answer = await client.post(
            "/forecasts",
            json=await body(place, client) | changes,
            headers={"Idempotency-Key": f"key-{np.random.default_rng().integers(1 << 62)}"},
        )
        assert answer.status_code == 202, answer.text
        forecast: Forecast = answer.json()
        return forecast

    return submitted


async def body(place: Place, client: httpx.AsyncClient) -> dict[str, Any]:
    """What is sent to submit; the dataset is uploaded with the first."""
    if place.dataset is None:
        made = await client.post("/datasets", content=weekly(SERVERS, STEPS), headers={"Content-Type": "text/csv"})
        assert made.status_code == 201, made.text
        place.dataset = made.json()["id"]
    return {"dataset_id": place.dataset, "metric": "cpu_p95", "horizon": HORIZON, "models": ["canvas"]}

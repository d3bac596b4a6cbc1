"""What the client may rely on wherever SageMaker is: one suite, on the emulator and, with HEADROOM_TEST_AWS=1, on AWS.

On AWS it takes HEADROOM_BUCKET, HEADROOM_ROLE_ARN, credentials and a region, as docs/aws/setup.md sets them up. One
AutoML job is started there, on two servers of 60 days, and stopped at once; what is put into the bucket is removed. Its
job stays in the account's list, since AutoML jobs cannot be deleted. What takes a whole training, a fault or a clock is
tested on the emulator alone (test_sagemaker).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import boto3
import httpx
import numpy as np
import pytest

from app.aws.faults import NameTaken, Refused
from app.aws.s3 import S3, Bucket
from app.aws.sagemaker import JobStatus, RealSageMaker
from app.canvas import requests, staging
from app.canvas.requests import Spec
from app.domain.panel import Frequency, Panel
from app.emulator.server import started

HORIZON, STEPS = 7, 60
REGION, BUCKET, ROLE = "us-east-1", "headroom-contract", "arn:aws:iam::123456789012:role/headroom-emulated"
ASKED_FOR = os.environ.get("HEADROOM_TEST_AWS") == "1"
WHY_NOT = (
    "on AWS itself only with HEADROOM_TEST_AWS=1, HEADROOM_BUCKET, HEADROOM_ROLE_ARN and credentials: it starts one "
    "AutoML job and stops it"
)
STOPS_WITHIN = 1_800.0
"""Seconds of patience with AWS, where stopping takes minutes."""


@dataclass(frozen=True)
class Place:
    """Somewhere that SageMaker is, with a run of its own. `emulator` is the control endpoint, where it is emulated."""

    client: RealSageMaker
    bucket: Bucket
    spec: Spec
    emulator: str | None

    async def ended(self, name: str) -> JobStatus:
        """The status of an AutoML job that has been told to stop, once it has."""
        deadline = monotonic() + STOPS_WITHIN
        while True:
            if self.emulator:
                async with httpx.AsyncClient(timeout=60) as http:
                    (await http.post(f"{self.emulator}/clock", json={"advance": 3_600})).raise_for_status()
            job = await self.client.automl(name)
            assert job is not None
            if job.status.is_terminal:
                return job.status
            assert monotonic() < deadline, f"{name} is still {job.status}"
            await asyncio.sleep(15)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with started() as url:
        yield url


@pytest.fixture(params=["emulated", pytest.param("aws", marks=pytest.mark.skipif(not ASKED_FOR, reason=WHY_NOT))])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def emulated(endpoint: str, monkeypatch: pytest.MonkeyPatch, iam: Any) -> Iterator[Place]:
    """With nothing in it, and its clock stopped. Afterwards: was all that was asked allowed?"""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "emulated")
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name=REGION)
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=BUCKET)
    control = f"{endpoint}/_emulator"
    httpx.post(f"{control}/reset", json={}).raise_for_status()
    httpx.post(f"{control}/clock", json={"stop": True}).raise_for_status()
    found = spec(BUCKET, ROLE, emulated=True)
    yield Place(RealSageMaker(REGION, endpoint), Bucket(S3(REGION, endpoint), BUCKET), found, control)
    calls = httpx.get(f"{control}/journal", timeout=60).json()["calls"]
    assert iam.service_policy(BUCKET).refused(calls) == [], "the policy to paste allows all that was asked"


@pytest.fixture
async def aws() -> AsyncIterator[Place]:
    name, role = os.environ["HEADROOM_BUCKET"], os.environ["HEADROOM_ROLE_ARN"]
    found = Place(RealSageMaker(), Bucket(S3(), name), spec(name, role, emulated=False), None)
    yield found
    await found.client.stop_automl(found.spec.name)
    await found.bucket.delete_prefix(requests.run_folder(found.spec.prefix, found.spec.run_id))


def spec(bucket: str, role: str, *, emulated: bool) -> Spec:
    """Of a new run each time: the name of an AutoML job is used up for good."""
    return Spec(
        run_id=str(uuid4()),
        forecast_id=str(uuid4()),
        installation="test",
        attempt=1,
        bucket=bucket,
        prefix="headroom",
        role_arn=role,
        frequency=Frequency.DAILY,
        horizon=HORIZON,
        levels=(0.1, 0.5, 0.9),
        country="US",
        emulated=emulated,
    )


async def stage(place: Place, folder: Path) -> None:
    """The input of the run, in the bucket."""
    values = 50 + 10 * np.sin(np.arange(STEPS) * 2 * np.pi / 7) + np.array([[0.0], [5.0]])
    last = np.full(2, STEPS - 1)
    panel = Panel(
        ("a", "b"), np.datetime64("2024-01-01T00:00:00"), Frequency.DAILY, values, last * 0, last,
        np.zeros(2), np.full(2, 100.0),
    )  # fmt: skip
    for file in staging.write_inputs(panel, HORIZON, 0, folder).files:
        await place.bucket.put_file(place.spec.input_prefix("forecast") + file.name, file)


async def test_what_is_not_there(place: Place) -> None:
    client, name = place.client, place.spec.name
    assert await client.automl(name) is None
    assert await client.model(name) is None
    assert await client.transform(name) is None
    assert await client.candidates(name) == []
    assert await client.list_automl(name) == []
    assert await client.list_models(name) == []
    assert await client.list_transforms(name) == []
    await client.stop_automl(name)
    await client.stop_transform(name)
    await client.delete_model(name)


async def test_who_and_where(place: Place) -> None:
    identity = await place.client.identity()
    assert identity.account.isdigit()
    assert identity.account == place.spec.role_arn.split(":")[4]
    for domain in await place.client.domains():
        assert domain.id.startswith("d-")
        assert domain.status
    await place.bucket.check()


async def test_files_of_a_run(place: Place, tmp_path: Path) -> None:
    bucket, folder = place.bucket, requests.run_folder(place.spec.prefix, place.spec.run_id)
    (tmp_path / "a").write_bytes(b"a" * 100_000)
    for key in ("1/b.csv", "1/a.csv", "10/a.csv"):
        await bucket.put_file(folder + key, tmp_path / "a")
    await bucket.put_file(f"{folder}1/a.csv", tmp_path / "a")
    assert await bucket.list(f"{folder}1/") == [f"{folder}1/a.csv", f"{folder}1/b.csv"]
    await bucket.get_file(f"{folder}1/b.csv", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a" * 100_000
    with pytest.raises(ValueError, match="ends in a slash"):
        await bucket.delete_prefix(f"{folder}1")
    for _ in range(2):
        await bucket.delete_prefix(f"{folder}1/")
    assert await bucket.list(folder) == [f"{folder}10/a.csv"]
    await bucket.delete_prefix(folder)


async def test_requests_that_are_wrong(place: Place) -> None:
    for wrong in ({"levels": (0.975,)}, {"country": "USA"}, {"horizon": 501}):
        with pytest.raises(Refused):
            await place.client.create_automl(requests.automl(replace(place.spec, **wrong), "forecast"))
        assert await place.client.automl(place.spec.name) is None


async def test_a_job_from_its_creation_to_its_stop(place: Place, tmp_path: Path) -> None:
    client, spec = place.client, place.spec
    await stage(place, tmp_path)
    request = requests.automl(spec, "forecast")
    arn = await client.create_automl(request)
    job = await client.automl(spec.name.upper())
    assert job is not None
    assert (job.name, job.arn, job.status, job.best, job.ended) == (spec.name, arn, JobStatus.IN_PROGRESS, None, None)
    assert job.created.tzinfo is not None
    assert requests.is_ours(request, job)
    assert await client.tags(arn) == spec.tags
    with pytest.raises(NameTaken):
        await client.create_automl(request | {"AutoMLJobName": spec.name.upper()})
    assert [line.name for line in await client.list_automl(spec.name, job.created - timedelta(minutes=1))] == [
        spec.name
    ]
    assert await client.list_automl(spec.name, job.created + timedelta(days=1)) == []
    for child in await client.children(arn, job.created):
        assert child.billed_seconds() >= 0
    for _ in range(2):
        await client.stop_automl(spec.name)
    assert await place.ended(spec.name) is JobStatus.STOPPED
    await client.stop_automl(spec.name)

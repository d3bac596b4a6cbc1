"""The client of SageMaker, on the emulator with its clock and its faults, and on sockets that misbehave.

What holds on AWS as well is in test_contract. Whatever is asked of the emulator here, the policy to paste must allow.
"""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from aiobotocore.config import AioConfig

from app.aws import faults, sagemaker
from app.aws.faults import Denied, NameTaken, OutcomeUnknown, QuotaReached, Refused, Throttled, Unreachable, plain
from app.aws.s3 import S3, Bucket
from app.aws.sagemaker import JobKind, JobStatus, RealSageMaker
from app.canvas import requests, staging
from app.canvas.requests import Spec
from app.domain.panel import Frequency, Panel
from app.emulator.server import started
from app.errors import Fatal, Transient

REGION, BUCKET, HORIZON = "eu-west-1", "headroom-client-tests", 7
SPEC = Spec(
    run_id="r0",
    forecast_id="f0",
    installation="ab12",
    attempt=1,
    bucket=BUCKET,
    prefix="headroom",
    role_arn="arn:aws:iam::123456789012:role/headroom-execution",
    frequency=Frequency.DAILY,
    horizon=HORIZON,
    levels=(0.1, 0.5, 0.9),
    emulated=True,
)
CONTAINER = {"Image": "ts:1", "ModelDataUrl": f"s3://{BUCKET}/model", "Environment": {"A": "b"}}
Call = Callable[[RealSageMaker], Awaitable[Any]]

_runs = count(1)


@dataclass(frozen=True)
class Emulator:
    url: str

    def control(self, method: str, path: str, **body: Any) -> Any:
        answer = httpx.request(method, f"{self.url}/_emulator{path}", json=body or None, timeout=60)
        return answer.raise_for_status().json()

    def arm(self, operation: str, fault: str, times: int = 1) -> None:
        self.control("POST", "/faults", operation=operation, fault=fault, times=times)

    def advance(self, seconds: float) -> None:
        self.control("POST", "/clock", advance=seconds)

    def calls(self, operation: str) -> int:
        return len(self.control("GET", f"/journal?operation={operation}")["calls"])


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with started() as url:
        yield Emulator(url)


@pytest.fixture
def emulator(running: Emulator, iam: Any) -> Iterator[Emulator]:
    """With its clock stopped, and nothing left of the tests before but S3. Afterwards: was all that was asked for
    allowed?"""
    running.control("POST", "/reset")
    running.control("POST", "/clock", stop=True)
    yield running
    policy = iam.service_policy(BUCKET, REGION, SPEC.role_arn.rsplit("/", 1)[1])
    assert policy.refused(running.control("GET", "/journal")["calls"], REGION) == []


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks once and waits a moment, so that giving up need not be waited for."""
    hasty = AioConfig(connect_timeout=3, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 1})
    monkeypatch.setattr(sagemaker, "_AGAIN", hasty)
    monkeypatch.setattr(sagemaker, "_ONCE", hasty)


@pytest.fixture
def client(emulator: Emulator) -> RealSageMaker:
    return RealSageMaker(REGION, emulator.url)


@pytest.fixture
async def bucket(emulator: Emulator) -> Bucket:
    """With the data of a model in it."""
    s3 = S3(REGION, emulator.url)
    async with s3.raw() as raw:
        with suppress(raw.exceptions.BucketAlreadyOwnedByYou):
            await raw.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        await raw.put_object(Bucket=BUCKET, Key="model", Body=b"m")
    emulator.control("DELETE", "/journal")  # what the test does is none of the client's
    return Bucket(s3, BUCKET)


@pytest.fixture
async def spec(bucket: Bucket, tmp_path: Path) -> Spec:
    """A run of its own, with its input in S3."""
    spec = replace(SPEC, run_id=f"r{next(_runs)}")
    values = 50 + 10 * np.sin(np.arange(60) * 2 * np.pi / 7) + np.zeros((2, 1))
    last = np.array([59, 59])
    panel = Panel(
        ("a", "b"), np.datetime64("2024-01-01T00:00:00"), Frequency.DAILY, values, last * 0, last,
        np.zeros(2), np.full(2, 100.0),
    )  # fmt: skip
    for file in staging.write_inputs(panel, HORIZON, 0, tmp_path / "input").files:
        await bucket.put_file(spec.input_prefix("forecast") + file.name, file)
    return spec


async def test_a_life(emulator: Emulator, client: RealSageMaker, bucket: Bucket, spec: Spec, tmp_path: Path) -> None:
    request = requests.automl(spec, "forecast")
    assert await client.automl(spec.name) is None
    arn = await client.create_automl(request)
    job = await client.automl(spec.name.upper())
    assert job is not None
    assert (job.name, job.arn, job.status, job.best, job.ended) == (spec.name, arn, JobStatus.IN_PROGRESS, None, None)
    assert job.created.tzinfo is not None
    assert requests.is_ours(request, job)
    assert await client.tags(arn) == spec.tags

    emulator.advance(3600)
    job = await client.automl(spec.name)
    assert job is not None
    assert job.status is JobStatus.COMPLETED
    assert job.status.is_terminal
    assert job.best is not None
    assert job.ended is not None
    assert job.best.containers[0]["ModelDataUrl"].startswith(spec.uri(spec.automl_prefix))
    assert job.best.metrics["AverageWeightedQuantileLoss"] > 0
    assert set(job.best.artifacts) == {"Explainability", "ModelInsights", "BacktestResults"}
    assert len(await client.candidates(spec.name)) == 7
    children = await client.children(arn, job.created, job.ended)
    assert {child.kind for child in children} == {JobKind.TRAINING}
    assert all(child.status.is_terminal and child.billed == child.billed_seconds() > 0 for child in children)

    assert await client.model(spec.name) is None
    await client.create_model(requests.model(spec, job.best.containers))
    model = await client.model(spec.name)
    assert model is not None
    assert model.containers == job.best.containers
    assert model.role_arn == spec.role_arn

    moved = requests.transform(spec, "forecast")
    name = spec.transform_name("forecast")
    assert await client.transform(name) is None
    await client.create_transform(moved)
    transform = await client.transform(name)
    assert transform is not None
    assert (transform.status, transform.started, transform.billed_seconds()) == (JobStatus.IN_PROGRESS, None, 0)
    assert requests.is_ours(moved, transform)
    emulator.advance(3600)
    transform = await client.transform(name)
    assert transform is not None
    assert transform.started is not None
    assert transform.ended is not None
    assert transform.status is JobStatus.COMPLETED
    assert transform.billed_seconds() == (transform.ended - transform.started).total_seconds() > 0
    (key,) = await bucket.list(spec.output_prefix("forecast"))
    await bucket.get_file(key, tmp_path / "out")
    assert (tmp_path / "out").read_text().startswith('"item_id","timestamp","p10","p50","p90"')

    assert [line.name for line in await client.list_models("hr-ab12-")] == [spec.name]
    assert [(line.name, line.status) for line in await client.list_transforms("hr-ab12-", job.created)] == [
        (name, JobStatus.COMPLETED)
    ]
    assert await client.list_automl("hr-ab12-", job.created + timedelta(days=1)) == []
    for _ in range(2):
        await client.delete_model(spec.name)
        await client.stop_transform(name)
        await client.stop_automl(spec.name)
    assert await client.model(spec.name) is None


async def test_a_domain_or_none(client: RealSageMaker, emulator: Emulator) -> None:
    (domain,) = await client.domains()
    assert domain.is_in_service
    assert domain.execution_role is not None
    assert "TimeSeriesForecastingSettings" in domain.canvas
    emulator.arm("ListDomains", "no_domain")
    assert await client.domains() == []


async def test_containers_by_processor(client: RealSageMaker, emulator: Emulator, spec: Spec) -> None:
    emulator.arm("CreateAutoMLJobV2", "cpu_containers")
    await client.create_automl(requests.automl(spec, "forecast"))
    emulator.advance(3600)
    job = await client.automl(spec.name)
    assert job is not None
    assert job.best is not None
    assert {"Image", "ModelDataUrl", "Environment"} <= set(job.best.containers[0])


async def test_jobs_that_end_otherwise(client: RealSageMaker, emulator: Emulator, spec: Spec) -> None:
    other = replace(spec, attempt=2)
    emulator.arm("CreateAutoMLJobV2", "fail_job")
    emulator.arm("CreateAutoMLJobV2", "no_candidate")
    request = requests.automl(spec, "forecast")
    for name in (spec.name, other.name):
        await client.create_automl(request | {"AutoMLJobName": name})
    emulator.advance(3600)
    failed, empty = await client.automl(spec.name), await client.automl(other.name)
    assert failed is not None
    assert empty is not None
    assert failed.status is JobStatus.FAILED
    assert failed.failure_reason
    assert (empty.status, empty.best) == (JobStatus.COMPLETED, None)


async def test_a_status_that_nobody_knows(client: RealSageMaker, emulator: Emulator, spec: Spec) -> None:
    await client.create_automl(requests.automl(spec, "forecast"))
    emulator.arm("DescribeAutoMLJobV2", "unknown_status")
    job = await client.automl(spec.name)
    assert job is not None
    assert job.status is JobStatus.UNKNOWN
    assert not job.status.is_terminal


async def test_children_are_the_jobs_own_and_asked_for_once(
    client: RealSageMaker, emulator: Emulator, spec: Spec
) -> None:
    request = requests.automl(spec, "forecast")
    mine = await client.create_automl(request)
    await client.create_automl(request | {"AutoMLJobName": replace(spec, attempt=2).name})
    emulator.advance(3600)
    job = await client.automl(spec.name)
    assert job is not None
    children = await client.children(mine, job.created)
    assert len(children) == 6
    assert emulator.calls("DescribeTrainingJob") == 12
    assert await client.children(mine, job.created) == children
    assert emulator.calls("DescribeTrainingJob") == 12
    assert await client.children(mine, job.created + timedelta(days=1)) == []


async def test_running_jobs_are_priced_by_the_clock_of_aws(
    client: RealSageMaker, emulator: Emulator, spec: Spec
) -> None:
    """An hour ahead of ours: by our own, what runs would not have begun."""
    emulator.advance(3600)
    arn = await client.create_automl(requests.automl(spec, "forecast"))
    job = await client.automl(spec.name)
    assert job is not None
    while not await client.children(arn, job.created):
        emulator.advance(10)
    emulator.advance(10)
    before = await client.children(arn, job.created)
    emulator.advance(20)
    after = await client.children(arn, job.created)
    assert {child.billed for child in after} == {None}
    assert [b.billed_seconds() - a.billed_seconds() for a, b in zip(before, after, strict=True)] == [20] * 6


@pytest.mark.usefixtures("bucket")
async def test_every_page_is_read(client: RealSageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sagemaker, "_PAGE", {"MaxResults": 2})
    names = {f"hr-ab12-page{number}" for number in range(5)}
    for name in names:
        await client.create_model(requests.model(SPEC, [CONTAINER]) | {"ModelName": name})
    assert {line.name for line in await client.list_models("hr-ab12-page")} == names


async def test_a_name_is_taken_once(client: RealSageMaker, emulator: Emulator, spec: Spec) -> None:
    request = requests.automl(spec, "forecast")
    await client.create_automl(request)
    emulator.advance(3600)
    await client.create_model(requests.model(spec, [CONTAINER]))
    again: list[Call] = [
        lambda client: client.create_automl(request | {"AutoMLJobName": spec.name.upper()}),
        lambda client: client.create_model(requests.model(spec, [CONTAINER])),
    ]
    for call in again:
        with pytest.raises(NameTaken):
            await call(client)


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        ("throttle", Throttled, False),
        ("resource_limit", QuotaReached, False),
        ("access_denied", Denied, False),
        ("server_error", OutcomeUnknown, False),
        ("server_error_after_success", OutcomeUnknown, True),
        ("lost_reply", OutcomeUnknown, True),
    ],
)
async def test_what_creates_is_asked_once(
    client: RealSageMaker, emulator: Emulator, spec: Spec, fault: str, error: type[Exception], *, done: bool
) -> None:
    creates: dict[str, tuple[Call, Call]] = {
        "CreateAutoMLJobV2": (
            lambda client: client.create_automl(requests.automl(spec, "forecast")),
            lambda client: client.automl(spec.name),
        ),
        "CreateModel": (
            lambda client: client.create_model(requests.model(spec, [CONTAINER])),
            lambda client: client.model(spec.name),
        ),
    }
    for operation, (create, look) in creates.items():
        emulator.arm(operation, fault)
        with pytest.raises(error) as raised:
            await create(client)
        assert emulator.calls(operation) == 1
        assert (await look(client) is not None) is done
        assert "123456789012" not in str(raised.value)
        assert "arn:" not in str(raised.value)


async def test_who_is_denied_is_told_what(client: RealSageMaker, emulator: Emulator) -> None:
    emulator.arm("DescribeModel", "access_denied")
    with pytest.raises(Denied, match=r"does not allow Headroom sagemaker:DescribeModel\. `headroom aws check`"):
        await client.model("hr-ab12-x")


async def test_what_reads_is_asked_again(client: RealSageMaker, emulator: Emulator) -> None:
    for fault in ("throttle", "lost_reply", "server_error"):
        emulator.control("DELETE", "/journal")
        emulator.arm("DescribeModel", fault)
        assert await client.model("hr-ab12-x") is None
        assert emulator.calls("DescribeModel") == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "error"), [("throttle", Throttled), ("server_error", Unreachable), ("lost_reply", Unreachable)]
)
async def test_reads_give_up(client: RealSageMaker, emulator: Emulator, fault: str, error: type[Exception]) -> None:
    emulator.arm("DescribeModel", fault)
    with pytest.raises(error):
        await client.model("hr-ab12-x")


async def test_a_request_that_is_wrong(client: RealSageMaker, spec: Spec) -> None:
    for wrong in (replace(spec, horizon=0), replace(spec, levels=(0.975,)), replace(spec, horizon=59)):
        with pytest.raises(Refused):
            await client.create_automl(requests.automl(wrong, "forecast"))


@asynccontextmanager
async def misbehaving(answer: bytes | None) -> AsyncIterator[str]:
    """A server that reads a request whole, and then says this and hangs up; None: cuts the connection off."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        if answer is None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


BROKEN_ANSWERS = {
    "cut off": None,
    "nothing": b"",
    "half an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "no JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "a page of an error": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", BROKEN_ANSWERS)
async def test_an_answer_that_is_none(case: str) -> None:
    async with misbehaving(BROKEN_ANSWERS[case]) as url:
        client = RealSageMaker(REGION, url)
        with pytest.raises(OutcomeUnknown):
            await client.create_automl(requests.automl(SPEC, "forecast"))
        with pytest.raises(Unreachable):
            await client.automl(SPEC.name)


@pytest.mark.usefixtures("impatient")
async def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = RealSageMaker(REGION, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(OutcomeUnknown):
            await client.create_automl(requests.automl(SPEC, "forecast"))


@pytest.mark.usefixtures("impatient")
async def test_nobody_there() -> None:
    """What was never sent was never done: that much is known."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        client = RealSageMaker(REGION, f"http://127.0.0.1:{gone.getsockname()[1]}")
    for call in (client.create_automl(requests.automl(SPEC, "forecast")), client.automl(SPEC.name)):
        with pytest.raises(Unreachable):
            await call


async def test_without_credentials(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(Denied, match="no usable AWS credentials"):
        await RealSageMaker(REGION, emulator.url).create_automl(requests.automl(SPEC, "forecast"))
    with pytest.raises(Denied, match="no usable AWS credentials"):
        await Bucket(S3(REGION, emulator.url), BUCKET).check()
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Denied, match="No AWS region"):
        await RealSageMaker(None, emulator.url).automl("x")


async def test_files_are_sealed_with_the_key(emulator: Emulator, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    await bucket.check()
    sealed = Bucket(S3(REGION, emulator.url), BUCKET, kms_key="alias/headroom")
    await sealed.put_file("headroom/sealed", tmp_path / "a")
    async with S3(REGION, emulator.url).raw() as raw:
        head = await raw.head_object(Bucket=BUCKET, Key="headroom/sealed")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/headroom")


async def test_a_bucket_that_fails(emulator: Emulator, bucket: Bucket, tmp_path: Path) -> None:
    emulator.arm("s3:ListObjects", "throttle")
    assert await bucket.list("headroom/nothing/") == []
    emulator.arm("s3:ListObjects", "access_denied")
    with pytest.raises(Denied):
        await bucket.list("headroom/nothing/")
    with pytest.raises(Refused):
        await bucket.get_file("headroom/nothing", tmp_path / "x")


async def test_a_bucket_that_is_not_there(running: Emulator) -> None:
    with pytest.raises(Refused):
        await Bucket(S3(REGION, running.url), "headroom-nowhere").check()


def test_the_words_of_aws_lose_their_numbers() -> None:
    words = "User: arn:aws:sts::123456789012:assumed-role/x with key ASIAABCDEFGHIJKLMNOP\r\nis not"
    assert plain(words) == "User: arn:aws:sts::…:assumed-role/x with key … is not"
    assert len(plain("x" * 1_000)) == 300


def test_each_error_says_whether_to_try_again() -> None:
    again = {Throttled, QuotaReached, Unreachable, OutcomeUnknown}
    never = {Denied, NameTaken, Refused}
    ours = {kind for kind in vars(faults).values() if isinstance(kind, type) and kind.__module__ == faults.__name__}
    assert ours == again | never
    assert all(issubclass(kind, Transient) for kind in again)
    assert all(issubclass(kind, Fatal) for kind in never)
    assert len({kind.slug for kind in ours}) == len(ours)

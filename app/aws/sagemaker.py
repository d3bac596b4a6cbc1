"""SageMaker as the managed run needs it: a port in our own words, and the client that speaks to AWS.

The port says what happens when nobody answers: a call that creates is made exactly once, and raises OutcomeUnknown
where it may have been carried out; all others are asked again, with jittered waits, before they raise. Every method
raises the errors of app/aws/faults, and what does not exist is None.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Protocol

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError, HTTPClientError

from app.aws.endpoint import certificates
from app.aws.faults import is_absent, plain, translated

_ONCE = AioConfig(connect_timeout=3, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 1})
_AGAIN = AioConfig(connect_timeout=3, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4})
_AT_ONCE = 4
"""Describe calls in flight together."""
_MARGIN = timedelta(minutes=1)
_PAGE: dict[str, Any] = {"MaxResults": 100}

Container = Mapping[str, Any]
"""Image, ModelDataUrl and Environment, to be handed on word for word."""


class JobStatus(StrEnum):
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    UNKNOWN = "Unknown"
    """a word we do not know: wait and see"""

    @classmethod
    def _missing_(cls, value: object) -> "JobStatus":
        return cls.UNKNOWN

    @property
    def is_terminal(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.STOPPED)


class JobKind(StrEnum):
    """What AutoML starts on its own, and what is billed by its instances' time."""

    TRAINING = "training"
    PROCESSING = "processing"
    TRANSFORM = "transform"


@dataclass(frozen=True)
class Candidate:
    """One model that AutoML tried. `metrics` are AWS's own figures, of its own hold-out; `artifacts` S3 prefixes by
    name: Explainability, ModelInsights, BacktestResults."""

    name: str
    status: JobStatus
    containers: tuple[Container, ...]
    metrics: dict[str, float]
    artifacts: dict[str, str]
    failure_reason: str | None


@dataclass(frozen=True)
class AutoMLJob:
    """`secondary` is a word for people alone: its order is not documented. `best` comes near the end, or never."""

    name: str
    arn: str
    status: JobStatus
    secondary: str
    failure_reason: str | None
    partial_failures: tuple[str, ...]
    best: Candidate | None
    output_path: str
    role_arn: str
    artifacts: dict[str, str]
    created: datetime
    ended: datetime | None


@dataclass(frozen=True)
class TransformJob:
    """Billed from `started` to `ended`, for each instance. `seen` is when AWS told this, by its own clock."""

    name: str
    arn: str
    status: JobStatus
    failure_reason: str | None
    model_name: str
    output_path: str
    instance_type: str
    instance_count: int
    created: datetime
    started: datetime | None
    ended: datetime | None
    seen: datetime

    def billed_seconds(self) -> float:
        """Of one instance; when it runs, until it was seen."""
        return _span(self.started, self.ended or self.seen)


@dataclass(frozen=True)
class Model:
    name: str
    arn: str
    role_arn: str
    containers: tuple[Container, ...]
    created: datetime


@dataclass(frozen=True)
class Listed:
    """One line of a list; a model has no status."""

    name: str
    arn: str
    status: JobStatus | None
    created: datetime


@dataclass(frozen=True)
class ChildJob:
    """A job that AutoML started. `billed` is what AWS says it bills, seconds of one instance, once it says so.

    `instance_type` is None where AWS does not tell.
    """

    kind: JobKind
    name: str
    arn: str
    status: JobStatus
    instance_type: str | None
    instance_count: int
    billed: int | None
    started: datetime | None
    ended: datetime | None
    seen: datetime

    def billed_seconds(self) -> float:
        """As of a transform."""
        return float(self.billed) if self.billed is not None else _span(self.started, self.ended or self.seen)


@dataclass(frozen=True)
class Identity:
    account: str
    arn: str


@dataclass(frozen=True)
class Domain:
    """A Studio domain. `canvas` are its CanvasAppSettings as AWS gives them."""

    id: str
    name: str
    status: str
    execution_role: str | None
    canvas: Mapping[str, Any]

    @property
    def is_in_service(self) -> bool:
        return self.status == "InService"


class SageMaker(Protocol):
    async def create_automl(self, request: Mapping[str, Any]) -> str:
        """The ARN of the new job. Made once, never repeated. Raises NameTaken."""
        ...

    async def automl(self, name: str) -> AutoMLJob | None: ...

    async def stop_automl(self, name: str) -> None:
        """Ask for it to end; it ends later. A job that has ended, or never was, is none the worse."""
        ...

    async def list_automl(self, name_contains: str, since: datetime | None = None) -> list[Listed]: ...

    async def candidates(self, name: str) -> list[Candidate]:
        """All that the job tried, base models too; none of a job that is not there."""
        ...

    async def create_model(self, request: Mapping[str, Any]) -> str:
        """The ARN of the new model. Made once, never repeated. Raises NameTaken."""
        ...

    async def model(self, name: str) -> Model | None: ...

    async def delete_model(self, name: str) -> None:
        """Takes the entry out of the registry; what it is made of stays in S3. Safe to repeat."""
        ...

    async def list_models(self, name_contains: str, since: datetime | None = None) -> list[Listed]: ...

    async def create_transform(self, request: Mapping[str, Any]) -> str:
        """The ARN of the new job. Made once, never repeated. Raises NameTaken."""
        ...

    async def transform(self, name: str) -> TransformJob | None: ...

    async def stop_transform(self, name: str) -> None:
        """As `stop_automl`."""
        ...

    async def list_transforms(self, name_contains: str, since: datetime | None = None) -> list[Listed]: ...

    async def children(self, automl_arn: str, since: datetime, until: datetime | None = None) -> list[ChildJob]:
        """The jobs that an AutoML job started in a span of time. AWS cannot be asked for them: every job of the
        account in that span is listed and described, but each that ended only once."""
        ...

    async def tags(self, arn: str) -> dict[str, str]: ...

    async def identity(self) -> Identity:
        """Whose credentials these are."""
        ...

    async def domains(self) -> list[Domain]: ...


class RealSageMaker:
    """The client for AWS, or for what speaks its protocol at `endpoint_url`. Credentials are found in the usual
    places."""

    def __init__(self, region: str | None = None, endpoint_url: str | None = None) -> None:
        self._session = aioboto3.Session(region_name=region)
        self._endpoint_url = endpoint_url
        self._ended: dict[str, tuple[str | None, ChildJob]] = {}

    async def create_automl(self, request: Mapping[str, Any]) -> str:
        async with self._creating() as client:
            return str((await _ask(client, "create_auto_ml_job_v2", request))["AutoMLJobArn"])

    async def automl(self, name: str) -> AutoMLJob | None:
        found = await self._described("describe_auto_ml_job_v2", AutoMLJobName=name)
        return _automl(found) if found else None

    async def stop_automl(self, name: str) -> None:
        await self._ended_by("stop_auto_ml_job", AutoMLJobName=name)

    async def list_automl(self, name_contains: str, since: datetime | None = None) -> list[Listed]:
        rows = await self._listed("list_auto_ml_jobs", "AutoMLJobSummaries", _filter(name_contains, since))
        return [_line(row, "AutoMLJob") for row in rows]

    async def candidates(self, name: str) -> list[Candidate]:
        rows = await self._listed("list_candidates_for_auto_ml_job", "Candidates", {"AutoMLJobName": name})
        return [_candidate(row) for row in rows]

    async def create_model(self, request: Mapping[str, Any]) -> str:
        async with self._creating() as client:
            return str((await _ask(client, "create_model", request))["ModelArn"])

    async def model(self, name: str) -> Model | None:
        found = await self._described("describe_model", ModelName=name)
        return _model(found) if found else None

    async def delete_model(self, name: str) -> None:
        await self._ended_by("delete_model", ModelName=name)

    async def list_models(self, name_contains: str, since: datetime | None = None) -> list[Listed]:
        rows = await self._listed("list_models", "Models", _filter(name_contains, since))
        return [_line(row, "Model") for row in rows]

    async def create_transform(self, request: Mapping[str, Any]) -> str:
        async with self._creating() as client:
            return str((await _ask(client, "create_transform_job", request))["TransformJobArn"])

    async def transform(self, name: str) -> TransformJob | None:
        found = await self._described("describe_transform_job", TransformJobName=name)
        return _transform(found) if found else None

    async def stop_transform(self, name: str) -> None:
        await self._ended_by("stop_transform_job", TransformJobName=name)

    async def list_transforms(self, name_contains: str, since: datetime | None = None) -> list[Listed]:
        rows = await self._listed("list_transform_jobs", "TransformJobSummaries", _filter(name_contains, since))
        return [_line(row, "TransformJob") for row in rows]

    async def children(self, automl_arn: str, since: datetime, until: datetime | None = None) -> list[ChildJob]:
        span = _PAGE | {"CreationTimeAfter": since - _MARGIN}
        if until:
            span["CreationTimeBefore"] = until + _MARGIN
        gate = asyncio.Semaphore(_AT_ONCE)
        found: list[ChildJob] = []
        for kind, how in _CHILDREN.items():
            rows = await self._listed(how.list, how.rows, span)
            jobs = await asyncio.gather(*(self._child(kind, row[f"{how.field}Name"], gate) for row in rows))
            found += [job for parent, job in filter(None, jobs) if parent == automl_arn]
        return found

    async def tags(self, arn: str) -> dict[str, str]:
        rows = await self._listed("list_tags", "Tags", {"ResourceArn": arn})
        return {row["Key"]: row["Value"] for row in rows}

    async def identity(self) -> Identity:
        async with translated(), self._client("sts", _AGAIN) as client:
            said = await _ask(client, "get_caller_identity", {})
        return Identity(account=said["Account"], arn=said["Arn"])

    async def domains(self) -> list[Domain]:
        rows = await self._listed("list_domains", "Domains", {})
        found = [await self._described("describe_domain", DomainId=row["DomainId"]) for row in rows]
        return [_domain(said) for said in found if said]

    async def _child(self, kind: JobKind, name: str, gate: asyncio.Semaphore) -> tuple[str | None, ChildJob] | None:
        key = f"{kind}/{name}"
        if key in self._ended:
            return self._ended[key]
        how = _CHILDREN[kind]
        async with gate:
            said = await self._described(how.describe, **{f"{how.field}Name": name})
        if said is None:
            return None
        found = said.get("AutoMLJobArn"), _child(kind, said)
        if found[1].status.is_terminal:
            if len(self._ended) >= 10_000:
                self._ended.clear()
            self._ended[key] = found
        return found

    async def _described(self, operation: str, **named: str) -> dict[str, Any] | None:
        async with self._reading() as client:
            try:
                return await _ask(client, operation, named)
            except ClientError as error:
                if is_absent(error):
                    return None
                raise

    async def _ended_by(self, operation: str, **named: str) -> None:
        """A stop or a delete of what may be gone, or have ended, already: then there is nothing to do."""
        async with self._reading() as client:
            try:
                await _ask(client, operation, named)
            except ClientError as error:
                if not is_absent(error) and error.response["Error"]["Code"] != "ValidationException":
                    raise

    async def _listed(self, operation: str, rows: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All pages."""
        found: list[dict[str, Any]] = []
        async with self._reading() as client:
            token: dict[str, str] = {}
            while True:
                try:
                    page = await _ask(client, operation, {**asked, **token})
                except ClientError as error:
                    if is_absent(error):
                        return found
                    raise
                found += page[rows]
                if not page.get("NextToken"):
                    return found
                token = {"NextToken": page["NextToken"]}

    @asynccontextmanager
    async def _creating(self) -> AsyncIterator[Any]:
        async with translated(creates=True), self._client("sagemaker", _ONCE) as client:
            yield client

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Any]:
        async with translated(), self._client("sagemaker", _AGAIN) as client:
            yield client

    @asynccontextmanager
    async def _client(self, service: str, config: AioConfig) -> AsyncIterator[Any]:
        verify = certificates(self._endpoint_url)
        async with self._session.client(
            service, endpoint_url=self._endpoint_url, config=config, verify=verify
        ) as client:
            yield client


async def _ask(client: Any, operation: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """One call. An answer that lacks what every answer has is none: botocore lets any body pass that comes with 200."""
    said: dict[str, Any] = await getattr(client, operation)(**asked)
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation])
    if model.output_shape and not said.keys() >= set(model.output_shape.required_members):
        raise HTTPClientError(error=f"the answer to {model.name} is not whole")
    return said


@dataclass(frozen=True)
class _Asking:
    """How one kind of job is listed and described."""

    list: str
    rows: str
    describe: str
    field: str


_CHILDREN = {
    JobKind.TRAINING: _Asking("list_training_jobs", "TrainingJobSummaries", "describe_training_job", "TrainingJob"),
    JobKind.PROCESSING: _Asking(
        "list_processing_jobs", "ProcessingJobSummaries", "describe_processing_job", "ProcessingJob"
    ),
    JobKind.TRANSFORM: _Asking(
        "list_transform_jobs", "TransformJobSummaries", "describe_transform_job", "TransformJob"
    ),
}


def _filter(name_contains: str, since: datetime | None) -> dict[str, Any]:
    return _PAGE | {"NameContains": name_contains} | ({"CreationTimeAfter": since} if since else {})


def _automl(said: Mapping[str, Any]) -> AutoMLJob:
    best = said.get("BestCandidate")
    return AutoMLJob(
        name=said["AutoMLJobName"],
        arn=said["AutoMLJobArn"],
        status=JobStatus(said["AutoMLJobStatus"]),
        secondary=said.get("AutoMLJobSecondaryStatus", ""),
        failure_reason=_reason(said),
        partial_failures=tuple(
            plain(one.get("PartialFailureMessage", "")) for one in said.get("PartialFailureReasons", ())
        ),
        best=_candidate(best) if best else None,
        output_path=said["OutputDataConfig"]["S3OutputPath"],
        role_arn=said["RoleArn"],
        artifacts=dict(said.get("AutoMLJobArtifacts", {})),
        created=said["CreationTime"],
        ended=said.get("EndTime"),
    )


def _candidate(said: Mapping[str, Any]) -> Candidate:
    properties = said.get("CandidateProperties", {})
    told = sorted(properties.get("CandidateMetrics", ()), key=lambda one: one.get("Set") != "Train")
    metrics = {_metric(one): float(one["Value"]) for one in told if "Value" in one}
    if final := said.get("FinalAutoMLJobObjectiveMetric"):
        metrics.setdefault(_metric(final), float(final["Value"]))
    return Candidate(
        name=said["CandidateName"],
        status=JobStatus(said["CandidateStatus"]),
        containers=_containers(said),
        metrics=metrics,
        artifacts=dict(properties.get("CandidateArtifactLocations", {})),
        failure_reason=_reason(said),
    )


def _metric(said: Mapping[str, Any]) -> str:
    return str(said.get("StandardMetricName") or said.get("MetricName", "?"))


def _containers(said: Mapping[str, Any]) -> tuple[Container, ...]:
    """Of the two places that are known, the one that is filled: `InferenceContainers`, or by kind of processor, where
    any instance can run what is there for CPUs."""
    by_processor = said.get("InferenceContainerDefinitions", {})
    return tuple(said.get("InferenceContainers") or by_processor.get("CPU") or ())


def _model(said: Mapping[str, Any]) -> Model:
    primary = said.get("PrimaryContainer")
    return Model(
        name=said["ModelName"],
        arn=said["ModelArn"],
        role_arn=said.get("ExecutionRoleArn", ""),
        containers=tuple(said.get("Containers") or ([primary] if primary else [])),
        created=said["CreationTime"],
    )


def _transform(said: Mapping[str, Any]) -> TransformJob:
    return TransformJob(
        name=said["TransformJobName"],
        arn=said["TransformJobArn"],
        status=JobStatus(said["TransformJobStatus"]),
        failure_reason=_reason(said),
        model_name=said["ModelName"],
        output_path=said.get("TransformOutput", {}).get("S3OutputPath", ""),
        instance_type=said["TransformResources"]["InstanceType"],
        instance_count=int(said["TransformResources"]["InstanceCount"]),
        created=said["CreationTime"],
        started=said.get("TransformStartTime"),
        ended=said.get("TransformEndTime"),
        seen=_seen(said),
    )


def _child(kind: JobKind, said: Mapping[str, Any]) -> ChildJob:
    match kind:
        case JobKind.TRAINING:
            resources: Sequence[Mapping[str, Any]] = [said["ResourceConfig"]]
            resources = said["ResourceConfig"].get("InstanceGroups") or resources
        case JobKind.PROCESSING:
            resources = [said["ProcessingResources"]["ClusterConfig"]]
        case JobKind.TRANSFORM:
            resources = [said["TransformResources"]]
    word = kind.value.capitalize()
    return ChildJob(
        kind=kind,
        name=said[f"{word}JobName"],
        arn=said[f"{word}JobArn"],
        status=JobStatus(said[f"{word}JobStatus"]),
        instance_type=resources[0].get("InstanceType"),
        instance_count=sum(int(one.get("InstanceCount", 1)) for one in resources),
        billed=said.get("BillableTimeInSeconds"),
        started=said.get(f"{word}StartTime"),
        ended=said.get(f"{word}EndTime"),
        seen=_seen(said),
    )


def _line(row: Mapping[str, Any], what: str) -> Listed:
    status = row.get(f"{what}Status")
    return Listed(
        name=row[f"{what}Name"],
        arn=row[f"{what}Arn"],
        status=JobStatus(status) if status else None,
        created=row["CreationTime"],
    )


def _domain(said: Mapping[str, Any]) -> Domain:
    defaults = said.get("DefaultUserSettings", {})
    return Domain(
        id=said["DomainId"],
        name=said.get("DomainName", ""),
        status=said.get("Status", ""),
        execution_role=defaults.get("ExecutionRole"),
        canvas=defaults.get("CanvasAppSettings", {}),
    )


def _reason(said: Mapping[str, Any]) -> str | None:
    reason = said.get("FailureReason")
    return plain(reason) if reason else None


def _seen(said: Mapping[str, Any]) -> datetime:
    """When AWS gave an answer, by its own clock, on which the times of its jobs are."""
    date = said.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)


def _span(started: datetime | None, until: datetime) -> float:
    return max(0.0, (until - started).total_seconds()) if started else 0.0

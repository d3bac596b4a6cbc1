"""What is asked of SageMaker: the bodies of the three creating calls, the names they go by, and when not to ask at all.

Pure: the same run asks for the same, to the letter, so that a request whose answer was lost is known again. It leaves
out who sends them (aws) and when (lifecycle).

    s3://bucket/prefix/runs/{run}/{attempt}/input/{purpose}/….csv     one folder per origin of a forecast
                                            output/{purpose}/….out    what the transform of the same name leaves
                                            automl/…                  AutoML's own artifacts

A purpose is why a forecast is made: `forecast`, or `window-1` for the newest back-test window, and so on.
"""

import hashlib
import json
import re
from base64 import b32encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.aws.sagemaker import AutoMLJob, Container, TransformJob
from app.domain import quantiles
from app.domain.panel import Frequency
from app.domain.run import RunError

Request = dict[str, Any]

ITEM, TIME, TARGET = "item_id", "timestamp", "target_value"
"""The columns of every file that goes to Canvas, before the regressors."""

CALENDAR = ("end_of_quarter", "holiday", "weekend")
"""The calendar's regressors, as `calendar.events` names them."""

FORECAST = "forecast"
"""The purpose of the transform over the full history."""

RESULTS = "forecasts/"
"""The prefix under which results are left for others to read."""

FIRST, AGAIN = "first", "again"
"""The trainings of a run: one before the windows that are scored; and, only where a setting asks for it, another on the
full history, for the forecast alone."""

MAX_HORIZON = 500
STEPS_PER_HORIZON = 4
MAX_QUANTILES = 5
MIN_ITEM_VALUES = 4
MAX_ITEMS = 5_000_000
MAX_ROWS = 3_000_000_000
MAX_BYTES = 30_000_000_000
MAX_FEATURES = 13
"""Numeric columns beside item, time and target."""

ALGORITHMS = ("cnn-qr", "deepar", "prophet", "npts", "arima", "ets")
"""What may be named to train less than all."""

_FREQUENCIES = {Frequency.DAILY: "D", Frequency.HOURLY: "H"}
_INSTALLATION = re.compile(r"[a-z0-9]{4}")
_PURPOSE = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True)
class Spec:
    """Everything that decides what is asked for one attempt of one run. `regressors` as `staging.regressors` names
    them; `levels` ascending; no `algorithms` means all; no `country`, no holidays of AWS's own."""

    run_id: str
    forecast_id: str
    installation: str
    attempt: int
    bucket: str
    prefix: str
    role_arn: str
    frequency: Frequency
    horizon: int
    levels: tuple[float, ...]
    country: str | None = None
    regressors: tuple[str, ...] = ()
    max_runtime_seconds: int = 1800
    algorithms: tuple[str, ...] = ()
    transform_instance: str = "ml.m5.xlarge"
    kms_key: str | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    emulated: bool = False

    def __post_init__(self) -> None:
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("a private network is given by its subnets and its security groups, both or neither")

    @property
    def name(self) -> str:
        """Of the first AutoML job, and of the model made of its best candidate."""
        return self.training_name(FIRST)

    def training_name(self, training: str) -> str:
        """Of the AutoML job of a training, and of the model made of its best candidate."""
        return job_name(self.installation, self.run_id, self.attempt, None if training == FIRST else training)

    def transform_name(self, purpose: str) -> str:
        return job_name(self.installation, self.run_id, self.attempt, purpose)

    @property
    def folder(self) -> str:
        """The prefix of the keys of this attempt; ends in a slash."""
        return f"{run_folder(self.prefix, self.run_id)}{self.attempt}/"

    def input_prefix(self, purpose: str) -> str:
        return f"{self.folder}input/{_checked(purpose)}/"

    def output_prefix(self, purpose: str) -> str:
        return f"{self.folder}output/{_checked(purpose)}/"

    @property
    def automl_prefix(self) -> str:
        return f"{self.folder}automl/"

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    @property
    def tags(self) -> dict[str, str]:
        found = {
            "headroom:installation": self.installation,
            "headroom:run": self.run_id,
            "headroom:forecast": self.forecast_id,
        }
        return found | ({"headroom:emulated": "true"} if self.emulated else {})


def run_folder(prefix: str, run_id: str) -> str:
    """Where all attempts of a run keep their objects, under the prefix that Headroom was given."""
    return f"{prefix.strip('/')}/runs/{run_id}/".lstrip("/")


def results_folder(forecast_id: object) -> str:
    """The prefix of one forecast's results; ends in a slash."""
    return f"{RESULTS}{forecast_id}/"


def results_key(forecast_id: object) -> str:
    return f"{results_folder(forecast_id)}canvas.parquet"


def name_prefix(installation: str) -> str:
    """How every name of an installation begins."""
    if not _INSTALLATION.fullmatch(installation):
        raise ValueError(f"an installation is 4 lowercase letters and digits, not {installation!r}")
    return f"hr-{installation}-"


def job_name(installation: str, run_id: str, attempt: int, purpose: str | None = None) -> str:
    """32 characters that follow from what is asked, so that asking twice meets the first.

    SageMaker's names know no case and an AutoML job cannot be deleted: its name is a token that lasts.
    """
    parts = [installation, run_id, str(attempt)] + ([_checked(purpose)] if purpose else [])
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return name_prefix(installation) + b32encode(digest).decode().lower()[:24]


def automl(spec: Spec, trained_on: str, training: str = FIRST) -> Request:
    """CreateAutoMLJobV2, learning from the input of the purpose `trained_on`.

    Filling and aggregation are spelled out since the service's defaults, 0 and sum, would invent values. What is
    left out is left out on purpose: a deployment costs an endpoint by the hour, and time series allow neither a
    split of the data nor more than one candidate.
    """
    forecasting = {
        "ForecastFrequency": _FREQUENCIES[spec.frequency],
        "ForecastHorizon": spec.horizon,
        "ForecastQuantiles": [quantiles.name(level) for level in spec.levels],
        "TimeSeriesConfig": {
            "ItemIdentifierAttributeName": ITEM,
            "TimestampAttributeName": TIME,
            "TargetAttributeName": TARGET,
        },
        "Transformations": {
            "Filling": {TARGET: {"middlefill": "median", "backfill": "median"}},
            "Aggregation": {TARGET: "avg"},
        },
        "CompletionCriteria": {"MaxAutoMLJobRuntimeInSeconds": spec.max_runtime_seconds},
    }
    if spec.country:
        forecasting["HolidayConfig"] = [{"CountryCode": spec.country.upper()}]
    if spec.algorithms:
        forecasting["CandidateGenerationConfig"] = {"AlgorithmsConfig": [{"AutoMLAlgorithms": list(spec.algorithms)}]}
    request: Request = {
        "AutoMLJobName": spec.training_name(training),
        "AutoMLJobInputDataConfig": [
            {
                "ChannelType": "training",
                "ContentType": "text/csv;header=present",
                "CompressionType": "None",
                "DataSource": {"S3DataSource": _source(spec.uri(spec.input_prefix(trained_on)))},
            }
        ],
        "OutputDataConfig": {"S3OutputPath": spec.uri(spec.automl_prefix)} | _key(spec, "KmsKeyId"),
        "AutoMLProblemTypeConfig": {"TimeSeriesForecastingJobConfig": forecasting},
        "AutoMLJobObjective": {"MetricName": "AverageWeightedQuantileLoss"},
        "RoleArn": spec.role_arn,
        "Tags": _tags(spec),
    }
    security = _key(spec, "VolumeKmsKeyId") | _network(spec)
    if security:
        request["SecurityConfig"] = security
    return request


def model(spec: Spec, containers: Sequence[Container], training: str = FIRST) -> Request:
    """CreateModel: a candidate's containers, handed on word for word."""
    return {
        "ModelName": spec.training_name(training),
        "Containers": [dict(container) for container in containers],
        "ExecutionRoleArn": spec.role_arn,
        "Tags": _tags(spec),
    } | _network(spec)


def transform(spec: Spec, purpose: str, training: str = FIRST) -> Request:
    """CreateTransformJob over the input of a purpose, with the model of a training.

    Files go whole, never by line: a line is no series, and only the first has the header. A payload of 0 sends a
    file in chunks, so that the limit of 100 MB on one request does not bind.
    """
    return {
        "TransformJobName": spec.transform_name(purpose),
        "ModelName": spec.training_name(training),
        "MaxPayloadInMB": 0,
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": 3600},
        "TransformInput": {
            "DataSource": {"S3DataSource": _source(spec.uri(spec.input_prefix(purpose)))},
            "ContentType": "text/csv",
            "CompressionType": "None",
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": spec.uri(spec.output_prefix(purpose)), "AssembleWith": "Line"}
        | _key(spec, "KmsKeyId"),
        "TransformResources": {"InstanceType": spec.transform_instance, "InstanceCount": 1}
        | _key(spec, "VolumeKmsKeyId"),
        "Tags": _tags(spec),
    }


def spec_hash(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_ours(request: Mapping[str, Any], job: AutoMLJob | TransformJob) -> bool:
    """Whether a job that bears the name of this request was made by it: its output goes to the very place, which
    holds the run's id, under the role or with the model that was asked for."""
    match job:
        case AutoMLJob():
            return (job.output_path.rstrip("/"), job.role_arn) == (
                request["OutputDataConfig"]["S3OutputPath"].rstrip("/"),
                request["RoleArn"],
            )
        case TransformJob():
            return (job.output_path.rstrip("/"), job.model_name) == (
                request["TransformOutput"]["S3OutputPath"].rstrip("/"),
                request["ModelName"],
            )


@dataclass(frozen=True)
class Size:
    """What a fleet asks of the service. `steps` are those of the longest history that is trained on, `fewest_values`
    what the shortest of its servers has; `features` the known-ahead columns of the dataset. `bytes` 0: not known."""

    servers: int
    steps: int
    fewest_values: int
    horizon: int
    levels: tuple[float, ...]
    features: int = 0
    bytes: int = 0


def limits(size: Size) -> RunError | None:
    """Why the service would not take this fleet, in words for a person; None when it would."""
    longest = min(MAX_HORIZON, size.steps // STEPS_PER_HORIZON)
    rows = size.servers * (size.steps + size.horizon)
    if not size.servers:
        return RunError("canvas-no-servers", "No server has enough values for Canvas.")
    if size.horizon > MAX_HORIZON:
        return RunError(
            "canvas-horizon",
            f"Canvas forecasts at most {MAX_HORIZON} steps ahead; {size.horizon:,} were asked for.",
        )
    if size.horizon > longest:
        return RunError(
            "canvas-history",
            f"Canvas forecasts at most a quarter of the steps that it learns from: {size.horizon:,} steps ahead need "
            f"{size.horizon * STEPS_PER_HORIZON:,} steps of history, and there are {size.steps:,}. Ask for a horizon "
            f"of at most {longest:,}, or give a longer history.",
        )
    if size.fewest_values < MIN_ITEM_VALUES:
        return RunError(
            "canvas-history",
            f"Canvas needs at least {MIN_ITEM_VALUES} values of each server; one has {size.fewest_values}.",
        )
    if (odd := quantile_limits(size.levels)) is not None:
        return odd
    if size.features + len(CALENDAR) > MAX_FEATURES:
        return RunError(
            "canvas-features",
            f"Canvas takes at most {MAX_FEATURES - len(CALENDAR)} known-ahead columns beside its calendar; this "
            f"dataset has {size.features}.",
        )
    if size.servers > MAX_ITEMS or rows > MAX_ROWS or size.bytes > MAX_BYTES:
        return RunError(
            "canvas-size",
            f"Canvas takes at most {MAX_ITEMS:,} servers, {MAX_ROWS:,} rows and {MAX_BYTES // 10**9} GB; this fleet "
            f"has {size.servers:,} servers and {rows:,} rows.",
        )
    return None


def quantile_limits(levels: Sequence[float]) -> RunError | None:
    """Why the service has no such quantiles, in words for a person; None when it has."""
    named = [quantiles.name(level) for level in levels]
    odd = [name for name in named if not re.fullmatch(r"p[1-9]\d?", name)]
    if odd:
        return RunError(
            "canvas-quantiles",
            f"Canvas knows the quantiles p1 to p99 in whole percents only, not {', '.join(odd)}.",
        )
    if len(named) > MAX_QUANTILES:
        return RunError(
            "canvas-quantiles",
            f"Canvas gives at most {MAX_QUANTILES} quantiles; p10, p50 and p90 are always among them, which makes "
            f"{len(named)} here: {', '.join(named)}.",
        )
    return None


def regressors(known_ahead: Sequence[str]) -> tuple[str, ...]:
    """The names of the regressor columns: the calendar's, then the dataset's own, set apart where they would clash."""
    taken = [ITEM, TIME, TARGET, *CALENDAR]
    for name in known_ahead:
        while name.lower() in {other.lower() for other in taken}:
            name += "_"
        taken.append(name)
    return tuple(taken[3:])


def scorable_windows(steps: int, horizon: int, wanted: int) -> int:
    """How many back-test windows can be held out, and what is left still be enough to train on."""
    return max(0, min(wanted, steps // horizon - STEPS_PER_HORIZON))


def _source(uri: str) -> dict[str, str]:
    return {"S3DataType": "S3Prefix", "S3Uri": uri}


def _key(spec: Spec, field: str) -> dict[str, Any]:
    return {field: spec.kms_key} if spec.kms_key else {}


def _network(spec: Spec) -> dict[str, Any]:
    if not spec.subnets:
        return {}
    return {"VpcConfig": {"Subnets": list(spec.subnets), "SecurityGroupIds": list(spec.security_groups)}}


def _tags(spec: Spec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in spec.tags.items()]


def _checked(purpose: str) -> str:
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError(f"{purpose!r} is no purpose of a transform")
    return purpose

"""An emulator in a thread, plain boto3 clients that check nothing themselves, and a small fleet in S3."""

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
from botocore.config import Config

from app.emulator.server import started

ROLE = "arn:aws:iam::123456789012:role/anyone"
BUCKET = "emulator-tests"
CREDENTIALS = "AWS4-HMAC-SHA256 Credential=anyone/20260101/eu-west-1/sagemaker/aws4_request, Signature=0"
HORIZON, STEPS, ITEMS = 14, 400, 3

_numbers = count(1)


def fleet(items: int = ITEMS, steps: int = STEPS, ahead: int = 0, seed: int = 1) -> pd.DataFrame:
    """Daily rows per server; the last `ahead` have no target, only the known-ahead column `promotion`."""
    random = np.random.default_rng(seed)
    days = pd.date_range("2023-01-01", periods=steps + ahead)
    weekly = 40 + 10 * np.sin(np.arange(steps + ahead) * 2 * np.pi / 7)
    return pd.concat(
        pd.DataFrame(
            {
                "server_id": f"server-{seed}-{number}",
                "timestamp": days.strftime("%Y-%m-%d"),
                "cpu": np.where(np.arange(steps + ahead) < steps, weekly + random.normal(0, 2, steps + ahead), np.nan),
                "promotion": (np.arange(steps + ahead) % 30 == 0).astype(int),
            }
        )
        for number in range(items)
    )


def in_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def read_out(content: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content), parse_dates=["timestamp"])


def changed(request: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the member at `a.0.b` set, or without it when the value is None."""
    copy = deepcopy(request)
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    holder: Any = copy
    for part in way:
        holder = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return copy


@dataclass
class Emulator:
    """A running emulator, its clients, and good requests to start from. Names are new each time."""

    bucket, role, horizon, items = BUCKET, ROLE, HORIZON, ITEMS
    fleet, in_csv, read_out, changed = map(staticmethod, (fleet, in_csv, read_out, changed))

    url: str
    sagemaker: Any = field(init=False)
    s3: Any = field(init=False)

    def __post_init__(self) -> None:
        self.sagemaker, self.s3 = self.client("sagemaker"), self.client("s3")

    def client(self, service: str, attempts: int = 1) -> Any:
        config = Config(
            parameter_validation=False, retries={"mode": "standard", "total_max_attempts": attempts}, read_timeout=30
        )
        keys = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything"}
        return boto3.client(service, endpoint_url=self.url, region_name="eu-west-1", config=config, **keys)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_emulator{path}", content, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return json.load(refused)

    def post(self, operation: str, body: Any, credentials: str = CREDENTIALS) -> tuple[int, Any, Any]:
        """A call that no library has looked at: status, answer, headers."""
        headers = {
            "X-Amz-Target": f"SageMaker.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": credentials,
        }
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null"), answer.headers
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused), refused.headers

    def advance(self, seconds: float) -> None:
        self.control("POST", "/clock", {"advance": seconds})

    def arm(self, operation: str, fault: str, times: int = 1) -> None:
        armed = self.control("POST", "/faults", {"operation": operation, "fault": fault, "times": times})
        assert "error" not in armed, armed

    def put(self, key: str, content: bytes) -> str:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def automl(self, **forecasting: Any) -> dict[str, Any]:
        return {
            "AutoMLJobName": f"job-{next(_numbers)}",
            "AutoMLJobInputDataConfig": [
                {
                    "ChannelType": "training",
                    "ContentType": "text/csv;header=present",
                    "CompressionType": "None",
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/fleet/"}},
                }
            ],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/automl"},
            "AutoMLProblemTypeConfig": {
                "TimeSeriesForecastingJobConfig": {
                    "ForecastFrequency": "1D",
                    "ForecastHorizon": HORIZON,
                    "ForecastQuantiles": ["p10", "p50", "p90"],
                    "TimeSeriesConfig": {
                        "TargetAttributeName": "cpu",
                        "TimestampAttributeName": "timestamp",
                        "ItemIdentifierAttributeName": "server_id",
                    },
                    **forecasting,
                }
            },
            "RoleArn": ROLE,
        }

    def transform(self, model: str) -> dict[str, Any]:
        number = next(_numbers)
        return {
            "TransformJobName": f"transform-{number}",
            "ModelName": model,
            "MaxPayloadInMB": 0,
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/fleet/"}},
                "ContentType": "text/csv",
                "SplitType": "None",
            },
            "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/out/{number}/", "AssembleWith": "Line"},
            "TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
        }

    def trained(self, **forecasting: Any) -> dict[str, Any]:
        """The description of a job that has run to its end, with the clock stopped."""
        request = self.automl(**forecasting)
        self.control("POST", "/clock", {"stop": True})
        self.sagemaker.create_auto_ml_job_v2(**request)
        self.advance(3600)
        described: dict[str, Any] = self.sagemaker.describe_auto_ml_job_v2(AutoMLJobName=request["AutoMLJobName"])
        return described

    def model(self, **forecasting: Any) -> str:
        """The name of a model of a trained job."""
        name = f"model-{next(_numbers)}"
        containers = self.trained(**forecasting)["BestCandidate"]["InferenceContainers"]
        self.sagemaker.create_model(ModelName=name, Containers=containers, ExecutionRoleArn=ROLE)
        return name

    def transformed(self, request: dict[str, Any]) -> dict[str, Any]:
        """The description of a transform that has run to its end, with the clock stopped."""
        self.control("POST", "/clock", {"stop": True})
        self.sagemaker.create_transform_job(**request)
        self.advance(3600)
        described: dict[str, Any] = self.sagemaker.describe_transform_job(TransformJobName=request["TransformJobName"])
        return described

    def outputs(self, request: dict[str, Any]) -> dict[str, bytes]:
        """The objects under the output path of a transform, by the last part of their names."""
        prefix = request["TransformOutput"]["S3OutputPath"].removeprefix(f"s3://{BUCKET}/")
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {
            one["Key"].removeprefix(prefix): self.s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in listed
        }


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with started() as url:
        emulator = Emulator(url)
        emulator.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        emulator.put("fleet/fleet.csv", in_csv(fleet()))
        yield emulator
        for one in emulator.s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
            emulator.s3.delete_object(Bucket=BUCKET, Key=one["Key"])
        emulator.s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def emulator(running: Emulator) -> Emulator:
    """The module's emulator, with nothing in SageMaker, no faults and a running clock."""
    running.control("POST", "/reset")
    return running

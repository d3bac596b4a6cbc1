"""Request bodies, held to botocore's validator and to every pattern, maximum and enum of the service model."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from app.aws.sagemaker import AutoMLJob, JobStatus, TransformJob
from app.canvas import requests
from app.canvas.requests import Request, Size, Spec, limits
from app.domain.panel import Frequency

SERVICE = botocore.session.get_session().get_service_model("sagemaker")
SPEC = Spec(
    run_id="0b8f6c0e-8c1d-4a57-9d0e-2f3a4b5c6d7e",
    forecast_id="7d6c5b4a-0000-4a57-9d0e-2f3a4b5c6d7e",
    installation="ab12",
    attempt=1,
    bucket="acme-headroom",
    prefix="headroom/",
    role_arn="arn:aws:iam::123456789012:role/headroom-execution",
    frequency=Frequency.DAILY,
    horizon=90,
    levels=(0.05, 0.1, 0.5, 0.9, 0.99),
    country="gb",
)
PRIVATE = replace(
    SPEC,
    kms_key="arn:aws:kms:eu-west-1:123456789012:key/0b8f6c0e-8c1d-4a57-9d0e-2f3a4b5c6d7e",
    subnets=("subnet-0123456789abcdef0",),
    security_groups=("sg-0123456789abcdef0",),
    algorithms=("cnn-qr", "deepar"),
    frequency=Frequency.HOURLY,
    country=None,
    emulated=True,
)
CONTAINERS = (
    {"Image": "1.dkr.ecr.eu-west-1.amazonaws.com/ts:1", "ModelDataUrl": "s3://b/m", "Environment": {"A": "b"}},
)
BODIES = {
    "CreateAutoMLJobV2": lambda spec: requests.automl(spec, "window-1"),
    "CreateModel": lambda spec: requests.model(spec, CONTAINERS),
    "CreateTransformJob": lambda spec: requests.transform(spec, "forecast"),
}


def broken(shape: Any, value: Any, path: str = "") -> list[str]:
    """Each constraint of a shape that botocore itself leaves to the service, and that the value breaks."""
    found: list[str] = []
    match shape.type_name:
        case "structure":
            for name, member in value.items():
                found += broken(shape.members[name], member, f"{path}.{name}")
        case "list":
            for member in value:
                found += broken(shape.member, member, f"{path}[]")
        case "map":
            for key, member in value.items():
                found += broken(shape.key, key, f"{path} key") + broken(shape.value, member, f"{path}.{key}")
    size = value if isinstance(value, int | float) else len(value)
    if size > shape.metadata.get("max", float("inf")):
        found.append(f"{path} is over {shape.metadata['max']}")
    if isinstance(value, str):
        pattern = shape.metadata.get("pattern", ".*").replace(r"\p{L}\p{Z}\p{N}", r"\w ")
        if not re.fullmatch(pattern, value):
            found.append(f"{path} {value!r} is not {pattern}")
        if shape.enum and value not in shape.enum:
            found.append(f"{path} {value!r} is not in the enum")
    return found


def complaints(operation: str, body: Request) -> list[str]:
    shape = SERVICE.operation_model(operation).input_shape
    report = ParamValidator().validate(body, shape)
    return [report.generate_report()] if report.has_errors() else broken(shape, body)


@pytest.mark.parametrize("spec", [SPEC, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("operation", BODIES)
def test_every_body_is_what_the_service_model_allows(operation: str, spec: Spec) -> None:
    assert complaints(operation, BODIES[operation](spec)) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"levels": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}, "ForecastQuantiles"),
        ({"levels": (0.975,)}, "ForecastQuantiles"),
        ({"country": "GBR"}, "CountryCode"),
        ({"role_arn": "arn:aws:iam::12:role/headroom"}, "RoleArn"),
        ({"algorithms": ("arimax",)}, "AutoMLAlgorithms"),
        ({"horizon": 0}, "ForecastHorizon"),
    ],
)
def test_the_check_sees_what_is_wrong(change: dict[str, Any], where: str) -> None:
    found = complaints("CreateAutoMLJobV2", requests.automl(replace(SPEC, **change), "forecast"))
    assert found
    assert where in found[0]


def test_what_the_service_would_do_by_itself_is_spelled_out() -> None:
    body = requests.automl(SPEC, "window-1")
    forecasting = body["AutoMLProblemTypeConfig"]["TimeSeriesForecastingJobConfig"]
    assert forecasting["Transformations"] == {
        "Filling": {"target_value": {"middlefill": "median", "backfill": "median"}},
        "Aggregation": {"target_value": "avg"},
    }
    assert forecasting["CompletionCriteria"] == {"MaxAutoMLJobRuntimeInSeconds": 1800}
    assert forecasting["HolidayConfig"] == [{"CountryCode": "GB"}]
    assert forecasting["ForecastQuantiles"] == ["p5", "p10", "p50", "p90", "p99"]
    assert body["AutoMLJobObjective"] == {"MetricName": "AverageWeightedQuantileLoss"}
    said = json.dumps(body)
    for never in ("ModelDeployConfig", "DataSplitConfig", "MaxCandidates", "AutoMLComputeConfig"):
        assert never not in said


def test_a_transform_takes_files_whole() -> None:
    body = requests.transform(SPEC, "forecast", requests.AGAIN)
    assert body["TransformInput"]["SplitType"] == "None"
    assert body["MaxPayloadInMB"] == 0
    assert "BatchStrategy" not in body
    assert body["ModelName"] == requests.model(SPEC, (), requests.AGAIN)["ModelName"] != SPEC.name


def test_keys_and_networks_reach_everything_that_can_have_them() -> None:
    job, model, transform = (BODIES[operation](PRIVATE) for operation in BODIES)
    network = {"Subnets": list(PRIVATE.subnets), "SecurityGroupIds": list(PRIVATE.security_groups)}
    assert job["SecurityConfig"] == {"VolumeKmsKeyId": PRIVATE.kms_key, "VpcConfig": network}
    assert model["VpcConfig"] == network
    assert job["OutputDataConfig"]["KmsKeyId"] == transform["TransformOutput"]["KmsKeyId"] == PRIVATE.kms_key
    assert transform["TransformResources"]["VolumeKmsKeyId"] == PRIVATE.kms_key
    assert {"Key": "headroom:emulated", "Value": "true"} in job["Tags"]
    with pytest.raises(ValueError, match="both or neither"):
        replace(PRIVATE, security_groups=())


def test_names_follow_from_what_is_asked() -> None:
    names = {
        requests.job_name(installation, run, attempt, purpose)
        for installation in ("ab12", "ab13")
        for run in ("r1", "r2")
        for attempt in (1, 2)
        for purpose in (None, "forecast", "window-1")
    }
    assert len(names) == 24
    assert all(re.fullmatch(r"hr-ab1[23]-[a-z2-7]{24}", name) and len(name) == 32 for name in names)
    # Known for good: jobs on AWS bear such names, and are found again by them after an upgrade.
    assert requests.job_name("ab12", "r1", 1) == "hr-ab12-drhcptuwca552cqwicwwhrge"
    assert SPEC.name.startswith(requests.name_prefix("ab12"))
    for wrong in ("AB12", "ab1", "ab12-"):
        with pytest.raises(ValueError, match="4 lowercase"):
            requests.job_name(wrong, "r1", 1)


def test_no_purpose_leaves_its_folder() -> None:
    assert SPEC.input_prefix("window-1") == f"headroom/runs/{SPEC.run_id}/1/input/window-1/"
    assert replace(SPEC, prefix="").folder == f"runs/{SPEC.run_id}/1/"
    for wrong in ("", "../x", "a/b"):
        with pytest.raises(ValueError, match="no purpose"):
            SPEC.output_prefix(wrong)


def test_the_hash_is_of_what_is_asked_not_of_its_order() -> None:
    body = requests.automl(SPEC, "forecast")
    assert requests.spec_hash(dict(reversed(body.items()))) == requests.spec_hash(body)
    assert requests.spec_hash(requests.automl(replace(SPEC, horizon=91), "forecast")) != requests.spec_hash(body)


def test_a_job_is_ours_by_where_it_writes_and_as_whom() -> None:
    now = datetime.now(UTC)
    asked, moved = requests.automl(SPEC, "forecast"), requests.transform(SPEC, "forecast")
    output = asked["OutputDataConfig"]["S3OutputPath"]
    job = AutoMLJob(SPEC.name, "arn", JobStatus.IN_PROGRESS, "", None, (), None, output, SPEC.role_arn, {}, now, None)
    transform = TransformJob(
        "t", "arn", JobStatus.IN_PROGRESS, None, SPEC.name, moved["TransformOutput"]["S3OutputPath"][:-1],
        "ml.m5.xlarge", 1, now, None, None, now,
    )  # fmt: skip
    assert requests.is_ours(asked, job)
    assert requests.is_ours(moved, transform)
    assert not requests.is_ours(asked, replace(job, output_path="s3://other/automl/"))
    assert not requests.is_ours(asked, replace(job, role_arn="arn:aws:iam::123456789012:role/other"))
    assert not requests.is_ours(moved, replace(transform, model_name="other"))


FITS = Size(servers=100, steps=1006, fewest_values=14, horizon=90, levels=(0.1, 0.5, 0.9), features=0)
OUTSIDE = {
    "no servers": ({"servers": 0}, "canvas-no-servers", "No server"),
    "far horizon": ({"horizon": 501, "steps": 5000}, "canvas-horizon", "500"),
    "short history": ({"steps": 359}, "canvas-history", "need 360 steps of history, and there are 359"),
    "few values": ({"fewest_values": 3}, "canvas-history", "at least 4"),
    "half a percent": ({"levels": (0.1, 0.5, 0.9, 0.975)}, "canvas-quantiles", "p97.5"),
    "under one percent": ({"levels": (0.001, 0.1, 0.5, 0.9)}, "canvas-quantiles", "p0.1"),
    "six quantiles": ({"levels": (0.05, 0.1, 0.2, 0.5, 0.8, 0.9)}, "canvas-quantiles", "makes 6"),
    "many features": ({"features": 11}, "canvas-features", "at most 10"),
    "too many servers": ({"servers": 5_000_001, "steps": 360}, "canvas-size", "5,000,000 servers"),
    "too many rows": ({"servers": 4_000_000}, "canvas-size", "3,000,000,000 rows"),
    "too many bytes": ({"bytes": 30_000_000_001}, "canvas-size", "30 GB"),
}


def test_a_fleet_inside_the_limits() -> None:
    for size in (FITS, replace(FITS, steps=360), replace(FITS, horizon=500, steps=2000), replace(FITS, features=10)):
        assert limits(size) is None


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_fleet_outside_them(case: str) -> None:
    change, code, words = OUTSIDE[case]
    refusal = limits(replace(FITS, **change))
    assert refusal is not None
    assert refusal.code == code
    assert words in refusal.detail
    assert refusal.detail.endswith(".")


@pytest.mark.parametrize(
    ("steps", "wanted", "windows"), [(1096, 1, 1), (450, 1, 1), (449, 1, 0), (360, 3, 0), (1096, 20, 8), (10, 1, 0)]
)
def test_windows_that_leave_enough_to_train_on(steps: int, wanted: int, windows: int) -> None:
    found = requests.scorable_windows(steps, 90, wanted)
    assert found == windows
    if found:
        assert limits(replace(FITS, steps=steps - found * 90)) is None
        assert found == wanted or limits(replace(FITS, steps=steps - (found + 1) * 90)) is not None


def test_regressors_that_would_clash_are_set_apart() -> None:
    assert requests.regressors(("releases", "Holiday", "target_value", "holiday_")) == (
        "end_of_quarter", "holiday", "weekend", "releases", "Holiday_", "target_value_", "holiday__",
    )  # fmt: skip

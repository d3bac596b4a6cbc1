"""Each fault, asked for and seen by a plain client."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from botocore.exceptions import ClientError, HTTPClientError

from app.emulator.constraints import OPERATIONS
from app.emulator.faults import CALL, JOB, OUTPUT

TESTED_HERE = {
    "throttle",
    "server_error",
    "server_error_after_success",
    "lost_reply",
    "access_denied",
    "expired_token",
    "resource_limit",
    "unknown_status",
    "no_domain",
    *JOB,
    *OUTPUT,
}


def test_no_fault_goes_untested() -> None:
    assert {*CALL, *JOB, *OUTPUT} == TESTED_HERE


def test_the_document_names_every_fault_and_operation() -> None:
    text = (Path(__file__).parents[2] / "docs/aws/emulator.md").read_text()
    words = set(re.findall(r"\w+", text))
    assert {*CALL, *JOB, *OUTPUT, *OPERATIONS} <= words


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("throttle", 400, "ThrottlingException"),
        ("access_denied", 400, "AccessDeniedException"),
        ("expired_token", 400, "ExpiredTokenException"),
        ("resource_limit", 400, "ResourceLimitExceeded"),
        ("server_error", 500, "InternalFailure"),
    ],
)
def test_a_refused_create_makes_nothing(emulator: Any, fault: str, status: int, code: str) -> None:
    emulator.arm("CreateAutoMLJobV2", fault)
    request = emulator.automl()
    got, said, _ = emulator.post("CreateAutoMLJobV2", request)
    assert (got, said["__type"], "[emulated]" in said["message"]) == (status, code, True)
    assert emulator.sagemaker.list_auto_ml_jobs()["AutoMLJobSummaries"] == []
    assert emulator.post("CreateAutoMLJobV2", request)[0] == 200


def test_an_error_after_success_has_made_the_job(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "server_error_after_success")
    request = emulator.automl()
    assert emulator.post("CreateAutoMLJobV2", request)[0] == 500
    assert emulator.post("CreateAutoMLJobV2", request)[1]["__type"] == "ResourceInUse"


def test_a_lost_reply_has_made_the_job(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "lost_reply")
    request = emulator.automl()
    with pytest.raises(HTTPClientError):
        emulator.sagemaker.create_auto_ml_job_v2(**request)
    [summary] = emulator.sagemaker.list_auto_ml_jobs()["AutoMLJobSummaries"]
    assert summary["AutoMLJobName"] == request["AutoMLJobName"]


def test_a_lost_reply_that_botocore_tries_again_meets_its_own_job(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "lost_reply")
    with pytest.raises(ClientError) as raised:
        emulator.client("sagemaker", attempts=2).create_auto_ml_job_v2(**emulator.automl())
    assert raised.value.response["Error"]["Code"] == "ResourceInUse"


def test_throttled_polls_pass_with_time(emulator: Any) -> None:
    request = emulator.automl()
    emulator.sagemaker.create_auto_ml_job_v2(**request)
    named = {"AutoMLJobName": request["AutoMLJobName"]}
    emulator.arm("DescribeAutoMLJobV2", "throttle", times=3)
    assert [emulator.post("DescribeAutoMLJobV2", named)[0] for _ in range(5)] == [400, 400, 400, 200, 200]
    faults = [one["fault"] for one in emulator.control("GET", "/journal?operation=DescribeAutoMLJobV2")["calls"]]
    assert faults == ["throttle"] * 3 + [None] * 2


def test_a_fault_of_any_operation(emulator: Any) -> None:
    emulator.arm("*", "access_denied", times=2)
    assert emulator.post("ListModels", {})[1]["__type"] == "AccessDeniedException"
    assert emulator.post("ListDomains", {})[1]["__type"] == "AccessDeniedException"
    assert emulator.post("ListModels", {})[0] == 200


def test_a_job_fails_with_a_reason(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "fail_job")
    job = emulator.trained()
    assert (job["AutoMLJobStatus"], job["AutoMLJobSecondaryStatus"]) == ("Failed", "Failed")
    assert job["FailureReason"].startswith("[emulated]")
    assert "BestCandidate" not in job
    trainings = emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"]
    assert {one["TrainingJobStatus"] for one in trainings} == {"Failed"}
    assert emulator.control("GET", "/costs")["total_microdollars"] > 0


def test_a_job_completes_without_a_candidate(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "no_candidate")
    job = emulator.trained()
    assert (job["AutoMLJobStatus"], "BestCandidate" in job) == ("Completed", False)


def test_containers_come_in_the_other_shape(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "cpu_containers")
    best = emulator.trained()["BestCandidate"]
    assert "InferenceContainers" not in best
    [container] = best["InferenceContainerDefinitions"]["CPU"]
    emulator.sagemaker.create_model(ModelName="cpu", PrimaryContainer=container, ExecutionRoleArn=emulator.role)
    assert emulator.transformed(emulator.transform("cpu"))["TransformJobStatus"] == "Completed"


def test_dear_children_cost_twelve_times_as_much(emulator: Any) -> None:
    emulator.trained()
    usual = emulator.control("GET", "/costs")["total_microdollars"]
    emulator.control("POST", "/reset")
    emulator.arm("CreateAutoMLJobV2", "dear")
    emulator.trained()
    training = emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"][0]["TrainingJobName"]
    described = emulator.sagemaker.describe_training_job(TrainingJobName=training)
    assert described["ResourceConfig"]["InstanceType"] == "ml.m5.24xlarge"
    assert emulator.control("GET", "/costs")["total_microdollars"] == pytest.approx(12 * usual, rel=0.01)


def test_slow_jobs_take_ten_times_as_long(emulator: Any) -> None:
    emulator.arm("CreateAutoMLJobV2", "slow")
    assert emulator.trained()["AutoMLJobStatus"] == "InProgress"
    emulator.advance(9 * 3600)
    [summary] = emulator.sagemaker.list_auto_ml_jobs()["AutoMLJobSummaries"]
    assert summary["AutoMLJobStatus"] == "Completed"


@pytest.mark.parametrize("when", ["CreateAutoMLJobV2", "DescribeAutoMLJobV2"])
def test_a_status_nobody_has_heard_of(emulator: Any, when: str) -> None:
    emulator.arm(when, "unknown_status")
    job = emulator.trained()
    assert job["AutoMLJobStatus"] == "Pondering"
    again = emulator.sagemaker.describe_auto_ml_job_v2(AutoMLJobName=job["AutoMLJobName"])["AutoMLJobStatus"]
    assert again == ("Pondering" if when == "CreateAutoMLJobV2" else "Completed")


def test_no_domain(emulator: Any) -> None:
    emulator.arm("ListDomains", "no_domain")
    assert emulator.sagemaker.list_domains()["Domains"] == []
    assert len(emulator.sagemaker.list_domains()["Domains"]) == 1


def test_a_transform_fails_with_a_reason(emulator: Any) -> None:
    request = emulator.transform(emulator.model())
    emulator.arm("CreateTransformJob", "fail_job")
    job = emulator.transformed(request)
    assert (job["TransformJobStatus"], job["FailureReason"][:10]) == ("Failed", "[emulated]")
    assert emulator.outputs(request) == {}


def spoilt(emulator: Any, fault: str) -> dict[str, bytes]:
    request = emulator.transform(emulator.model())
    emulator.arm("CreateTransformJob", fault)
    assert emulator.transformed(request)["TransformJobStatus"] == "Completed"
    found: dict[str, bytes] = emulator.outputs(request)
    return found


def test_output_that_is_no_csv(emulator: Any) -> None:
    content = spoilt(emulator, "malformed_out")["fleet.csv.out"]
    with pytest.raises((ValueError, UnicodeDecodeError)):
        pd.read_csv(io.BytesIO(content), usecols=["p50"])


def test_output_that_is_not_there(emulator: Any) -> None:
    assert spoilt(emulator, "missing_out") == {}


def test_output_that_is_late(emulator: Any) -> None:
    request = emulator.transform(emulator.model())
    emulator.arm("CreateTransformJob", "late_out")
    emulator.sagemaker.create_transform_job(**request)
    emulator.advance(500)
    job = emulator.sagemaker.describe_transform_job(TransformJobName=request["TransformJobName"])
    assert (job["TransformJobStatus"], emulator.outputs(request)) == ("Completed", {})
    emulator.advance(600)
    assert list(emulator.outputs(request)) == ["fleet.csv.out"]


@pytest.mark.parametrize("fault", sorted(set(OUTPUT) - {"malformed_out", "missing_out", "late_out"}))
def test_output_that_is_not_right(emulator: Any, fault: str) -> None:
    content = spoilt(emulator, fault)["fleet.csv.out"]
    table = emulator.read_out(content)
    whole, items = emulator.items * emulator.horizon, set(table["server_id"])
    levels = table[["p10", "p50", "p90"]].to_numpy()
    seen = {
        "nan_out": bool(np.isnan(levels).any() and np.isinf(levels).any()),
        "short_out": len(table) < whole and len(items) == emulator.items,
        "long_out": len(table) > whole and not table.duplicated(["server_id", "timestamp"]).any() and len(items) == 3,
        "missing_item_out": len(items) == emulator.items - 1,
        "extra_item_out": len(items) == emulator.items + 1,
        "duplicate_out": bool(table.duplicated(["server_id", "timestamp"]).any()),
        "crossed_out": bool((np.diff(levels[np.isfinite(levels).all(axis=1)], axis=1) < 0).any()),
        "no_mean_out": "mean" not in table,
        "plain_dates_out": b" 00:00:00" not in content,
    }
    assert {name for name, is_so in seen.items() if is_so} == {fault}


def test_a_fault_that_does_not_exist_is_refused(emulator: Any) -> None:
    for nonsense in (
        {"operation": "CreateAutoMLJobV2", "fault": "earthquake"},
        {"operation": "CreateAutoMLJobV2", "fault": "nan_out"},
        {"operation": "CreateEverything", "fault": "throttle"},
        {"operation": "CreateModel", "fault": "throttle", "times": 0},
        {"operation": "s3:PutEverything", "fault": "throttle"},
        {"operation": "s3:PutObject", "fault": "resource_limit"},
        {"fault": "throttle"},
        [],
    ):
        assert "error" in emulator.control("POST", "/faults", nonsense)
    assert emulator.control("GET", "/faults")["faults"] == []


def test_faults_wait_until_they_are_cleared(emulator: Any) -> None:
    emulator.arm("CreateModel", "throttle", times=2)
    assert emulator.control("GET", "/faults")["faults"] == [
        {"operation": "CreateModel", "fault": "throttle", "times": 2}
    ]
    assert emulator.control("DELETE", "/faults")["faults"] == []


@pytest.mark.parametrize(
    ("fault", "status", "code", "stored"),
    [
        ("throttle", 503, "SlowDown", False),
        ("server_error", 500, "InternalError", False),
        ("server_error_after_success", 500, "InternalError", True),
        ("access_denied", 403, "AccessDenied", False),
    ],
)
def test_s3_has_faults_too(emulator: Any, fault: str, status: int, code: str, stored: bool) -> None:
    emulator.arm("s3:PutObject", fault)
    with pytest.raises(ClientError) as raised:
        emulator.put(f"faulty/{fault}", b"x")
    said = raised.value.response
    assert (said["ResponseMetadata"]["HTTPStatusCode"], said["Error"]["Code"]) == (status, code)
    listed = emulator.s3.list_objects_v2(Bucket=emulator.bucket, Prefix=f"faulty/{fault}")
    assert (listed["KeyCount"] == 1) == stored


def test_a_reply_of_s3_is_lost(emulator: Any) -> None:
    emulator.arm("s3:PutObject", "lost_reply")
    with pytest.raises(HTTPClientError):
        emulator.put("faulty/lost", b"x")
    assert emulator.s3.list_objects_v2(Bucket=emulator.bucket, Prefix="faulty/lost")["KeyCount"] == 1

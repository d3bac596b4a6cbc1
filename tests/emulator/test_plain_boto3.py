"""A script as one would write it from AWS's documentation, with boto3 alone, against the emulator as a process."""

import csv
import datetime as dt
import io
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

BUCKET = "my-forecasts"
ROLE = "arn:aws:iam::123456789012:role/service-role/AmazonSageMaker-ExecutionRole"
CONFIG = {
    "ForecastFrequency": "D",
    "ForecastHorizon": 30,
    "ForecastQuantiles": ["p10", "p50", "p90"],
    "TimeSeriesConfig": {
        "TargetAttributeName": "cpu_p95",
        "TimestampAttributeName": "timestamp",
        "ItemIdentifierAttributeName": "item_id",
    },
    "Transformations": {"Filling": {"cpu_p95": {"middlefill": "median", "backfill": "median"}}},
    "CompletionCriteria": {"MaxAutoMLJobRuntimeInSeconds": 1800},
    "HolidayConfig": [{"CountryCode": "US"}],
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with subprocess.Popen(
        [Path(sys.executable).with_name("headroom"), "emulator", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert "Emulated" in said
        assert found is not None
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def wave(day: int) -> float:
    return 8 * math.sin(day / 7 * 2 * math.pi)


def series(items: range, days: int) -> str:
    rows = io.StringIO()
    write = csv.writer(rows)
    write.writerow(["item_id", "timestamp", "cpu_p95"])
    for item in items:
        for day in range(days):
            at = dt.date(2023, 1, 1) + dt.timedelta(days=day)
            write.writerow([f"host {item}", at.isoformat(), round(30 + item + wave(day) + (day * day % 11) / 10, 3)])
    return rows.getvalue()


def wait(describe: Any, status: str, **named: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        described: dict[str, Any] = describe(**named)
        if described[status] not in ("InProgress", "Stopping"):
            return described
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_from_the_csv_to_the_out_file_and_away(endpoint: str) -> None:
    session = boto3.Session(aws_access_key_id="AKIA", aws_secret_access_key="secret", region_name="us-east-1")
    sagemaker, s3 = (session.client(name, endpoint_url=endpoint) for name in ("sagemaker", "s3"))
    assert session.client("sts", endpoint_url=endpoint).get_caller_identity()["Account"] == "123456789012"
    role = session.client("iam", endpoint_url=endpoint).get_role(RoleName="headroom-emulated")["Role"]["Arn"]
    [domain] = sagemaker.list_domains()["Domains"]
    described = sagemaker.describe_domain(DomainId=domain["DomainId"])
    assert (described["Status"], described["DefaultUserSettings"]["ExecutionRole"]) == ("InService", role)

    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="run/input/part-0.csv", Body=series(range(4), 400))
    s3.put_object(Bucket=BUCKET, Key="run/input/part-1.csv", Body=series(range(4, 6), 400))
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/run/input/"}}
    arn = sagemaker.create_auto_ml_job_v2(
        AutoMLJobName="My-Forecast",
        AutoMLJobInputDataConfig=[
            {
                "ChannelType": "training",
                "ContentType": "text/csv;header=present",
                "CompressionType": "None",
                "DataSource": source,
            }
        ],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/run/automl"},
        AutoMLProblemTypeConfig={"TimeSeriesForecastingJobConfig": CONFIG},
        AutoMLJobObjective={"MetricName": "AverageWeightedQuantileLoss"},
        RoleArn=ROLE,
        Tags=[{"Key": "team", "Value": "capacity"}],
    )["AutoMLJobArn"]
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "capacity"}]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "run", "Value": "1"}])
    assert len(sagemaker.list_tags(ResourceArn=arn)["Tags"]) == 2

    job = wait(sagemaker.describe_auto_ml_job_v2, "AutoMLJobStatus", AutoMLJobName="My-Forecast")
    assert (job["AutoMLJobStatus"], job["AutoMLJobSecondaryStatus"]) == ("Completed", "Completed")
    assert job["AutoMLProblemTypeConfig"]["TimeSeriesForecastingJobConfig"] == CONFIG
    assert dt.timedelta(minutes=5) < job["EndTime"] - job["CreationTime"] < dt.timedelta(minutes=30)
    best = job["BestCandidate"]
    metrics = {one["MetricName"]: one["Value"] for one in best["CandidateProperties"]["CandidateMetrics"]}
    assert best["FinalAutoMLJobObjectiveMetric"]["Value"] == metrics["AverageWeightedQuantileLoss"]
    assert {"RMSE", "MASE", "MAPE", "WAPE"} < set(metrics)
    candidates = sagemaker.list_candidates_for_auto_ml_job(AutoMLJobName="My-Forecast")["Candidates"]
    assert best["CandidateName"] in {one["CandidateName"] for one in candidates}

    trainings = sagemaker.list_training_jobs(NameContains="my-forecast")["TrainingJobSummaries"]
    steps = {step["CandidateStepName"] for step in best["CandidateSteps"]}
    assert {one["TrainingJobName"] for one in trainings} == steps
    for name in steps:
        training = sagemaker.describe_training_job(TrainingJobName=name)
        assert training["AutoMLJobArn"] == arn
        assert training["BillableTimeInSeconds"] > 30
        assert training["ResourceConfig"]["InstanceType"].startswith("ml.")

    sagemaker.create_model(ModelName="my-model", Containers=best["InferenceContainers"], ExecutionRoleArn=ROLE)
    sagemaker.create_transform_job(
        TransformJobName="my-transform",
        ModelName="my-model",
        MaxPayloadInMB=0,
        ModelClientConfig={"InvocationsTimeoutInSeconds": 3600},
        TransformInput={"DataSource": source, "ContentType": "text/csv", "SplitType": "None"},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/run/output/", "AssembleWith": "Line"},
        TransformResources={"InstanceType": "ml.m5.12xlarge", "InstanceCount": 1},
    )
    transform = wait(sagemaker.describe_transform_job, "TransformJobStatus", TransformJobName="my-transform")
    assert transform["TransformJobStatus"] == "Completed"
    assert transform["TransformEndTime"] > transform["TransformStartTime"] > transform["CreationTime"] > job["EndTime"]

    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="run/output/")["Contents"]
    assert [one["Key"] for one in listed] == ["run/output/part-0.csv.out", "run/output/part-1.csv.out"]
    rows: list[dict[str, str]] = []
    for one in listed:
        content = s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read().decode()
        rows += csv.DictReader(io.StringIO(content))
    assert set(rows[0]) == {"item_id", "timestamp", "p10", "p50", "p90", "mean"}
    assert [(row["item_id"], row["timestamp"][:10]) for row in rows] == [
        (f"host {item}", str(dt.date(2024, 2, 5) + dt.timedelta(days=day))) for item in range(6) for day in range(30)
    ]
    assert all(float(row["p10"]) <= float(row["p50"]) <= float(row["p90"]) for row in rows)
    assert all(abs(float(row["p50"]) - 30.5 - wave(day)) < 2 for day, row in enumerate(rows[:30], 400))

    [summary] = sagemaker.list_transform_jobs(NameContains="my-transform")["TransformJobSummaries"]
    assert (summary["TransformJobName"], summary["TransformJobStatus"]) == ("my-transform", "Completed")
    [summary] = sagemaker.list_models(NameContains="my-model")["Models"]
    assert sagemaker.describe_model(ModelName="my-model")["ModelArn"] == summary["ModelArn"]
    assert sagemaker.list_processing_jobs(NameContains="my-forecast")["ProcessingJobSummaries"] == []

    sagemaker.create_transform_job(
        TransformJobName="to-be-stopped",
        ModelName="my-model",
        TransformInput={"DataSource": source, "ContentType": "text/csv", "SplitType": "None"},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/stopped/"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )
    sagemaker.stop_transform_job(TransformJobName="to-be-stopped")
    stopped = wait(sagemaker.describe_transform_job, "TransformJobStatus", TransformJobName="to-be-stopped")
    assert stopped["TransformJobStatus"] == "Stopped"
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET, Prefix="stopped/")

    sagemaker.delete_model(ModelName="my-model")
    assert sagemaker.list_models()["Models"] == []
    with pytest.raises(ClientError, match="Could not find model"):
        sagemaker.describe_model(ModelName="my-model")


def test_what_is_not_emulated_says_so(endpoint: str) -> None:
    session = boto3.Session(aws_access_key_id="AKIA", aws_secret_access_key="secret", region_name="us-east-1")
    iam, quotas, sagemaker = (
        session.client(name, endpoint_url=endpoint) for name in ("iam", "service-quotas", "sagemaker")
    )
    user = "arn:aws:iam::123456789012:user/anyone"
    with pytest.raises(ClientError, match=r"SimulatePrincipalPolicy is not emulated\. \[emulated\]") as refused:
        iam.simulate_principal_policy(PolicySourceArn=user, ActionNames=["iam:PassRole"])
    assert refused.value.response["Error"]["Code"] == "NotImplemented"
    with pytest.raises(ClientError, match="ListServiceQuotas is not emulated"):
        quotas.list_service_quotas(ServiceCode="sagemaker")
    with pytest.raises(ClientError, match="UnknownOperation"):
        sagemaker.create_endpoint(EndpointName="costly", EndpointConfigName="costly")


def test_a_job_is_stopped(endpoint: str) -> None:
    session = boto3.Session(aws_access_key_id="AKIA", aws_secret_access_key="secret", region_name="us-east-1")
    sagemaker, s3 = (session.client(name, endpoint_url=endpoint) for name in ("sagemaker", "s3"))
    s3.create_bucket(Bucket=f"{BUCKET}-2")
    s3.put_object(Bucket=f"{BUCKET}-2", Key="input/a.csv", Body=series(range(2), 200))
    sagemaker.create_auto_ml_job_v2(
        AutoMLJobName="to-be-stopped",
        AutoMLJobInputDataConfig=[
            {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}-2/input"}}}
        ],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}-2/automl"},
        AutoMLProblemTypeConfig={"TimeSeriesForecastingJobConfig": CONFIG},
        RoleArn=ROLE,
    )
    sagemaker.stop_auto_ml_job(AutoMLJobName="to-be-stopped")
    sagemaker.stop_auto_ml_job(AutoMLJobName="to-be-stopped")
    job = wait(sagemaker.describe_auto_ml_job_v2, "AutoMLJobStatus", AutoMLJobName="to-be-stopped")
    assert (job["AutoMLJobStatus"], "BestCandidate" in job) == ("Stopped", False)
    [summary] = sagemaker.list_auto_ml_jobs(StatusEquals="Stopped")["AutoMLJobSummaries"]
    assert summary["AutoMLJobName"] == "to-be-stopped"

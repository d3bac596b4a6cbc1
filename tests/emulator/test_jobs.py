"""Jobs over simulated time, stepped: what they show when, what they bill, what the lists and the journal say."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aioboto3
import pytest

from app.emulator import constraints
from app.emulator.clock import Clock


def described(emulator: Any, request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = emulator.sagemaker.describe_auto_ml_job_v2(AutoMLJobName=request["AutoMLJobName"])
    return answer


def begun(emulator: Any, **forecasting: Any) -> dict[str, Any]:
    """The request of a job that has just been created, with the clock stopped."""
    request: dict[str, Any] = emulator.automl(**forecasting)
    emulator.control("POST", "/clock", {"stop": True})
    emulator.sagemaker.create_auto_ml_job_v2(**request)
    return request


def test_a_stopped_clock_stands_and_is_stepped() -> None:
    clock = Clock(speed=1e6)
    clock.stop()
    start = clock.now()
    clock.hurry_until(start + 500)
    assert clock.now() == start
    clock.advance(90)
    assert clock.now() == start + 90
    clock.start()
    assert clock.wait_until(start + 500, lambda: False)
    assert clock.now() >= start + 500


def test_time_flies_only_while_there_is_work() -> None:
    clock = Clock(speed=1e6)
    start = clock.now()
    clock.hurry_until(start + 3600)
    assert clock.wait_until(start + 3600, lambda: False)
    assert clock.now() < start + 3700


def test_one_who_has_given_up_does_not_wait() -> None:
    clock = Clock()
    clock.stop()
    assert not clock.wait_until(clock.now() + 1, lambda: True)


def test_answers_are_dated_by_the_clock_of_the_jobs(emulator: Any) -> None:
    begun(emulator)
    emulator.advance(5000)
    now = emulator.control("GET", "/clock")["now"]
    dated = emulator.post("ListModels", {})[2].get_all("Date")
    assert [parsedate_to_datetime(date).timestamp() for date in dated] == [int(now)]


def test_the_clock_is_read_and_set_over_http(emulator: Any) -> None:
    before = emulator.control("POST", "/clock", {"stop": True})
    assert not before["running"]
    after = emulator.control("POST", "/clock", {"advance": 60})
    assert after["now"] == before["now"] + 60
    assert emulator.control("POST", "/clock", {"speed": 500})["speed"] == 500
    emulator.control("POST", "/clock", {"speed": 240})
    for nonsense in ({"advance": -1}, {"speed": 0}, {"advance": True}, {"rewind": 1}, []):
        assert "error" in emulator.control("POST", "/clock", nonsense)


def test_a_job_goes_through_its_states(emulator: Any) -> None:
    request = begun(emulator)
    seen = []
    for _ in range(40):
        job = described(emulator, request)
        state = (job["AutoMLJobStatus"], job["AutoMLJobSecondaryStatus"], "BestCandidate" in job, "EndTime" in job)
        if state not in seen:
            seen.append(state)
        emulator.advance(30)
    assert seen == [
        ("InProgress", "Starting", False, False),
        ("InProgress", "AnalyzingData", False, False),
        ("InProgress", "PreTraining", False, False),
        ("InProgress", "TrainingModels", False, False),
        ("InProgress", "GeneratingExplainabilityReport", True, False),
        ("InProgress", "GeneratingModelInsightsReport", True, False),
        ("Completed", "Completed", True, True),
    ]


def test_children_are_billed_as_they_run(emulator: Any) -> None:
    begun(emulator)
    assert emulator.control("GET", "/costs")["total_microdollars"] == 0
    assert emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"] == []
    emulator.advance(560)
    early = emulator.control("GET", "/costs")
    names = [one["TrainingJobName"] for one in emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"]]
    assert len(names) == 6
    assert "BillableTimeInSeconds" not in emulator.sagemaker.describe_training_job(TrainingJobName=names[0])
    assert [line["billed_seconds"] for line in early["lines"]] == [20] * 6
    emulator.advance(3600)
    final = emulator.control("GET", "/costs")
    billed = {name: emulator.sagemaker.describe_training_job(TrainingJobName=name) for name in names}
    assert {line["name"]: line["billed_seconds"] for line in final["lines"]} == {
        name: training["BillableTimeInSeconds"] for name, training in billed.items()
    }
    seconds = sum(line["billed_seconds"] for line in final["lines"])
    assert final["total_usd"] == pytest.approx(seconds * 0.461 / 3600, abs=1e-5)
    assert early["total_microdollars"] < final["total_microdollars"]


def test_few_algorithms_cost_less(emulator: Any) -> None:
    begun(emulator, CandidateGenerationConfig={"AlgorithmsConfig": [{"AutoMLAlgorithms": ["ets", "npts"]}]})
    emulator.advance(3600)
    names = {one["TrainingJobName"] for one in emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"]}
    assert len(names) == 2
    assert all("tsets" in name or "tsnpts" in name for name in names)


@pytest.mark.parametrize(("limit", "has_candidate"), [(500, False), (640, True)])
def test_the_runtime_limit_keeps_what_was_finished(emulator: Any, limit: int, has_candidate: bool) -> None:
    request = begun(emulator, CompletionCriteria={"MaxAutoMLJobRuntimeInSeconds": limit})
    emulator.advance(3600)
    job = described(emulator, request)
    assert (job["AutoMLJobStatus"], job["AutoMLJobSecondaryStatus"]) == ("Completed", "MaxAutoMLJobRuntimeReached")
    assert job["EndTime"] - job["CreationTime"] == timedelta(seconds=limit)
    assert ("BestCandidate" in job) == has_candidate


def test_a_stopped_job_takes_its_time_and_bills_no_more(emulator: Any) -> None:
    request = begun(emulator)
    emulator.advance(560)
    emulator.sagemaker.stop_auto_ml_job(AutoMLJobName=request["AutoMLJobName"])
    assert described(emulator, request)["AutoMLJobStatus"] == "Stopping"
    emulator.advance(31)
    job = described(emulator, request)
    assert (job["AutoMLJobStatus"], "BestCandidate" in job) == ("Stopped", False)
    emulator.advance(3600)
    assert {line["billed_seconds"] for line in emulator.control("GET", "/costs")["lines"]} == {20}
    trainings = emulator.sagemaker.list_training_jobs()["TrainingJobSummaries"]
    assert {one["TrainingJobStatus"] for one in trainings} == {"Stopped"}


def test_a_stopped_transform_leaves_nothing(emulator: Any) -> None:
    request = emulator.transform(emulator.model())
    emulator.sagemaker.create_transform_job(**request)
    emulator.advance(200)
    emulator.sagemaker.stop_transform_job(TransformJobName=request["TransformJobName"])
    emulator.sagemaker.stop_transform_job(TransformJobName=request["TransformJobName"])
    emulator.advance(3600)
    job = emulator.sagemaker.describe_transform_job(TransformJobName=request["TransformJobName"])
    assert job["TransformJobStatus"] == "Stopped"
    assert job["TransformEndTime"] - job["TransformStartTime"] == timedelta(seconds=50)
    assert emulator.outputs(request) == {}
    status, said, _ = emulator.post("StopTransformJob", {"TransformJobName": request["TransformJobName"]})
    assert (status, said["__type"]) == (400, "ValidationException")


def test_larger_instances_are_sooner_done(emulator: Any) -> None:
    model = emulator.model()
    seconds = []
    for instance in ("ml.m5.large", "ml.m5.xlarge", "ml.m5.12xlarge"):
        request = emulator.changed(emulator.transform(model), "TransformResources.InstanceType", instance)
        job = emulator.transformed(request)
        assert job["TransformJobStatus"] == "Completed"
        seconds.append((job["TransformEndTime"] - job["TransformStartTime"]).total_seconds())
    assert seconds[0] > seconds[1] > seconds[2] > 0
    meter = emulator.control("GET", "/costs")
    assert [line["kind"] for line in meter["lines"]].count("transform") == 3


def test_what_has_no_price_is_said(emulator: Any) -> None:
    request = emulator.changed(emulator.transform(emulator.model()), "TransformResources.InstanceType", "ml.m4.xlarge")
    emulator.transformed(request)
    meter = emulator.control("GET", "/costs")
    assert meter["unpriced"] == ["ml.m4.xlarge"]
    assert meter["total_microdollars"] > 0


def test_lists_are_paged_filtered_and_sorted(emulator: Any) -> None:
    emulator.control("POST", "/clock", {"stop": True})
    data = emulator.put("models/any.json", b"{}")
    for number in range(12):
        emulator.sagemaker.create_model(
            ModelName=f"m-{number:02}",
            PrimaryContainer={"Image": "any", "ModelDataUrl": data},
            ExecutionRoleArn=emulator.role,
        )
        emulator.advance(10)
    pages = list(emulator.sagemaker.get_paginator("list_models").paginate())
    assert [len(page["Models"]) for page in pages] == [10, 2]
    assert [one["ModelName"] for page in pages for one in page["Models"]] == [f"m-{n:02}" for n in reversed(range(12))]
    first = pages[-1]["Models"][-1]["CreationTime"]
    late = emulator.sagemaker.list_models(CreationTimeAfter=first + timedelta(seconds=95), SortOrder="Ascending")
    assert [one["ModelName"] for one in late["Models"]] == ["m-10", "m-11"]
    named = emulator.sagemaker.list_models(NameContains="M-03", MaxResults=1)
    assert [one["ModelName"] for one in named["Models"]] == ["m-03"]
    assert emulator.post("ListModels", {"NextToken": "made up"})[1]["__type"] == "ValidationException"


def test_every_call_is_in_the_journal(emulator: Any) -> None:
    request = begun(emulator)
    emulator.post("DescribeModel", {"ModelName": "none"})
    emulator.client("sts").get_caller_identity()
    emulator.put("noted.txt", b"noted")
    calls = emulator.control("GET", "/journal")["calls"]
    assert [(one["service"], one["status"]) for one in calls] == [
        ("sagemaker", 200),
        ("sagemaker", 400),
        ("sts", 200),
        ("s3", 200),
    ]
    assert calls[0]["request"] == request
    assert (calls[1]["error"], calls[1]["operation"]) == ("ValidationException", "DescribeModel")
    assert calls[3]["path"] == f"/{emulator.bucket}/noted.txt"
    assert len(emulator.control("GET", "/journal?service=sagemaker&operation=CreateAutoMLJobV2")["calls"]) == 1
    assert emulator.control("DELETE", "/journal")["calls"] == []


def test_every_answer_has_the_shape_of_the_model(emulator: Any) -> None:
    """What is required is there, and every value keeps the model's patterns, limits and enums."""
    model = emulator.model()
    request = emulator.transform(model)
    emulator.transformed(request)
    [job] = emulator.post("ListAutoMLJobs", {})[1]["AutoMLJobSummaries"]
    training = emulator.post("ListTrainingJobs", {})[1]["TrainingJobSummaries"][0]["TrainingJobName"]
    domain = emulator.post("ListDomains", {})[1]["Domains"][0]["DomainId"]
    asked: dict[str, dict[str, Any]] = {
        "AddTags": {"ResourceArn": job["AutoMLJobArn"], "Tags": [{"Key": "a", "Value": "b"}]},
        "ListTags": {"ResourceArn": job["AutoMLJobArn"]},
        "DescribeAutoMLJobV2": {"AutoMLJobName": job["AutoMLJobName"]},
        "ListCandidatesForAutoMLJob": {"AutoMLJobName": job["AutoMLJobName"]},
        "DescribeTrainingJob": {"TrainingJobName": training},
        "DescribeTransformJob": {"TransformJobName": request["TransformJobName"]},
        "DescribeModel": {"ModelName": model},
        "DescribeDomain": {"DomainId": domain},
        "CreateAutoMLJobV2": emulator.automl(),
        "CreateTransformJob": emulator.transform(model),
    }
    lists = [name for name in constraints.OPERATIONS if name.startswith("List") and name not in asked]
    for operation, body in (asked | {name: {} for name in lists}).items():
        status, answer, headers = emulator.post(operation, body)
        assert (status, headers["x-headroom-emulated"]) == (200, "true"), answer
        assert list(constraints.complaints(constraints.operation(operation).output_shape, answer)) == [], operation


def test_of_many_creates_of_one_name_one_wins(emulator: Any) -> None:
    request = emulator.automl()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: emulator.post("CreateAutoMLJobV2", request), range(8)))
    assert sorted(status for status, *_ in answers) == [200] + [400] * 7
    assert {said.get("__type") for _, said, _ in answers} == {None, "ResourceInUse"}
    assert len(emulator.sagemaker.list_auto_ml_jobs()["AutoMLJobSummaries"]) == 1


async def test_aioboto3_drives_it_too(emulator: Any) -> None:
    request = emulator.automl()
    keys = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything", "region_name": "eu-west-1"}
    async with aioboto3.Session(**keys).client("sagemaker", endpoint_url=emulator.url) as sagemaker:
        await sagemaker.create_auto_ml_job_v2(**request)
        with pytest.raises(sagemaker.exceptions.ResourceInUse):
            await sagemaker.create_auto_ml_job_v2(**request)
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            await sagemaker.describe_auto_ml_job_v2(AutoMLJobName="none")
        found = await sagemaker.describe_auto_ml_job_v2(AutoMLJobName=request["AutoMLJobName"])
    assert found["AutoMLJobStatus"] == "InProgress"


def test_unsigned_calls_are_refused(emulator: Any) -> None:
    assert emulator.post("ListModels", {}, credentials="")[1]["__type"] == "MissingAuthenticationTokenException"
    other = "AWS4-HMAC-SHA256 Credential=anyone/20260101/eu-west-1/s3/aws4_request, Signature=0"
    assert emulator.post("ListModels", {}, credentials=other)[1]["__type"] == "InvalidSignatureException"


def test_the_control_endpoint_says_what_it_is(emulator: Any) -> None:
    said = emulator.control("GET", "")
    assert said["emulated"]
    assert set(said["operations"]) == constraints.OPERATIONS
    assert "error" in emulator.control("GET", "/elsewhere")

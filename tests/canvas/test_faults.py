"""Every fault of the matrix that AWS can show a managed run, and what must become of the run.

One worker carries all cells, one after the other; the emulator is asked for the fault, the checker looks afterwards.
"""

import signal
from dataclasses import dataclass

import httpx
import psutil
import pytest

from app.canvas.requests import FORECAST
from tests.canvas.checker import check
from tests.canvas.place import BUCKET, ROLE, SPEED, Forecast, Place, Submit
from tests.processes import eventually, worker


@dataclass(frozen=True)
class Cell:
    """So many calls of the operation meet the fault; the run ends so. `code` says why it failed."""

    operation: str
    fault: str
    times: int = 1
    code: str | None = None

    @property
    def status(self) -> str:
        return "failed" if self.code else "succeeded"


CREATES = ("CreateAutoMLJobV2", "CreateModel", "CreateTransformJob")

CELLS = [
    # A create whose outcome nobody heard is looked for, not repeated.
    *(Cell(create, fault) for create in CREATES for fault in ("lost_reply", "server_error_after_success")),
    *(Cell(create, "server_error") for create in CREATES),
    *(Cell(create, "throttle", 2) for create in CREATES),
    # Every poll is refused for a while.
    Cell("DescribeAutoMLJobV2", "throttle", 6),
    Cell("DescribeTransformJob", "throttle", 6),
    Cell("DescribeTransformJob", "server_error", 6),
    Cell("ListTrainingJobs", "throttle", 5),
    # No room now is no failure.
    Cell("CreateAutoMLJobV2", "resource_limit", 3),
    Cell("CreateTransformJob", "resource_limit", 3),
    # What asking again does not change.
    Cell("CreateAutoMLJobV2", "access_denied", code="aws-denied"),
    Cell("CreateTransformJob", "access_denied", code="aws-denied"),
    Cell("CreateModel", "expired_token", code="aws-denied"),
    Cell("DescribeAutoMLJobV2", "expired_token", code="aws-denied"),
    # What becomes of jobs.
    Cell("CreateAutoMLJobV2", "fail_job", code="automl-failed"),
    Cell("CreateTransformJob", "fail_job", code="transform-failed"),
    Cell("CreateAutoMLJobV2", "no_candidate", code="automl-no-candidate"),
    Cell("CreateAutoMLJobV2", "cpu_containers"),
    Cell("CreateTransformJob", "slow"),
    Cell("DescribeAutoMLJobV2", "unknown_status", 3),
    Cell("DescribeTransformJob", "unknown_status", 3),
    # What comes back.
    *(
        Cell("CreateTransformJob", f"{how}_out", code="bad-model-output")
        for how in ("malformed", "nan", "short", "long", "missing_item", "extra_item", "duplicate")
    ),
    *(Cell("CreateTransformJob", f"{how}_out") for how in ("late", "crossed", "no_mean", "plain_dates")),
    # The bucket.
    Cell("s3:PutObject", "throttle", 6),
    Cell("s3:PutObject", "server_error", 6),
    Cell("s3:PutObject", "lost_reply", 2),
    Cell("s3:PutObject", "access_denied", code="aws-denied"),
    Cell("s3:GetObject", "throttle", 6),
    Cell("s3:GetObject", "server_error", 2),
    Cell("s3:GetObject", "access_denied", code="aws-denied"),
    Cell("s3:ListObjects", "server_error", 6),
    # Cleaning is tried until nothing is left.
    Cell("DeleteModel", "throttle", 6),
    Cell("DeleteModel", "access_denied", 2),
    Cell("s3:DeleteObjects", "throttle", 6),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.operation}-{cell.fault}")
async def test_a_fault_of_aws_ends_as_it_should(place: Place, submit: Submit, cell: Cell) -> None:
    place.arm(cell.operation, cell.fault, cell.times)
    forecast = await submit()
    place.wait(forecast)
    check(place, forecast, cell.status, cell.code)
    assert place.query("SELECT max(attempt) FROM runs WHERE forecast_id = %s", forecast["id"]) == [(0,)]
    assert place.control("faults")["faults"] == [], "the fault was met as often as asked"
    if cell.code:
        _local_models_answer(place, forecast)


@pytest.mark.parametrize(
    ("create", "stop", "name", "code"),
    [
        ("CreateAutoMLJobV2", "stop_auto_ml_job", "AutoMLJobName", "automl-stopped"),
        ("CreateTransformJob", "stop_transform_job", "TransformJobName", "transform-failed"),
    ],
)
async def test_a_job_that_a_person_stops_on_aws_ends_the_run(
    place: Place, submit: Submit, create: str, stop: str, name: str, code: str
) -> None:
    forecast = await submit_slowly(place, submit, create)
    getattr(place.client("sagemaker"), stop)(**{name: place.calls(create)[0]["request"][name]})
    place.control("clock", {"start": True})
    place.wait(forecast)
    check(place, forecast, "failed", code)
    _local_models_answer(place, forecast)


async def test_a_status_nobody_has_heard_of_is_waited_for_until_the_deadline(place: Place, submit: Submit) -> None:
    place.arm("DescribeAutoMLJobV2", "unknown_status", 1_000)
    forecast = await submit()
    eventually(lambda: place.calls("DescribeAutoMLJobV2")[4:], "some polls")
    assert place.run(forecast) == ("running", None)
    _long_ago(place, forecast, "began")
    eventually(lambda: place.run(forecast)[0] == "failed", "the deadline")
    place.control("faults", method="DELETE")
    place.wait(forecast)
    check(place, forecast, "failed", "canvas-deadline")
    _local_models_answer(place, forecast)


async def test_an_output_that_never_comes_is_given_up(place: Place, submit: Submit) -> None:
    place.arm("CreateTransformJob", "missing_out")
    forecast = await submit()
    run_id = place.run_id(forecast)
    eventually(
        lambda: place.query("SELECT FROM canvas_runs WHERE run_id = %s AND stage = 'collecting'", run_id), "the wait"
    )
    assert place.run(forecast) == ("running", None)
    _long_ago(place, forecast, "transformed")
    place.wait(forecast)
    check(place, forecast, "failed", "transform-output-missing")


@pytest.mark.parametrize("what", ["job", "transform"])
async def test_a_stranger_of_our_name_is_left_alone(place: Place, submit: Submit, what: str) -> None:
    with place.rested():
        forecast = await submit()
        stranger = _stranger(place, forecast, what)
    place.wait(forecast)
    assert place.run(forecast) == ("failed", "aws-name-taken")
    stops = place.calls("StopAutoMLJob", "StopTransformJob")
    assert [call for call in stops if stranger in call["request"].values()] == []
    sagemaker = place.client("sagemaker")
    found = (
        sagemaker.describe_auto_ml_job_v2(AutoMLJobName=stranger)["AutoMLJobStatus"]
        if what == "job"
        else sagemaker.describe_transform_job(TransformJobName=stranger)["TransformJobStatus"]
    )
    assert found in ("InProgress", "Completed")
    paid = place.query(
        "SELECT purpose FROM ledger WHERE run_id = %s AND kind = 'settled' ORDER BY id", place.run_id(forecast)
    )
    assert paid == ([] if what == "job" else [("automl",)]), "what a stranger uses is not ours to pay"
    _local_models_answer(place, forecast)


POINTS = [
    "canvas.staging",
    "canvas.before.automl",
    "canvas.after.automl",
    "canvas.before.model",
    "canvas.before.transform-forecast",
    "canvas.after.transform-forecast",
    "canvas.collecting",
    "before_store",
]


@pytest.mark.parametrize("point", POINTS)
async def test_a_frozen_worker_that_goes_on_after_the_cancel_leaves_nothing(
    place: Place, submit: Submit, client: httpx.AsyncClient, point: str
) -> None:
    with place.rested():
        forecast = await submit()
        with worker(place.settings, f"{point}=stop") as frozen:
            sleeper = psutil.Process(frozen.pid)
            eventually(lambda: sleeper.status() == psutil.STATUS_STOPPED, f"the freeze at {point}")
            assert (await client.post(f"/forecasts/{forecast['id']}/cancel")).status_code == 202
            sleeper.send_signal(signal.SIGCONT)
            eventually(lambda: _lets_go(place, forecast), "the thawed worker's notice")
    place.wait(forecast)
    check(place, forecast, "cancelled")


async def test_a_job_made_after_all_was_clean_is_found_stopped_and_paid(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    with place.rested():
        forecast = await submit()
        with worker(place.settings, "canvas.before.automl=kill") as doomed:
            eventually(lambda: doomed.poll() is not None, "the kill")
        late_call = place.late_call(forecast)
        assert (await client.post(f"/forecasts/{forecast['id']}/cancel")).status_code == 202
    place.wait(forecast)
    check(place, forecast, "cancelled")
    place.control("clock", {"speed": 60})
    late_call()
    eventually(lambda: place.calls("StopAutoMLJob"), "the stop")
    place.control("clock", {"speed": SPEED})
    paid = "SELECT FROM ledger WHERE run_id = %s AND purpose = 'automl' AND kind = 'settled'"
    eventually(lambda: place.query(paid, place.run_id(forecast)), "the bill")
    place.wait(forecast)
    check(place, forecast, "cancelled")


async def test_two_workers_make_one_job(place: Place, submit: Submit) -> None:
    with worker(place.settings):
        forecasts = [await submit() for _ in range(3)]
        for forecast in forecasts:
            place.wait(forecast)
    for forecast in forecasts:
        check(place, forecast)


async def submit_slowly(place: Place, submit: Submit, until: str) -> Forecast:
    """Submitted, and time stands still on AWS once the call has been made."""
    place.control("clock", {"speed": 600})
    place.arm("CreateTransformJob", "slow", times=2)
    forecast = await submit()
    eventually(lambda: place.calls(until), f"a call of {until}")
    place.control("clock", {"stop": True})
    place.control("clock", {"speed": SPEED})
    return forecast


def _lets_go(place: Place, forecast: Forecast) -> bool:
    notice = f"run {place.run_id(forecast)} is no longer ours"
    return notice in (place.settings.data_dir / "worker.log").read_text()


def _long_ago(place: Place, forecast: Forecast, fact: str) -> None:
    """The day before yesterday, as far as the run knows."""
    past = '"2020-01-01T00:00:00+00:00"'
    place.query(
        "UPDATE canvas_runs SET facts = jsonb_set(facts, %s, %s::jsonb) WHERE run_id = %s",
        [fact],
        past,
        place.run_id(forecast),
    )


def _local_models_answer(place: Place, forecast: Forecast) -> None:
    runs = place.query("SELECT model, status FROM runs WHERE forecast_id = %s ORDER BY position", forecast["id"])
    assert runs == [("canvas", "failed"), ("auto", "succeeded")]


def _stranger(place: Place, forecast: Forecast, what: str) -> str:
    """A job of somebody else's that has the name which the run will come to."""
    sagemaker, name = place.client("sagemaker"), place.name(forecast, None if what == "job" else FORECAST)
    rows = "\n".join(f"a,2024-{1 + day // 28:02}-{1 + day % 28:02},{day}" for day in range(200))
    place.client("s3").put_object(Bucket=BUCKET, Key="stranger/a.csv", Body=f"id,at,value\n{rows}\n".encode())
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/stranger/"}}
    job = name if what == "job" else "somebody-else"
    sagemaker.create_auto_ml_job_v2(
        AutoMLJobName=job,
        AutoMLJobInputDataConfig=[
            {
                "ChannelType": "training",
                "ContentType": "text/csv;header=present",
                "CompressionType": "None",
                "DataSource": source,
            }
        ],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/strangers"},
        AutoMLProblemTypeConfig={
            "TimeSeriesForecastingJobConfig": {
                "ForecastFrequency": "D",
                "ForecastHorizon": 5,
                "TimeSeriesConfig": {
                    "TargetAttributeName": "value",
                    "TimestampAttributeName": "at",
                    "ItemIdentifierAttributeName": "id",
                },
            }
        },
        RoleArn=ROLE,
    )
    if what == "job":
        return name

    def best() -> dict[str, object] | None:
        found = sagemaker.describe_auto_ml_job_v2(AutoMLJobName=job)
        return found.get("BestCandidate") if found["AutoMLJobStatus"] == "Completed" else None

    containers = eventually(best, "the stranger's training")["InferenceContainers"]  # type: ignore[index]
    sagemaker.create_model(ModelName="somebody-else", Containers=containers, ExecutionRoleArn=ROLE)
    sagemaker.create_transform_job(
        TransformJobName=name,
        ModelName="somebody-else",
        MaxPayloadInMB=0,
        TransformInput={"DataSource": source, "ContentType": "text/csv", "SplitType": "None"},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/strangers/", "AssembleWith": "Line"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )
    return name

"""AutoML jobs V2 for time series: created, described, stopped; their candidates and child training jobs.

What AWS may only find out later is refused at create here, which is a choice of ours: input that is not in S3,
columns that the file does not have, a horizon beyond a quarter of its steps. How long a job and its children take is
invented, and plausible: see `_plan`.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from app.domain.panel import Index
from app.emulator import faults, forecasting, listing
from app.emulator.forecasting import BadData, Schema
from app.emulator.protocol import ACCOUNT, MARK, Body, Call, invalid
from app.emulator.rules import ALGORITHMS, MAX_HORIZON, OBJECTIVES
from app.emulator.state import STOPPING, Account, AutoMLJob, Plan, Training, in_use, key, not_found

INSTANCE, DEAR, VOLUME_GB = "ml.m5.2xlarge", "ml.m5.24xlarge", 50
"""What the children run on. AWS chooses its own and does not say which."""

IMAGE = "headroom-emulated-automl-time-series"
SLOW = 10.0

_BEFORE = (("Starting", 120.0), ("AnalyzingData", 240.0), ("PreTraining", 180.0))
_STACKING = 120.0
_AFTER = (("GeneratingExplainabilityReport", 120.0), ("GeneratingModelInsightsReport", 120.0))
_SHARES = {"cnn-qr": 1.3, "deepar": 1.4, "prophet": 1.0, "npts": 0.5, "arima": 0.8, "ets": 0.6}
_LABELS = {
    "cnn-qr": "cnnqr",
    "deepar": "deepar",
    "prophet": "tsprophet",
    "npts": "tsnpts",
    "arima": "tsarima",
    "ets": "tsets",
}


@dataclass(frozen=True)
class _Data:
    uris: tuple[str, ...]
    schema: Schema
    rows: int


def create(account: Account, call: Call) -> Body:
    body, name = call.body, call.body["AutoMLJobName"]
    _ensure_free(account, name)
    data = _read(account, body)
    with account.lock:
        _ensure_free(account, name)
        struck = account.faults.take(call.operation, faults.CREATES[call.operation] | {"unknown_status"})
        now, arn = account.clock.now(), call.arn("automl-job", name)
        job = AutoMLJob(
            name=name,
            arn=arn,
            request=body,
            created=now,
            plan=_plan(call, data.rows, now, SLOW if struck == "slow" else 1.0),
            content=data.uris,
            model_uri=f"{body['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/emulated/model.json",
            image=f"{ACCOUNT}.dkr.ecr.{call.region}.amazonaws.com/{IMAGE}:1",
            faults=frozenset(filter(None, [struck])),
        )
        if struck == "fail_job":
            job.failure = f"{MARK} AlgorithmError: the training of every candidate failed, as was asked for."
            begun = min((one.start for one in job.plan.trainings), default=job.plan.end)
            job.plan = job.plan.cut(begun + 30, "Failed")
        account.automl[key(name)] = job
        account.keep_tags(arn, body)
        for training in job.plan.trainings:
            account.keep_tags(training.arn, {})
        account.clock.hurry_until(job.end)
        job.worker = threading.Thread(target=_carry_out, args=(account, job, data.schema), daemon=True)
        job.worker.start()
    return {"AutoMLJobArn": arn}


def describe(account: Account, call: Call) -> Body:
    with account.lock:
        job, now = _job(account, call), account.clock.now()
        status, secondary = job.status(now)
        config = job.request["AutoMLProblemTypeConfig"]
        completion = config["TimeSeriesForecastingJobConfig"].get("CompletionCriteria", {})
        ended = job.has_ended(now)
        return {
            "AutoMLJobName": job.name,
            "AutoMLJobArn": job.arn,
            "AutoMLJobInputDataConfig": job.request["AutoMLJobInputDataConfig"],
            "OutputDataConfig": job.request["OutputDataConfig"],
            "RoleArn": job.request["RoleArn"],
            "AutoMLJobObjective": job.request.get("AutoMLJobObjective"),
            "AutoMLProblemTypeConfig": config,
            "AutoMLProblemTypeConfigName": "TimeSeriesForecasting",
            "SecurityConfig": job.request.get("SecurityConfig"),
            "CreationTime": job.created,
            "EndTime": job.end if ended else None,
            "LastModifiedTime": job.end if ended else now,
            "FailureReason": job.failure if status == "Failed" else None,
            "BestCandidate": _best(job, now),
            "AutoMLJobStatus": _unknown(job) or status,
            "AutoMLJobSecondaryStatus": _unknown(job) or secondary,
            "AutoMLJobArtifacts": {},
            "ResolvedAttributes": {
                "AutoMLJobObjective": {"MetricName": _objective(job)},
                "CompletionCriteria": completion | {"MaxCandidates": 1},
            },
        }


def list_jobs(account: Account, call: Call) -> Body:
    with account.lock:
        now = account.clock.now()
        rows = [_summary(job, now) for job in account.automl.values()]
    return listing.page(rows, call.body, "AutoMLJobSummaries", "AutoMLJobName", "AutoMLJobStatus", last=True)


def stop(account: Account, call: Call) -> None:
    """Of a job that has ended, or is being stopped, nothing happens."""
    with account.lock:
        job, now = _job(account, call), account.clock.now()
        if job.stopped_at is None and not job.has_ended(now):
            job.plan = job.plan.cut(now, "Stopped")
            job.stopped_at = now
            account.clock.hurry_until(now + STOPPING)
    account.clock.wake()


def list_candidates(account: Account, call: Call) -> Body:
    body = call.body
    with account.lock:
        job, now = _job(account, call), account.clock.now()
        best = _best(job, now)
        found = [_candidate(job, one, now) for one in job.plan.trainings if one.start <= now] + ([best] if best else [])
    if "CandidateNameEquals" in body:
        found = [one for one in found if one["CandidateName"] == body["CandidateNameEquals"]]
    if body.get("SortBy") == "FinalObjectiveMetricValue":
        found.sort(key=lambda one: one.get("FinalAutoMLJobObjectiveMetric", {}).get("Value", np.inf))
        body = {name: value for name, value in body.items() if name != "SortBy"} | {"SortBy": "given"}
    return listing.page(found, body, "Candidates", "CandidateName", "CandidateStatus", last=True)


def list_trainings(account: Account, call: Call) -> Body:
    with account.lock:
        now = account.clock.now()
        rows = [
            {
                "TrainingJobName": one.name,
                "TrainingJobArn": one.arn,
                "CreationTime": one.start,
                "TrainingEndTime": one.end if _training_status(job, one, now) != "InProgress" else None,
                "LastModifiedTime": min(now, one.end),
                "TrainingJobStatus": _training_status(job, one, now),
            }
            for job, one in account.trainings()
            if one.start <= now
        ]
    return listing.page(rows, call.body, "TrainingJobSummaries", "TrainingJobName", "TrainingJobStatus", last=False)


def instance(job: AutoMLJob) -> str:
    """What its children run on."""
    return DEAR if "dear" in job.faults else INSTANCE


def list_processings(_account: Account, _call: Call) -> Body:
    """None: the children of an emulated job are all training jobs."""
    return {"ProcessingJobSummaries": []}


def describe_training(account: Account, call: Call) -> Body:
    name = call.body["TrainingJobName"]
    with account.lock:
        now = account.clock.now()
        for job, one in account.trainings():
            if one.name == name and one.start <= now:
                return _training(job, one, now)
    raise not_found(call.operation, "training job", name)


def _ensure_free(account: Account, name: str) -> None:
    if key(name) in account.automl:
        raise in_use("CreateAutoMLJobV2", "AutoML job", name)


def _job(account: Account, call: Call) -> AutoMLJob:
    name = call.body["AutoMLJobName"]
    if key(name) not in account.automl:
        raise not_found(call.operation, "AutoML job", name)
    return account.automl[key(name)]


def _read(account: Account, body: Body) -> _Data:
    """What the job is to learn from. Raises AwsError when it cannot."""
    config = body["AutoMLProblemTypeConfig"]["TimeSeriesForecastingJobConfig"]
    source = body["AutoMLJobInputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    if not account.s3.bucket_exists(body["OutputDataConfig"]["S3OutputPath"]):
        raise invalid(f"The bucket of S3OutputPath {body['OutputDataConfig']['S3OutputPath']} does not exist.")
    stored = account.s3.objects(source)
    if not stored:
        raise invalid(f"No S3 objects found under S3 URL {source} given in input data source.")
    features = _features(account, config)
    made_for: Schema | None = None
    steps: list[Index] = []
    rows = 0
    try:
        for one in stored:
            content = account.s3.read(one.uri) or b""
            columns = forecasting.header(content)
            made_for = made_for or forecasting.schema(config, columns, features)
            if columns != made_for.columns:
                raise BadData(f"{one.uri} has other columns than {stored[0].uri}")
            found, count = forecasting.steps_of(content, made_for)
            steps.append(found)
            rows += count
    except BadData as problem:
        raise invalid(f"The training data cannot be used: {problem}.") from None
    assert made_for is not None
    history = len(np.unique(np.concatenate(steps)))
    most = min(MAX_HORIZON, history // 4)
    if config["ForecastHorizon"] > most:
        raise invalid(
            f"ForecastHorizon {config['ForecastHorizon']} is too long: with {history} time steps in the data it may be "
            f"{most} at the most, a quarter of them and not more than {MAX_HORIZON}."
        )
    return _Data(tuple(one.uri for one in stored), made_for, rows)


def _features(account: Account, config: Body) -> Sequence[str] | None:
    uri = config.get("FeatureSpecificationS3Uri")
    if uri is None:
        return None
    try:
        named = json.loads(account.s3.read(uri) or b"null")["FeatureAttributeNames"]
    except (ValueError, TypeError, KeyError):
        raise invalid(f"FeatureSpecificationS3Uri {uri} is no JSON object with FeatureAttributeNames.") from None
    return [str(name) for name in named]


def _plan(call: Call, rows: int, now: float, pace: float) -> Plan:
    """A child takes its share of 100 s and 40 s more at 100,000 rows, growing with the power 0.55 of the rows.

    All children run at once; so 100 servers of three years take about 18 minutes and 13 minutes of instance time,
    10,000 servers half an hour. NB1 of AWS's samples speaks of an hour, NB2 of half of one, both of small data.
    """
    name = call.body["AutoMLJobName"]
    config = call.body["AutoMLProblemTypeConfig"]["TimeSeriesForecastingJobConfig"]
    chosen = [
        one
        for entry in config.get("CandidateGenerationConfig", {}).get("AlgorithmsConfig", [])
        for one in entry["AutoMLAlgorithms"]
    ] or list(ALGORITHMS)
    completion = config.get("CompletionCriteria", {})
    phases, at = [], now
    for phase, seconds in _BEFORE:
        at += seconds * pace
        phases.append((phase, at))
    whole = (100 + 40 * (rows / 100_000) ** 0.55) * pace
    longest = completion.get("MaxRuntimePerTrainingJobInSeconds", np.inf)
    mark = sha256(f"{name}{now}".encode()).hexdigest()[:8]
    trainings = [
        Training(label, call.arn("training-job", label), algorithm, at, at + min(whole * _SHARES[algorithm], longest))
        for algorithm in chosen
        for label in [f"{name}-{_LABELS[algorithm]}-1-{mark}"]
    ]
    at = max(one.end for one in trainings) + _STACKING * pace
    phases.append(("TrainingModels", at))
    candidate_at = at
    for phase, seconds in _AFTER:
        at += seconds * pace
        phases.append((phase, at))
    plan = Plan(tuple(phases), tuple(trainings), candidate_at, "Completed")
    limit = now + completion.get("MaxAutoMLJobRuntimeInSeconds", np.inf)
    if limit >= plan.end:
        return plan
    # It stops gracefully and keeps the best model that was finished by then, if one was.
    kept = min(candidate_at, limit) if any(one.end <= limit for one in trainings) else np.inf
    return replace(plan.cut(limit, "MaxAutoMLJobRuntimeReached"), candidate_at=kept)


def _carry_out(account: Account, job: AutoMLJob, made_for: Schema) -> None:
    """Learn what there is to learn, leave the model when its time comes, and see the job to its end."""

    def stopped() -> bool:
        return job.stopped_at is not None

    try:
        with account.working:
            if not stopped():
                job.metrics = forecasting.judge(account.s3.read(job.content[0]) or b"", made_for)
    except Exception as problem:
        job.failure = f"{MARK} AlgorithmError: {problem}"[:1024]
    if job.failure is None and account.clock.wait_until(min(job.plan.candidate_at, job.plan.end), stopped):
        account.s3.write(job.model_uri, json.dumps({"emulated": True, "schema": made_for.to_json()}).encode())
        backtest = json.dumps({"emulated": True, "metrics": job.metrics}).encode()
        account.s3.write(f"{_artifacts(job)}/backtest-results/metrics.json", backtest)
    job.learnt.set()
    account.clock.wait_until(job.plan.end, stopped)
    job.carried_out.set()


def _best(job: AutoMLJob, now: float) -> Body | None:
    """The stacked candidate; near the end of the job, and not of every job."""
    shown = job.plan.candidate_at <= now and (job.stopped_at is None or job.plan.candidate_at <= job.stopped_at)
    if not shown or not job.learnt.is_set() or job.failure or "no_candidate" in job.faults or not job.metrics:
        return None
    container = {
        "Image": job.image,
        "ModelDataUrl": job.model_uri,
        "Environment": {"HEADROOM_EMULATED": "true", "AUTOML_JOB": job.name},
    }
    containers: Body = {"InferenceContainers": [container]}
    if "cpu_containers" in job.faults:
        containers = {"InferenceContainerDefinitions": {"CPU": [container]}}
    mark = job.plan.trainings[0].name.rsplit("-", 1)[1]
    return {
        "CandidateName": f"{job.name}-me-1-{mark}",
        **_judged(job, forecasting.MODEL),
        "ObjectiveStatus": "Succeeded",
        "CandidateSteps": [_step(one) for one in job.plan.trainings],
        "CandidateStatus": "Completed",
        **containers,
        "CreationTime": job.plan.trainings[0].start,
        "EndTime": job.plan.candidate_at,
        "LastModifiedTime": job.plan.candidate_at,
    }


def _candidate(job: AutoMLJob, training: Training, now: float) -> Body:
    """A base model of the stack. None is run on its own: its figures are those of FEW."""
    status = _training_status(job, training, now)
    return {
        "CandidateName": training.name,
        **(_judged(job, forecasting.FEW) if status == "Completed" else {}),
        "ObjectiveStatus": "Succeeded" if status == "Completed" else "Pending" if status == "InProgress" else "Failed",
        "CandidateSteps": [_step(training)],
        "CandidateStatus": status,
        "CreationTime": training.start,
        "EndTime": training.end if status != "InProgress" else None,
        "LastModifiedTime": min(now, training.end),
    }


def _judged(job: AutoMLJob, model: str) -> Body:
    metrics, objective = job.metrics.get(model, {}), _objective(job)
    final = {"Type": "Minimize", "MetricName": objective, "StandardMetricName": objective}
    return {
        "FinalAutoMLJobObjectiveMetric": final | {"Value": metrics[objective]} if objective in metrics else None,
        "CandidateProperties": {
            "CandidateArtifactLocations": {
                "Explainability": f"{_artifacts(job)}/explainability/",
                "ModelInsights": f"{_artifacts(job)}/model-insights/",
                "BacktestResults": f"{_artifacts(job)}/backtest-results/",
            },
            "CandidateMetrics": [
                {"MetricName": name, "StandardMetricName": name, "Value": value, "Set": "Test"}
                for name, value in metrics.items()
            ],
        },
    }


def _artifacts(job: AutoMLJob) -> str:
    return job.model_uri.rsplit("/", 1)[0]


def _objective(job: AutoMLJob) -> str:
    named: str = job.request.get("AutoMLJobObjective", {}).get("MetricName", OBJECTIVES[0])
    return named


def _step(training: Training) -> Body:
    return {
        "CandidateStepType": "AWS::SageMaker::TrainingJob",
        "CandidateStepArn": training.arn,
        "CandidateStepName": training.name,
    }


def _summary(job: AutoMLJob, now: float) -> Body:
    status, secondary = job.status(now)
    ended = job.has_ended(now)
    return {
        "AutoMLJobName": job.name,
        "AutoMLJobArn": job.arn,
        "AutoMLJobStatus": status,
        "AutoMLJobSecondaryStatus": secondary,
        "CreationTime": job.created,
        "EndTime": job.end if ended else None,
        "LastModifiedTime": job.end if ended else now,
        "FailureReason": job.failure if status == "Failed" else None,
    }


def _training_status(job: AutoMLJob, training: Training, now: float) -> str:
    if now < training.end:
        return "InProgress"
    cut_short = training.end >= job.plan.end
    return "Completed" if not cut_short else "Failed" if job.failure else "Stopped"


def _training(job: AutoMLJob, training: Training, now: float) -> Body:
    status = _training_status(job, training, now)
    ended = status != "InProgress"
    seconds = max(round(training.end - training.start), 1)
    return {
        "TrainingJobName": training.name,
        "TrainingJobArn": training.arn,
        "AutoMLJobArn": job.arn,
        "ModelArtifacts": {"S3ModelArtifacts": job.model_uri},
        "TrainingJobStatus": status,
        "SecondaryStatus": status if ended else "Training",
        "FailureReason": job.failure if status == "Failed" else None,
        "AlgorithmSpecification": {"TrainingImage": job.image, "TrainingInputMode": "File"},
        "HyperParameters": {"emulated": "true", "algorithm": training.algorithm},
        "RoleArn": job.request["RoleArn"],
        "ResourceConfig": {"InstanceType": instance(job), "InstanceCount": 1, "VolumeSizeInGB": VOLUME_GB},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
        "CreationTime": training.start,
        "TrainingStartTime": training.start,
        "TrainingEndTime": training.end if ended else None,
        "LastModifiedTime": min(now, training.end),
        "TrainingTimeInSeconds": seconds if ended else None,
        "BillableTimeInSeconds": seconds if ended else None,
    }


def _unknown(job: AutoMLJob) -> str | None:
    return faults.UNKNOWN if "unknown_status" in job.faults else None

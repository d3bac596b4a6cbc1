"""Batch transforms: every object under a prefix answered by one `.out` object, all with one model.

    s3://…/input/X.csv   ─▶   <S3OutputPath>/X.csv.out

An object that cannot be answered gets none, and fails the job in the end, as documented. Whether the input is in S3
is looked at when the job is created, which is a choice of ours.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from app.emulator import automl, faults, forecasting, listing
from app.emulator.forecasting import BadData, Schema
from app.emulator.protocol import MARK, Body, Call, invalid
from app.emulator.rules import CSV
from app.emulator.s3 import Stored, split
from app.emulator.state import STOPPING, Account, Model, TransformJob, in_use, key, not_found

PROVISIONING = 150.0
"""Seconds until the instances are up; not billed."""

MEGABYTE = 1 << 20

_START = 180.0
_BYTES_PER_VCPU_SECOND = 15_000
_VCPUS = {"large": 2, "xlarge": 4}


def create(account: Account, call: Call) -> Body:
    body, name = call.body, call.body["TransformJobName"]
    source = body["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
    with account.lock:
        _ensure_free(account, name)
        model = account.models.get(key(body["ModelName"]))
    if model is None:
        raise not_found(call.operation, "model", body["ModelName"])
    stored = account.s3.objects(source)
    if not stored:
        raise invalid(f"No S3 objects found under S3 URL {source} given in input data source.")
    if not account.s3.bucket_exists(body["TransformOutput"]["S3OutputPath"]):
        raise invalid(f"The bucket of S3OutputPath {body['TransformOutput']['S3OutputPath']} does not exist.")
    with account.lock:
        _ensure_free(account, name)
        struck = account.faults.take(call.operation, faults.CREATES[call.operation] | {"unknown_status"})
        now, arn = account.clock.now(), call.arn("transform-job", name)
        pace = automl.SLOW if struck == "slow" else 1.0
        start = now + PROVISIONING * pace
        end = start + _seconds(stored, body["TransformResources"]) * pace
        job = TransformJob(name, arn, body, now, start, end, frozenset(filter(None, [struck])))
        if struck == "fail_job":
            job.failure = f"{MARK} AlgorithmError: see job logs for more information. It failed, as was asked for."
        account.transforms[key(name)] = job
        account.keep_tags(arn, body)
        account.clock.hurry_until(job.at_rest)
        job.worker = threading.Thread(target=_carry_out, args=(account, job, model, stored), daemon=True)
        job.worker.start()
    return {"TransformJobArn": arn}


def describe(account: Account, call: Call) -> Body:
    with account.lock:
        job, now = _job(account, call), account.clock.now()
        status = job.status(now)
        kept = ("MaxConcurrentTransforms", "ModelClientConfig", "MaxPayloadInMB", "BatchStrategy", "Environment")
        return {
            "TransformJobName": job.name,
            "TransformJobArn": job.arn,
            "TransformJobStatus": faults.UNKNOWN if "unknown_status" in job.faults else status,
            "FailureReason": job.failure if status == "Failed" else None,
            "ModelName": job.request["ModelName"],
            **{name: job.request[name] for name in kept if name in job.request},
            "TransformInput": job.request["TransformInput"],
            "TransformOutput": job.request["TransformOutput"],
            "TransformResources": job.request["TransformResources"],
            "CreationTime": job.created,
            "TransformStartTime": job.start if now >= job.start and job.billed_until >= job.start else None,
            "TransformEndTime": job.billed_until if job.has_ended(now) and job.billed_until >= job.start else None,
        }


def stop(account: Account, call: Call) -> None:
    """Of a job that is being stopped nothing happens; one that has ended is refused, as for training jobs."""
    with account.lock:
        job, now = _job(account, call), account.clock.now()
        if job.has_ended(now):
            raise invalid(f"The request was rejected because the transform job is in status {job.status(now)}.")
        if job.stopped_at is None:
            job.stopped_at = now
            account.clock.hurry_until(now + STOPPING)
    account.clock.wake()


def list_jobs(account: Account, call: Call) -> Body:
    with account.lock:
        now = account.clock.now()
        rows = [
            {
                "TransformJobName": job.name,
                "TransformJobArn": job.arn,
                "CreationTime": job.created,
                "TransformEndTime": job.billed_until if job.has_ended(now) else None,
                "LastModifiedTime": job.end if job.has_ended(now) else now,
                "TransformJobStatus": job.status(now),
                "FailureReason": job.failure if job.status(now) == "Failed" else None,
            }
            for job in account.transforms.values()
        ]
    return listing.page(rows, call.body, "TransformJobSummaries", "TransformJobName", "TransformJobStatus", last=True)


def _ensure_free(account: Account, name: str) -> None:
    if key(name) in account.transforms:
        raise in_use("CreateTransformJob", "transform job", name)


def _job(account: Account, call: Call) -> TransformJob:
    name = call.body["TransformJobName"]
    if key(name) not in account.transforms:
        raise not_found(call.operation, "transform job", name)
    return account.transforms[key(name)]


def _seconds(stored: list[Stored], resources: Body) -> float:
    """Three minutes of loading, and the data at 15 kB a second and virtual CPU: plausible, and invented."""
    size = resources["InstanceType"].rsplit(".", 1)[1]
    vcpus = _VCPUS.get(size) or 4 * int(size.removesuffix("xlarge") or 1)
    count: int = resources["InstanceCount"]
    return _START + sum(one.size for one in stored) / (_BYTES_PER_VCPU_SECOND * vcpus * count)


def _carry_out(account: Account, job: TransformJob, model: Model, stored: list[Stored]) -> None:
    """Answer every object when the time comes; what a stopped job has computed is thrown away."""

    def stopped() -> bool:
        return job.stopped_at is not None

    outputs: dict[str, bytes] = {}
    if account.clock.wait_until(job.start, stopped) and job.failure is None:
        outputs, complaints = _computed(account, job, model, stored, stopped)
        if complaints:
            job.failure = f"{MARK} {'; '.join(complaints)}"[:1024]
    if account.clock.wait_until(job.planned_end, stopped) and not job.faults & {"late_out", "missing_out"}:
        _publish(account, outputs)
    job.carried_out.set()
    if "late_out" in job.faults and account.clock.wait_until(job.at_rest, stopped):
        _publish(account, outputs)


def _computed(
    account: Account, job: TransformJob, model: Model, stored: list[Stored], stopped: Callable[[], bool]
) -> tuple[dict[str, bytes], list[str]]:
    """The outputs by URI, and why some are missing."""
    outputs: dict[str, bytes] = {}
    complaints = []
    try:
        made_for = _made_for(account, job, model)
        with account.working:
            for one in stored:
                if stopped():
                    break
                try:
                    outputs[_output(job, one)] = _answered(account, job, made_for, one)
                except BadData as problem:
                    complaints.append(f"{one.uri}: {problem}")
    except BadData as problem:
        complaints.append(str(problem))
    except Exception as problem:
        complaints.append(f"AlgorithmError: {type(problem).__name__}: {problem}")
    return outputs, complaints


def _publish(account: Account, outputs: dict[str, bytes]) -> None:
    for uri, content in outputs.items():
        account.s3.write(uri, content)


def _made_for(account: Account, job: TransformJob, model: Model) -> Schema:
    """Raises BadData when the model is none of ours, or its data is gone."""
    container = model.containers[0]
    if automl.IMAGE not in container["Image"]:
        raise BadData(f"the emulator can only run images of its own AutoML jobs, not {container['Image']}")
    written = account.s3.read(container["ModelDataUrl"])
    if written is None:
        raise BadData(f"the model's data at {container['ModelDataUrl']} is gone")
    source, output = job.request["TransformInput"], job.request["TransformOutput"]
    if source.get("SplitType", "None") != "None":
        raise BadData("SplitType breaks the series apart and loses the header: a time-series model needs None")
    if source.get("ContentType", "").split(";")[0].strip() != CSV:
        raise BadData(f"ContentType must be {CSV}")
    if output.get("Accept", CSV) != CSV:
        raise BadData(f"Accept must be {CSV}")
    return Schema.from_json(json.loads(written)["schema"])


def _output(job: TransformJob, stored: Stored) -> str:
    """The object's name after the last folder of the prefix, under the output path."""
    _, prefix = split(job.request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"])
    name = stored.key[prefix.rfind("/") + 1 :]
    return f"{job.request['TransformOutput']['S3OutputPath'].rstrip('/')}/{name}.out"


def _answered(account: Account, job: TransformJob, made_for: Schema, stored: Stored) -> bytes:
    """The `.out` of one object. Raises BadData."""
    limit = job.request.get("MaxPayloadInMB", 6)
    if limit and stored.size > limit * MEGABYTE:
        raise BadData(f"it has {stored.size} bytes, and MaxPayloadInMB is {limit} (0 would send it in pieces)")
    content = account.s3.read(stored.uri)
    if content is None:
        raise BadData("it is gone")
    columns = forecasting.header(content)
    if sorted(columns) != sorted(made_for.columns):
        raise BadData(
            f"it has the columns {', '.join(columns)}, but the model was trained on {', '.join(made_for.columns)}"
        )
    if "malformed_out" in job.faults:
        return b'\x00\x01 {"error": "this is not CSV"\n<html>\n'
    asked = replace(made_for, horizon=made_for.horizon + 1) if "long_out" in job.faults else made_for
    table = _spoilt(forecasting.forecast(content, asked), made_for, job.faults)
    return forecasting.written(table, made_for, plain_dates="plain_dates_out" in job.faults)


def _spoilt(table: pa.Table, made_for: Schema, struck: frozenset[str]) -> pa.Table:
    """What a fault of the output makes of a good forecast."""
    steps = made_for.horizon
    place = np.arange(table.num_rows) % steps
    if "short_out" in struck:
        return table.filter(pa.array(place < steps - max(1, steps // 10)))
    if "missing_item_out" in struck:
        return table.slice(steps)
    if "duplicate_out" in struck:
        return pa.concat_tables([table, table.slice(0, steps)])
    if "extra_item_out" in struck:
        first = table.slice(0, steps)
        stranger = first.set_column(0, made_for.item, pa.array(["emulated-stranger"] * steps))
        return pa.concat_tables([table, stranger])
    if "no_mean_out" in struck:
        return table.drop_columns(["mean"])
    if "crossed_out" in struck:
        crossed = dict(zip(made_for.quantiles, reversed(made_for.quantiles), strict=True))
        return table.rename_columns([crossed.get(name, name) for name in table.column_names])
    if "nan_out" in struck:
        name = made_for.quantiles[0]
        values = table[name].to_numpy().copy()
        values[::7], values[3::11] = np.nan, np.inf
        return table.set_column(table.column_names.index(name), name, pa.array(values))
    return table

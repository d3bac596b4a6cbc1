"""The one checker that looks at what must hold of a managed run, whatever happened (I1 to I6).

It reads what is there, in the database and in the emulator's journal, and never what a worker says.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.canvas.place import BUCKET, HORIZON, SERVERS, TERMINAL, Forecast, Made, Place

_ROUNDING = 1_000
"""Micro-dollars: AWS's seconds are rounded, ours are begun ones."""


def check(place: Place, forecast: Forecast, status: str = "succeeded", code: str | None = None) -> None:
    """The run ended so, and every invariant holds."""
    wrong = broken(place, forecast)
    assert not wrong, "\n".join(wrong)
    assert place.run(forecast) == (status, code)


def broken(place: Place, forecast: Forecast) -> list[str]:
    """Each invariant that does not hold of a forecast that should have ended, and how."""
    found = place.query("SELECT status FROM forecasts WHERE id = %s", forecast["id"])
    if not found:
        return ["I6: an accepted forecast is not there"]
    run_id = place.run_id(forecast)
    made = place.made(run_id)
    return [
        *_ended_once(place, forecast, found[0][0]),
        *_made_once(place, run_id, made),
        *_nothing_left(place, forecast, run_id, made),
        *_whole_results(place, forecast),
        *_balanced(place, run_id, made),
    ]


def _ended_once(place: Place, forecast: Forecast, status: str) -> Iterator[str]:
    if status not in TERMINAL:
        yield f"I1: the forecast has not ended, it is {status}"
    for run_id, model, now in place.query("SELECT id, model, status FROM runs WHERE forecast_id = %s", forecast["id"]):
        events = place.query("SELECT before, after FROM run_events WHERE run_id = %s ORDER BY id", run_id)
        ends = [after for _, after in events if after in TERMINAL]
        if len(ends) != 1:
            yield f"I1: {model} ended {len(ends)} times: {', '.join(ends)}"
        elif ends != [now]:
            yield f"I1: {model} ended {ends[0]}, but is {now}"
        if [before for before, _ in events[1:]] != [after for _, after in events[:-1]]:
            yield f"I1: the events of {model} do not follow from each other: {events}"


def _made_once(place: Place, run_id: str, made: list[Made]) -> Iterator[str]:
    """Told apart by the folder a job writes to, not by its name: a name may be what has gone wrong."""
    for output, times in Counter(one.output for one in made if one.operation == "CreateAutoMLJobV2").items():
        if times > 1:
            yield f"I2: {times} AutoML jobs were made for one attempt: {output}"
    for output, times in Counter(one.output for one in made if one.operation == "CreateTransformJob").items():
        if times > 1:
            yield f"I2: {times} transforms were made for one purpose: {output}"
    models = sum(one.operation == "CreateModel" for one in made)
    if models > 1:
        yield f"I2: {models} models were made of one AutoML job"
    intended = {name for (name,) in place.query("SELECT name FROM canvas_intents WHERE run_id = %s", run_id)}
    installation, forecast_id = place.query(
        "SELECT installation.id, runs.forecast_id::text FROM installation, runs WHERE runs.id = %s", run_id
    )[0]
    tags = {
        "headroom:installation": installation,
        "headroom:run": run_id,
        "headroom:forecast": forecast_id,
        "headroom:emulated": "true",
    }
    for one in made:
        if one.name not in intended:
            yield f"I3: {one.operation} was called without an intent written down before: {one.name}"
        if one.tags != tags:
            yield f"I3: {one.name} does not say whose it is: {one.tags}"


def _nothing_left(place: Place, forecast: Forecast, run_id: str, made: list[Made]) -> Iterator[str]:
    if place.run(forecast)[0] not in TERMINAL:
        return
    sagemaker, names = place.client("sagemaker"), {one.name for one in made}
    going = {"StatusEquals": "InProgress"}
    jobs = _listed(sagemaker, "list_auto_ml_jobs", "AutoMLJobSummaries", "AutoMLJobName", going)
    transforms = _listed(sagemaker, "list_transform_jobs", "TransformJobSummaries", "TransformJobName", going)
    for name in names & (jobs | transforms):
        yield f"I3: {name} runs on AWS, and no live run pays for it"
    for name in names & _listed(sagemaker, "list_models", "Models", "ModelName", {}):
        yield f"I3: the model {name} was left"
    kept = ("/automl/", "/output/") if place.run(forecast)[1] == "bad-model-output" else ("/automl/",)
    left = place.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"headroom/runs/{run_id}/").get("Contents", [])
    keys = [one["Key"] for one in left if not any(folder in one["Key"] for folder in kept)]
    if len(kept) > 1 and not any(".out" in one["Key"] for one in left):
        yield "I3: the output that could not be used is not there to be looked at"
    if keys:
        yield f"I3: {len(keys)} objects were left in the bucket, such as {keys[0]}"


def _listed(client: Any, operation: str, rows: str, name: str, asked: dict[str, str]) -> set[str]:
    """The names of all there are."""
    return {row[name] for page in client.get_paginator(operation).paginate(**asked) for row in page[rows]}


def _whole_results(place: Place, forecast: Forecast) -> Iterator[str]:
    runs = place.query("SELECT id, model, status, servers FROM runs WHERE forecast_id = %s", forecast["id"])
    for run_id, model, status, servers in runs:
        rows = place.query("SELECT p10, p50, p90 FROM results WHERE run_id = %s", run_id)
        if status != "succeeded":
            if rows:
                yield f"I4: {model} is {status} and has {len(rows)} results"
            continue
        if servers != SERVERS or len(rows) != SERVERS or any(len(each) != HORIZON for row in rows for each in row):
            yield f"I4: {model} succeeded with {len(rows)} servers, not {SERVERS} of {HORIZON} steps"
            continue
        values = np.array(rows)
        if not np.isfinite(values).all() or (np.diff(values, axis=1) < 0).any():
            yield f"I4: quantiles of {model} are not finite, or cross"


def _balanced(place: Place, run_id: str, made: list[Made]) -> Iterator[str]:
    lines = place.query("SELECT kind, purpose, amount_microusd FROM ledger WHERE run_id = %s", run_id)
    money: Counter[str] = Counter()
    for kind, _, amount in lines:
        money[kind] += amount
    if money["reserved"] + money["overrun"] != money["settled"] + money["released"]:
        yield f"I5: the ledger does not balance: {dict(money)}"
    if made and not money["reserved"]:
        yield "I5: AWS was asked for something without a reservation"
    shown = place.query("SELECT actual_microusd FROM runs WHERE id = %s", run_id)[0][0]
    if shown != money["settled"]:
        yield f"I5: the run shows a cost of {shown}, the ledger has {money['settled']}"
    names = {one.name for one in made}
    used = sum(
        line["microdollars"] or 0
        for line in place.control("costs")["lines"]
        if line["name"] in names or line["automl_job"] in names
    )
    if abs(used - money["settled"]) > _ROUNDING:
        yield f"I5: AWS bills {used} for what was made, the ledger has {money['settled']}"
    purposes = {purpose for kind, purpose, _ in lines if kind == "settled"}
    for one in made:
        if one.operation == "CreateAutoMLJobV2" and "automl" not in purposes:
            yield "I5: an AutoML job was made, and no line of the ledger is about it"
        if (
            one.operation == "CreateTransformJob"
            and f"transform-{one.output.rstrip('/').split('/')[-1]}" not in purposes
        ):
            yield f"I5: a transform was made, and no line of the ledger is about it: {one.output}"

"""What a series is, and where its forecast starts: gaps, repeated days, groups, known-ahead columns, young series."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from app.emulator import forecasting
from app.emulator.forecasting import BadData, Schema

CONFIG: dict[str, Any] = {
    "ForecastFrequency": "D",
    "ForecastHorizon": 7,
    "ForecastQuantiles": ["p10", "p50", "p90"],
    "TimeSeriesConfig": {
        "TargetAttributeName": "cpu",
        "TimestampAttributeName": "timestamp",
        "ItemIdentifierAttributeName": "server_id",
    },
}


def schema(frame: pd.DataFrame, **config: Any) -> Schema:
    return forecasting.schema(CONFIG | config, tuple(frame.columns), None)


def answer(emulator: Any, frame: pd.DataFrame, **config: Any) -> pd.DataFrame:
    made_for = schema(frame, **config)
    table = forecasting.forecast(emulator.in_csv(frame), made_for)
    read: pd.DataFrame = emulator.read_out(forecasting.written(table, made_for))
    return read


def constant(days: int, value: float = 50.0, item: str = "a") -> pd.DataFrame:
    at = pd.date_range("2024-01-01", periods=days).strftime("%Y-%m-%d")
    return pd.DataFrame({"server_id": item, "timestamp": at, "cpu": value})


def test_a_forecast_starts_after_each_items_last_target(emulator: Any) -> None:
    frame = pd.concat([constant(60), constant(40, item="b")])
    starts = answer(emulator, frame).groupby("server_id")["timestamp"].min()
    assert {str(item): str(at.date()) for item, at in starts.items()} == {"a": "2024-03-01", "b": "2024-02-10"}


def test_rows_without_a_target_are_known_ahead(emulator: Any) -> None:
    steps = 400
    promotion = np.arange(steps + 7) % 9 == 0
    frame = constant(steps + 7).assign(promotion=promotion.astype(int))
    frame["cpu"] = np.where(np.arange(len(frame)) < steps, 40 + 20 * promotion + np.arange(len(frame)) % 5, np.nan)
    told = answer(emulator, frame)
    assert str(told["timestamp"].min().date()) == "2025-02-04"
    promoted = told["p50"][promotion[steps:]].mean() - told["p50"][~promotion[steps:]].mean()
    assert promoted > 8
    untold = answer(emulator, frame[frame["cpu"].notna()])
    assert abs(untold["p50"][promotion[steps:]].mean() - untold["p50"][~promotion[steps:]].mean()) < promoted / 2


@pytest.mark.parametrize(
    ("filling", "value"), [({}, 0.0), ({"middlefill": "median"}, 50.0), ({"middlefill": "nan"}, 50.0)]
)
def test_gaps_are_zero_unless_told_otherwise(emulator: Any, filling: dict[str, str], value: float) -> None:
    frame = pd.concat([constant(100).iloc[:40], constant(100).iloc[99:]])
    made_for = schema(frame, Transformations={"Filling": {"cpu": filling}} if filling else {})
    _, panel = forecasting._panel(emulator.in_csv(frame), made_for)
    assert (panel.values[0, 40:99] == value).all()


@pytest.mark.parametrize(
    ("method", "value"), [(None, 60.0), ("sum", 60.0), ("avg", 30.0), ("min", 10.0), ("max", 50.0), ("first", 50.0)]
)
def test_rows_of_one_day_are_summed_unless_told_otherwise(emulator: Any, method: str | None, value: float) -> None:
    frame = pd.concat([constant(30), constant(30, 10.0)])
    made_for = schema(frame, Transformations={"Aggregation": {"cpu": method}} if method else {})
    _, panel = forecasting._panel(emulator.in_csv(frame), made_for)
    assert (panel.values == value).all()


def test_groups_are_part_of_a_series(emulator: Any) -> None:
    frame = pd.concat([constant(60).assign(region="north"), constant(60, 10.0).assign(region="south")])
    roles = CONFIG["TimeSeriesConfig"] | {"GroupingAttributeNames": ["region"]}
    out = answer(emulator, frame, TimeSeriesConfig=roles)
    assert list(out.columns) == ["server_id", "region", "timestamp", "p10", "p50", "p90", "mean"]
    assert out.groupby("region")["p50"].mean().round().to_dict() == {"north": 50, "south": 10}


def test_hours_are_hours(emulator: Any) -> None:
    at = pd.date_range("2024-01-01", periods=500, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    frame = pd.DataFrame({"server_id": "a", "timestamp": at, "cpu": 20 + np.arange(500) % 24})
    out = answer(emulator, frame, ForecastFrequency="1H", ForecastHorizon=24)
    assert str(out["timestamp"].iloc[0]) == "2024-01-21 20:00:00"
    assert np.abs(out["p50"].to_numpy() - (20 + np.arange(500, 524) % 24)).max() < 3


def test_items_keep_their_spelling(emulator: Any) -> None:
    frame = pd.concat([constant(60, item="007"), constant(60, item='a "quoted", name')])
    text = forecasting.written(forecasting.forecast(emulator.in_csv(frame), schema(frame)), schema(frame))
    assert b'"007"' in text
    assert b'"a ""quoted"", name"' in text


@pytest.mark.parametrize("days", [4, 13, 14])
def test_young_series_are_answered(emulator: Any, days: int) -> None:
    out = answer(emulator, pd.concat([constant(100), constant(days, 20.0, "young")]))
    young = out[out["server_id"] == "young"]
    assert len(young) == 7
    assert np.isfinite(young[["p10", "p50", "p90", "mean"]].to_numpy()).all()


def test_series_of_three_values_are_refused(emulator: Any) -> None:
    with pytest.raises(BadData, match="at least 4 values; young has 3"):
        answer(emulator, pd.concat([constant(100), constant(3, 20.0, "young")]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("TransformInput.SplitType", "Line"),
        ("TransformInput.ContentType", "application/json"),
        ("TransformOutput.Accept", "application/json"),
    ],
)
def test_a_transform_that_a_container_would_not_survive_fails(emulator: Any, path: str, value: str) -> None:
    said, request = path.split(".")[1], emulator.changed(emulator.transform(emulator.model()), path, value)
    job = emulator.transformed(request)
    assert job["TransformJobStatus"] == "Failed"
    assert said in job["FailureReason"]


def test_a_model_answers_only_the_columns_that_it_learnt(emulator: Any) -> None:
    """The object that fits is answered all the same."""
    request = emulator.transform(emulator.model())
    fleet = emulator.fleet()
    prefix = f"s3://{emulator.bucket}/mixed/"
    emulator.put("mixed/good.csv", emulator.in_csv(fleet))
    emulator.put("mixed/bad.csv", emulator.in_csv(fleet.rename(columns={"cpu": "mem"})))
    job = emulator.transformed(emulator.changed(request, "TransformInput.DataSource.S3DataSource.S3Uri", prefix))
    assert job["TransformJobStatus"] == "Failed"
    assert "mixed/bad.csv: it has the columns" in job["FailureReason"]
    assert list(emulator.outputs(request)) == ["good.csv.out"]


def test_a_payload_limit_binds(emulator: Any) -> None:
    emulator.put("large/a.csv", emulator.in_csv(emulator.fleet(items=90)))
    request = emulator.changed(
        emulator.transform(emulator.model()),
        "TransformInput.DataSource.S3DataSource.S3Uri",
        f"s3://{emulator.bucket}/large/",
    )
    job = emulator.transformed(request | {"MaxPayloadInMB": 1})
    assert job["TransformJobStatus"] == "Failed"
    assert "MaxPayloadInMB is 1" in job["FailureReason"]


def test_a_model_whose_data_is_gone_or_foreign_fails(emulator: Any) -> None:
    model = emulator.model()
    [container] = emulator.sagemaker.describe_model(ModelName=model)["Containers"]
    emulator.s3.delete_object(Bucket=emulator.bucket, Key=container["ModelDataUrl"].split("/", 3)[3])
    assert "is gone" in emulator.transformed(emulator.transform(model))["FailureReason"]
    foreign = {"Image": "somebody/elses:1", "ModelDataUrl": emulator.put("models/any.json", b"{}")}
    emulator.sagemaker.create_model(ModelName="foreign", Containers=[foreign], ExecutionRoleArn=emulator.role)
    assert "own AutoML jobs" in emulator.transformed(emulator.transform("foreign"))["FailureReason"]


def test_features_are_those_that_are_specified(emulator: Any) -> None:
    uri = emulator.put("features.json", b'{"FeatureAttributeNames": ["promotion"], "FeatureDataTypes": {}}')
    assert emulator.trained(FeatureSpecificationS3Uri=uri)["AutoMLJobStatus"] == "Completed"
    for content, said in [(b'{"FeatureAttributeNames": ["weather"]}', "weather"), (b"[]", "no JSON object")]:
        emulator.put("features.json", content)
        answer = emulator.post("CreateAutoMLJobV2", emulator.automl(FeatureSpecificationS3Uri=uri))[1]
        assert said in answer["message"]

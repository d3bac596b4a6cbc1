"""The rules that are words: in AWS's documentation, or choices of ours where it is silent. Pure, on one body.

A rule of ours says so in its text ("the emulator"). It leaves out what needs S3 or other jobs to decide.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

from app.emulator.protocol import Body

MAX_HORIZON = 500
MAX_OUTPUT_PATH = 512
MAX_PAYLOAD_MB = 100
MAX_INSTANCES = 100

OBJECTIVES = ("AverageWeightedQuantileLoss", "RMSE", "MASE", "MAPE", "WAPE")
ALGORITHMS = ("cnn-qr", "deepar", "prophet", "npts", "arima", "ets")
FREQUENCIES = ("D", "1D", "H", "1H")
CSV = "text/csv"
CSV_WITH_HEADER = "text/csv;header=present"

_FILLS = ("zero", "value", "median", "mean", "min", "max")
_OF_TARGET = {"frontfill": ("none",), "middlefill": (*_FILLS, "nan"), "backfill": (*_FILLS, "nan"), "futurefill": ()}
_OF_FEATURE = {"frontfill": (), "middlefill": _FILLS, "backfill": _FILLS, "futurefill": _FILLS}


def complaints(operation: str, body: Body) -> Iterator[str]:
    for rule in _RULES.get(operation, ()):
        yield from rule(body)


def _problem(body: Body) -> Iterator[str]:
    config = body["AutoMLProblemTypeConfig"].get("TimeSeriesForecastingJobConfig")
    if config is None:
        yield "The emulator knows AutoMLProblemTypeConfig.TimeSeriesForecastingJobConfig only."
        return
    yield from chain(_columns(config), _forecast(config), _transformations(config), _generation(config))
    yield from _s3(config.get("FeatureSpecificationS3Uri", "s3://"))
    if "DataSplitConfig" in body:
        yield "DataSplitConfig is not supported for the time-series forecasting problem type."
    if "AutoMLComputeConfig" in body:
        yield "AutoMLComputeConfig is for jobs of SageMaker Canvas only."
    if "ModelDeployConfig" in body:
        yield "The emulator has no endpoints: leave out ModelDeployConfig."
    metric = body.get("AutoMLJobObjective", {}).get("MetricName", OBJECTIVES[0])
    if metric not in OBJECTIVES:
        yield f"The objective {metric} is not for time series: one of {', '.join(OBJECTIVES)}."
    completion = config.get("CompletionCriteria", {})
    if completion.get("MaxCandidates", 1) != 1:
        yield "MaxCandidates must be 1 for the time-series forecasting problem type."


def _columns(config: Body) -> Iterator[str]:
    roles = config["TimeSeriesConfig"]
    names = [roles["TargetAttributeName"], roles["TimestampAttributeName"], roles["ItemIdentifierAttributeName"]]
    names += roles.get("GroupingAttributeNames", [])
    for name in _repeated(names):
        yield f"TimeSeriesConfig names the column {name!r} more than once."


def _forecast(config: Body) -> Iterator[str]:
    for quantile in _repeated(config.get("ForecastQuantiles", [])):
        yield f"ForecastQuantiles has {quantile} more than once."
    if config["ForecastHorizon"] > MAX_HORIZON:
        yield f"ForecastHorizon {config['ForecastHorizon']} exceeds the limit of {MAX_HORIZON}."
    if config["ForecastFrequency"] not in FREQUENCIES:
        yield f"The emulator forecasts daily and hourly series: {', '.join(FREQUENCIES)}."
    for holiday in config.get("HolidayConfig", []):
        if "CountryCode" not in holiday:
            yield "HolidayConfig needs a CountryCode."


def _transformations(config: Body) -> Iterator[str]:
    roles = config["TimeSeriesConfig"]
    target = roles["TargetAttributeName"]
    identity = {roles["TimestampAttributeName"], roles["ItemIdentifierAttributeName"]}
    identity.update(roles.get("GroupingAttributeNames", []))
    for column in config.get("Transformations", {}).get("Aggregation", {}):
        if column != target:
            yield f"Aggregation is for the target column {target!r} only, not {column!r}."
    for column, filling in config.get("Transformations", {}).get("Filling", {}).items():
        if column in identity:
            yield f"Filling is for the target and feature columns, not {column!r}."
        allowed = _OF_TARGET if column == target else _OF_FEATURE
        for kind, method in filling.items():
            yield from _fill(column, kind, method, filling, allowed)


def _fill(column: str, kind: str, method: str, filling: Body, allowed: dict[str, tuple[str, ...]]) -> Iterator[str]:
    if kind.endswith("_value"):
        if filling.get(kind.removesuffix("_value")) != "value":
            yield f"Filling of {column!r}: {kind} goes with {kind.removesuffix('_value')}: value."
        if not method.removeprefix("-").isdecimal():
            yield f"Filling of {column!r}: {kind} is to be a number, not {method!r}."
    elif method not in allowed[kind]:
        yield f"Filling of {column!r}: {kind} cannot be {method!r}; it may be {', '.join(allowed[kind]) or 'left out'}."
    elif method == "value" and f"{kind}_value" not in filling:
        yield f"Filling of {column!r}: {kind}: value needs {kind}_value."


def _generation(config: Body) -> Iterator[str]:
    for algorithms in config.get("CandidateGenerationConfig", {}).get("AlgorithmsConfig", []):
        named = algorithms["AutoMLAlgorithms"]
        for name in named:
            if name not in ALGORITHMS:
                yield f"The algorithm {name} is not for time series: one of {', '.join(ALGORITHMS)}."
        for name in _repeated(named):
            yield f"AutoMLAlgorithms has {name} more than once."


def _training_data(body: Body) -> Iterator[str]:
    channels = body["AutoMLJobInputDataConfig"]
    if len(channels) != 1 or channels[0].get("ChannelType", "training") != "training":
        yield "A time-series job has one input channel, of the type training."
        return
    channel = channels[0]
    if "DataSource" not in channel:
        yield "The input channel has no DataSource."
        return
    yield from _source(channel, channel["DataSource"]["S3DataSource"])
    if channel.get("ContentType", CSV_WITH_HEADER).replace(" ", "") != CSV_WITH_HEADER:
        yield f"The emulator reads {CSV_WITH_HEADER} only, not {channel['ContentType']}."
    output = body["OutputDataConfig"]["S3OutputPath"]
    yield from _s3(output)
    if len(output) > MAX_OUTPUT_PATH:
        yield f"S3OutputPath has {len(output)} characters; at most {MAX_OUTPUT_PATH} are allowed."


def _source(holder: Body, source: Body) -> Iterator[str]:
    yield from _s3(source["S3Uri"])
    if source["S3DataType"] != "S3Prefix":
        yield f"The emulator reads an S3Prefix, not a {source['S3DataType']}."
    if holder.get("CompressionType", "None") != "None":
        yield "CompressionType must be None for time series."


def _s3(uri: str) -> Iterator[str]:
    if not uri.startswith("s3://"):
        yield f"{uri} is to be an S3 URI, s3://bucket/prefix."


def _containers(body: Body) -> Iterator[str]:
    if ("PrimaryContainer" in body) == bool(body.get("Containers")):
        yield "Give either PrimaryContainer or Containers."
    if "ExecutionRoleArn" not in body:
        yield "ExecutionRoleArn is missing."
    for container in [body["PrimaryContainer"]] if "PrimaryContainer" in body else body.get("Containers", []):
        if "Image" not in container:
            yield "A container needs an Image."
        if "ModelDataUrl" not in container:
            yield "The emulator needs the ModelDataUrl of a container."
        else:
            yield from _s3(container["ModelDataUrl"])


def _batch(body: Body) -> Iterator[str]:
    source, resources = body["TransformInput"], body["TransformResources"]
    yield from _source(source, source["DataSource"]["S3DataSource"])
    yield from _s3(body["TransformOutput"]["S3OutputPath"])
    split = source.get("SplitType", "None")
    if "BatchStrategy" in body and split == "None":
        yield "BatchStrategy needs a SplitType of Line, RecordIO or TFRecord."
    payload, concurrent = body.get("MaxPayloadInMB", 6), body.get("MaxConcurrentTransforms", 1)
    if payload > MAX_PAYLOAD_MB:
        yield f"MaxPayloadInMB {payload} exceeds the limit of {MAX_PAYLOAD_MB}."
    if payload * max(concurrent, 1) > MAX_PAYLOAD_MB:
        yield f"MaxConcurrentTransforms times MaxPayloadInMB must not exceed {MAX_PAYLOAD_MB} MB."
    if resources["InstanceCount"] > MAX_INSTANCES:
        yield f"InstanceCount {resources['InstanceCount']} exceeds the limit of {MAX_INSTANCES}."
    for name in ("DataProcessing", "DataCaptureConfig", "ExperimentConfig"):
        if name in body:
            yield f"The emulator does not have {name}."


def _tags(body: Body) -> Iterator[str]:
    keys = [tag["Key"] for tag in body.get("Tags", [])]
    for key in _repeated(keys):
        yield f"The tag {key!r} is there more than once."
    for key in keys:
        if key.lower().startswith("aws:"):
            yield f"The tag {key!r} starts with aws:, which is reserved."


def _repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


_RULES: dict[str, tuple[Callable[[Body], Iterator[str]], ...]] = {
    "CreateAutoMLJobV2": (_problem, _training_data, _tags),
    "CreateModel": (_containers, _tags),
    "CreateTransformJob": (_batch, _tags),
    "AddTags": (_tags,),
}

"""Each constraint of the service's model, and each rule that is only written: one violation, the right error."""

from typing import Any

import pytest

from app.emulator import constraints
from app.emulator.constraints import OPERATIONS

FORECASTING = "AutoMLProblemTypeConfig.TimeSeriesForecastingJobConfig"
CHANNEL = "AutoMLJobInputDataConfig.0"
ROLES = f"{FORECASTING}.TimeSeriesConfig"
FILLING = f"{FORECASTING}.Transformations.Filling"
SOURCE = "TransformInput.DataSource.S3DataSource"

AUTOML: list[tuple[str, Any, str]] = [
    ("AutoMLJobName", None, "Member must not be null"),
    ("AutoMLJobName", "a" * 33, "length less than or equal to 32"),
    ("AutoMLJobName", "", "length greater than or equal to 1"),
    ("AutoMLJobName", "under_score", "regular expression pattern"),
    ("AutoMLJobName", "ends-", "regular expression pattern"),
    ("RoleArn", "arn:aws:iam::12345:role/short-account", "regular expression pattern"),
    ("RoleArn", "arn:aws:iam::123456789012:user/someone", "regular expression pattern"),
    ("RoleArn", None, "Member must not be null"),
    ("Surprise", 1, "has no such member"),
    ("Tags", [{"Key": "a", "Value": "b"}, {"Key": "a", "Value": "c"}], "more than once"),
    ("Tags", [{"Key": "aws:mine", "Value": "b"}], "reserved"),
    ("Tags", [{"Key": "a<b", "Value": "b"}], "regular expression pattern"),
    ("Tags", [{"Key": f"k{n}", "Value": ""} for n in range(51)], "length less than or equal to 50"),
    ("Tags", [{"Key": "a"}], "Member must not be null"),
    ("DataSplitConfig", {"ValidationFraction": 0.2}, "DataSplitConfig is not supported"),
    ("ModelDeployConfig", {"AutoGenerateEndpointName": True}, "no endpoints"),
    (
        "AutoMLComputeConfig",
        {"EmrServerlessComputeConfig": {"ExecutionRoleARN": "arn:aws:iam::123456789012:role/x"}},
        "Canvas only",
    ),
    ("AutoMLJobObjective", {"MetricName": "Brilliance"}, "enum value set"),
    ("AutoMLJobObjective", {"MetricName": "F1"}, "not for time series"),
    ("SecurityConfig", {"VpcConfig": {"Subnets": ["subnet-1"]}}, "securityGroupIds"),
    ("SecurityConfig", {"VpcConfig": {"Subnets": [], "SecurityGroupIds": ["sg-1"]}}, "greater than or equal to 1"),
    ("AutoMLProblemTypeConfig.TabularJobConfig", {"TargetAttributeName": "cpu"}, "exactly one of"),
    ("AutoMLProblemTypeConfig", {}, "exactly one of"),
    ("AutoMLProblemTypeConfig", {"TabularJobConfig": {"TargetAttributeName": "cpu"}}, "TimeSeriesForecastingJobConfig"),
    (f"{FORECASTING}.ForecastFrequency", "fortnight", "regular expression pattern"),
    (f"{FORECASTING}.ForecastFrequency", "7D", "regular expression pattern"),
    (f"{FORECASTING}.ForecastFrequency", "1W", "daily and hourly"),
    (f"{FORECASTING}.ForecastHorizon", 0, "greater than or equal to 1"),
    (f"{FORECASTING}.ForecastHorizon", 501, "limit of 500"),
    (f"{FORECASTING}.ForecastHorizon", 101, "a quarter of them"),
    (f"{FORECASTING}.ForecastQuantiles", [], "greater than or equal to 1"),
    (f"{FORECASTING}.ForecastQuantiles", ["p10", "p20", "p50", "p70", "p80", "p90"], "less than or equal to 5"),
    (f"{FORECASTING}.ForecastQuantiles", ["p100"], "regular expression pattern"),
    (f"{FORECASTING}.ForecastQuantiles", ["p0"], "regular expression pattern"),
    (f"{FORECASTING}.ForecastQuantiles", ["p05"], "regular expression pattern"),
    (f"{FORECASTING}.ForecastQuantiles", ["mean"], "regular expression pattern"),
    (f"{FORECASTING}.ForecastQuantiles", ["p50", "p50"], "more than once"),
    (f"{FORECASTING}.CompletionCriteria", {"MaxCandidates": 2}, "MaxCandidates must be 1"),
    (f"{FORECASTING}.CompletionCriteria", {"MaxCandidates": 751}, "less than or equal to 750"),
    (f"{FORECASTING}.CompletionCriteria", {"MaxAutoMLJobRuntimeInSeconds": 0}, "greater than or equal to 1"),
    (f"{FORECASTING}.HolidayConfig", [{"CountryCode": "US"}, {"CountryCode": "GB"}], "less than or equal to 1"),
    (f"{FORECASTING}.HolidayConfig", [], "greater than or equal to 1"),
    (f"{FORECASTING}.HolidayConfig", [{"CountryCode": "us"}], "regular expression pattern"),
    (f"{FORECASTING}.HolidayConfig", [{}], "CountryCode"),
    (f"{FORECASTING}.FeatureSpecificationS3Uri", "https://bucket/features.json", "S3 URI"),
    (f"{FORECASTING}.FeatureSpecificationS3Uri", "s3://emulator-tests/none.json", "no JSON object"),
    (f"{ROLES}.TargetAttributeName", None, "Member must not be null"),
    (f"{ROLES}.TargetAttributeName", "timestamp", "more than once"),
    (f"{ROLES}.TargetAttributeName", "disk", "no column 'disk'"),
    (f"{ROLES}.GroupingAttributeNames", ["a", "b", "c", "d", "e", "f"], "less than or equal to 5"),
    (f"{ROLES}.GroupingAttributeNames", ["region"], "no column 'region'"),
    (f"{FORECASTING}.Transformations.Aggregation", {"cpu": "median"}, "enum value set"),
    (f"{FORECASTING}.Transformations.Aggregation", {"promotion": "avg"}, "target column"),
    (FILLING, {"cpu": {"middlefill": "2.5"}}, "regular expression pattern"),
    (FILLING, {"cpu": {"middlefill": "magic"}}, "cannot be 'magic'"),
    (FILLING, {"cpu": {"sidefill": "zero"}}, "enum value set"),
    (FILLING, {"cpu": {"frontfill": "zero"}}, "frontfill cannot be"),
    (FILLING, {"cpu": {"futurefill": "zero"}}, "futurefill cannot be"),
    (FILLING, {"cpu": {"middlefill": "value"}}, "needs middlefill_value"),
    (FILLING, {"cpu": {"middlefill_value": "3"}}, "goes with middlefill: value"),
    (FILLING, {"cpu": {"middlefill": "value", "middlefill_value": "many"}}, "is to be a number"),
    (FILLING, {"timestamp": {"middlefill": "zero"}}, "not 'timestamp'"),
    (FILLING, {"disk": {"middlefill": "zero"}}, "no column 'disk'"),
    (FILLING, {}, "greater than or equal to 1"),
    (
        f"{FORECASTING}.CandidateGenerationConfig",
        {"AlgorithmsConfig": [{"AutoMLAlgorithms": ["xgboost"]}]},
        "not for time series",
    ),
    (
        f"{FORECASTING}.CandidateGenerationConfig",
        {"AlgorithmsConfig": [{"AutoMLAlgorithms": []}, {"AutoMLAlgorithms": []}]},
        "less than or equal to 1",
    ),
    (f"{CHANNEL}.ChannelType", "test", "enum value set"),
    (f"{CHANNEL}.CompressionType", "Gzip", "CompressionType must be None"),
    (f"{CHANNEL}.ContentType", "text/csv", "text/csv;header=present"),
    (f"{CHANNEL}.DataSource", None, "no DataSource"),
    (f"{CHANNEL}.DataSource.S3DataSource.S3DataType", "ManifestFile", "S3Prefix"),
    (f"{CHANNEL}.DataSource.S3DataSource.S3Uri", "ftp://bucket/key", "regular expression pattern"),
    (f"{CHANNEL}.DataSource.S3DataSource.S3Uri", "https://bucket/key", "S3 URI"),
    (f"{CHANNEL}.DataSource.S3DataSource.S3Uri", "s3://emulator-tests/nothing/", "No S3 objects found"),
    (f"{CHANNEL}.DataSource.S3DataSource.S3Uri", "s3://no-such-bucket/", "No S3 objects found"),
    ("AutoMLJobInputDataConfig", [], "greater than or equal to 1"),
    ("OutputDataConfig.S3OutputPath", "s3://no-such-bucket/out", "does not exist"),
    ("OutputDataConfig.S3OutputPath", f"s3://emulator-tests/{'a' * 500}", "at most 512"),
    ("OutputDataConfig.KmsKeyId", "spaces are wrong", "regular expression pattern"),
]

TRANSFORM: list[tuple[str, Any, str]] = [
    ("TransformJobName", "a" * 64, "length less than or equal to 63"),
    ("TransformJobName", "-starts", "regular expression pattern"),
    ("ModelName", None, "Member must not be null"),
    ("MaxPayloadInMB", -1, "greater than or equal to 0"),
    ("MaxPayloadInMB", 101, "limit of 100"),
    ("BatchStrategy", "SingleRecord", "needs a SplitType"),
    ("BatchStrategy", "Some", "enum value set"),
    ("ModelClientConfig", {"InvocationsTimeoutInSeconds": 3601}, "less than or equal to 3600"),
    ("ModelClientConfig", {"InvocationsMaxRetries": 4}, "less than or equal to 3"),
    ("TransformInput.SplitType", "BOGUS", "enum value set"),
    ("TransformInput.CompressionType", "Gzip", "CompressionType must be None"),
    (f"{SOURCE}.S3DataType", "ManifestFile", "S3Prefix"),
    (f"{SOURCE}.S3Uri", "s3://emulator-tests/nothing/", "No S3 objects found"),
    ("TransformOutput.AssembleWith", "Glue", "enum value set"),
    ("TransformOutput.S3OutputPath", "s3://no-such-bucket/out", "does not exist"),
    ("TransformResources.InstanceType", "ml.zz", "enum value set"),
    ("TransformResources.InstanceCount", 0, "greater than or equal to 1"),
    ("TransformResources.InstanceCount", 101, "limit of 100"),
    ("DataProcessing", {"JoinSource": "Input"}, "does not have DataProcessing"),
    ("Environment", {"1bad": "x"}, "regular expression pattern"),
]

MODEL: list[tuple[str, Any, str]] = [
    ("ModelName", "a" * 64, "length less than or equal to 63"),
    ("ModelName", "dots.are.wrong", "regular expression pattern"),
    ("ExecutionRoleArn", None, "ExecutionRoleArn is missing"),
    ("ExecutionRoleArn", "nobody-in-particular", "regular expression pattern"),
    ("Containers", None, "either PrimaryContainer or Containers"),
    ("PrimaryContainer", {"Image": "x", "ModelDataUrl": "s3://a/b"}, "either PrimaryContainer or Containers"),
    ("Containers.0.Image", "two words", "regular expression pattern"),
    ("Containers.0.Image", None, "needs an Image"),
    ("Containers.0.ModelDataUrl", "https://bucket/model", "S3 URI"),
    ("Containers.0.ModelDataUrl", "s3://emulator-tests/no/model", "Could not find model data"),
    ("Containers.0.Environment", {f"K{n}": "v" for n in range(101)}, "less than or equal to 100"),
]


def refusal(emulator: Any, operation: str, request: dict[str, Any]) -> tuple[str, str]:
    status, said, headers = emulator.post(operation, request)
    assert status == 400, said
    assert headers["Content-Type"] == "application/x-amz-json-1.1"
    assert headers["x-headroom-emulated"] == "true"
    return said["__type"], said["message"]


@pytest.mark.parametrize(("path", "value", "said"), AUTOML)
def test_an_automl_job_keeps_every_rule(emulator: Any, path: str, value: Any, said: str) -> None:
    request = emulator.changed(emulator.automl(), path, value)
    code, message = refusal(emulator, "CreateAutoMLJobV2", request)
    assert code == "ValidationException"
    assert said in message
    assert emulator.sagemaker.list_auto_ml_jobs()["AutoMLJobSummaries"] == []


@pytest.mark.parametrize(("path", "value", "said"), TRANSFORM)
def test_a_transform_keeps_every_rule(emulator: Any, path: str, value: Any, said: str) -> None:
    model_data = emulator.put("models/any.json", b"{}")
    containers = [{"Image": "anything", "ModelDataUrl": model_data}]
    emulator.sagemaker.create_model(ModelName="any", Containers=containers, ExecutionRoleArn=emulator.role)
    request = emulator.changed(emulator.transform("any"), path, value)
    code, message = refusal(emulator, "CreateTransformJob", request)
    assert code == "ValidationException"
    assert said in message
    assert emulator.sagemaker.list_transform_jobs()["TransformJobSummaries"] == []


@pytest.mark.parametrize(("path", "value", "said"), MODEL)
def test_a_model_keeps_every_rule(emulator: Any, path: str, value: Any, said: str) -> None:
    model_data = emulator.put("models/any.json", b"{}")
    good = {
        "ModelName": "any",
        "ExecutionRoleArn": emulator.role,
        "Containers": [{"Image": "anything", "ModelDataUrl": model_data}],
    }
    code, message = refusal(emulator, "CreateModel", emulator.changed(good, path, value))
    assert code == "ValidationException"
    assert said in message
    assert emulator.sagemaker.list_models()["Models"] == []


def test_all_complaints_come_at_once(emulator: Any) -> None:
    request = emulator.changed(emulator.changed(emulator.automl(), "AutoMLJobName", "a b"), "RoleArn", "nobody")
    _, message = refusal(emulator, "CreateAutoMLJobV2", request)
    assert message.startswith("3 validation errors detected: Value 'a b' at 'autoMLJobName'")


def test_payloads_under_way_together_are_limited(emulator: Any) -> None:
    request = emulator.transform("any") | {"MaxConcurrentTransforms": 20, "MaxPayloadInMB": 6}
    _, message = refusal(emulator, "CreateTransformJob", request)
    assert "must not exceed 100 MB" in message


def test_a_wrong_type_cannot_be_read(emulator: Any) -> None:
    request = emulator.changed(emulator.automl(), f"{FORECASTING}.HolidayConfig", "US")
    code, message = refusal(emulator, "CreateAutoMLJobV2", request)
    assert code == "SerializationException"
    assert "holidayConfig" in message


@pytest.mark.parametrize("same", [str, str.upper, str.title])
def test_names_are_one_whatever_their_case(emulator: Any, same: Any) -> None:
    request = emulator.automl()
    emulator.sagemaker.create_auto_ml_job_v2(**request)
    again = emulator.changed(request, "AutoMLJobName", same(request["AutoMLJobName"]))
    code, _ = refusal(emulator, "CreateAutoMLJobV2", again)
    assert code == "ResourceInUse"
    described = emulator.sagemaker.describe_auto_ml_job_v2(AutoMLJobName=again["AutoMLJobName"])
    assert described["AutoMLJobName"] == request["AutoMLJobName"]


def test_models_and_transforms_are_unique_too(emulator: Any) -> None:
    model = emulator.model()
    containers = emulator.sagemaker.describe_model(ModelName=model)["Containers"]
    again = {"ModelName": model.upper(), "Containers": containers, "ExecutionRoleArn": emulator.role}
    code, message = refusal(emulator, "CreateModel", again)
    assert (code, "already existing model" in message) == ("ValidationException", True)
    request = emulator.transform(model)
    emulator.sagemaker.create_transform_job(**request)
    again = emulator.changed(request, "TransformJobName", request["TransformJobName"].upper())
    assert refusal(emulator, "CreateTransformJob", again)[0] == "ResourceInUse"


@pytest.mark.parametrize(
    ("operation", "named", "code"),
    [
        ("DescribeAutoMLJobV2", {"AutoMLJobName": "none"}, "ResourceNotFound"),
        ("StopAutoMLJob", {"AutoMLJobName": "none"}, "ResourceNotFound"),
        ("ListCandidatesForAutoMLJob", {"AutoMLJobName": "none"}, "ResourceNotFound"),
        ("DescribeTransformJob", {"TransformJobName": "none"}, "ResourceNotFound"),
        ("StopTransformJob", {"TransformJobName": "none"}, "ResourceNotFound"),
        ("DescribeTrainingJob", {"TrainingJobName": "none"}, "ResourceNotFound"),
        ("DescribeDomain", {"DomainId": "d-none"}, "ResourceNotFound"),
        ("DescribeModel", {"ModelName": "none"}, "ValidationException"),
        ("DeleteModel", {"ModelName": "none"}, "ValidationException"),
        ("ListTags", {"ResourceArn": "arn:aws:sagemaker:eu-west-1:123456789012:model/none"}, "ValidationException"),
    ],
)
def test_what_is_not_there_is_said_as_the_model_names_it(
    emulator: Any, operation: str, named: dict[str, str], code: str
) -> None:
    assert refusal(emulator, operation, named)[0] == code


def test_a_transform_needs_its_model(emulator: Any) -> None:
    assert refusal(emulator, "CreateTransformJob", emulator.transform("none"))[0] == "ResourceNotFound"


@pytest.mark.parametrize("operation", ["CreateEndpoint", "ListApps"])
def test_what_the_emulator_does_not_have_it_says(emulator: Any, operation: str) -> None:
    code, message = refusal(emulator, operation, {})
    assert (code, "the emulator does not have it" in message) == ("UnknownOperationException", True)


def test_data_that_cannot_be_used_is_refused(emulator: Any) -> None:
    uri = f"s3://{emulator.bucket}/broken/"
    request = emulator.changed(emulator.automl(), f"{CHANNEL}.DataSource.S3DataSource.S3Uri", uri)
    good = emulator.in_csv(emulator.fleet())
    for content, said in [
        (good.replace(b"2023-01-05", b"the fifth", 1), "not the CSV"),
        (good + b'server-1-0,2023-01-01,"40', "not the CSV"),
        (good.replace(b"cpu", b"cpu,cpu", 1), "two columns"),
    ]:
        emulator.put("broken/a.csv", content)
        _, message = refusal(emulator, "CreateAutoMLJobV2", request)
        assert said in message
    emulator.put("broken/a.csv", good)
    emulator.put("broken/b.csv", good.replace(b"promotion", b"campaign", 1))
    _, message = refusal(emulator, "CreateAutoMLJobV2", request)
    assert "other columns" in message


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_pattern_of_the_model_is_understood(operation: str) -> None:
    seen: set[str] = set()

    def walk(shape: Any) -> None:
        if shape.name in seen:
            return
        seen.add(shape.name)
        if "pattern" in shape.metadata:
            assert r"\p" not in constraints.pattern(shape.metadata["pattern"]).pattern
        for member in [
            *getattr(shape, "members", {}).values(),
            *(getattr(shape, part) for part in ("member", "key", "value") if hasattr(shape, part)),
        ]:
            walk(member)

    walk(constraints.operation(operation).input_shape)
    assert seen

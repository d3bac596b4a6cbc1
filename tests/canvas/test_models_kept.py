"""What is kept of a managed run: its results in the bucket, and its model, to be used again until that is removed."""

import io

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from app.errors import CannotStart
from app.wiring import assemble
from tests.canvas.checker import check
from tests.canvas.place import BUCKET, HORIZON, SERVERS, STEPS, Forecast, Place, Submit
from tests.processes import eventually, worker


def keys(place: Place, prefix: str = "") -> list[str]:
    found = place.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [one["Key"] for one in found]


async def newer(place: Place, client: httpx.AsyncClient, steps: int) -> str:
    """A version of the place's dataset with so many further days."""
    start = np.datetime64("2023-01-01") + STEPS
    rows = [f"srv-{server},{start + day},{41 + day % 7}" for server in range(SERVERS) for day in range(steps)]
    made = await client.post(
        f"/datasets/{place.dataset}/versions",
        content="\n".join(["server_id,timestamp,cpu_p95", *rows]),
        headers={"Content-Type": "text/csv"},
    )
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def shown(client: httpx.AsyncClient, forecast: Forecast) -> Forecast:
    found: Forecast = (await client.get(f"/forecasts/{forecast['id']}")).json()
    return found


async def test_the_results_lie_in_the_bucket_as_long_as_the_forecast_is_there(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    forecast = await submit()
    place.wait(forecast)
    key = f"forecasts/{forecast['id']}/canvas.parquet"
    stored = pq.read_table(io.BytesIO(place.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()))
    read = await client.get(
        f"/forecasts/{forecast['id']}/quantiles",
        params={"model": "canvas"},
        headers={"Accept": "application/vnd.apache.parquet"},
    )
    assert stored.num_rows == SERVERS * HORIZON
    assert stored.equals(pq.read_table(io.BytesIO(read.content)))
    assert (await client.delete(f"/forecasts/{forecast['id']}")).status_code == 204
    eventually(lambda: not keys(place, f"forecasts/{forecast['id']}/"), "the removal of the results")
    eventually(lambda: not keys(place, f"headroom/runs/{place_run(place, forecast)}/"), "the removal of the model")


def place_run(place: Place, forecast: Forecast) -> str:
    return str(place.query("SELECT run_id FROM canvas_runs WHERE forecast_id = %s", forecast["id"])[0][0])


async def test_a_model_is_used_again_without_paying_for_a_training(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    first = await submit()
    place.wait(first)
    again = await submit(reuse_models_of=first["id"])
    place.wait(again)
    check(place, again)
    made = [one.operation for one in place.made(place.run_id(again))]
    assert made == ["CreateModel", "CreateTransformJob", "CreateTransformJob"]
    assert 0 < (await shown(client, again))["cost"]["actual_usd"] < (await shown(client, first))["cost"]["actual_usd"]

    # Newer rows: one further window is there to be scored that the model has not seen.
    version = await newer(place, client, HORIZON)
    onward = await submit(reuse_models_of=again["id"], dataset_id=version, backtest_windows=2)
    place.wait(onward)
    assert place.run(onward) == ("succeeded", None)
    run = (await shown(client, onward))["runs"][0]
    assert run["report"]["windows"] == 2
    assert run["report"]["models_of"] == place.run_id(first)
    assert not [one for one in place.made(place.run_id(onward)) if one.operation == "CreateAutoMLJobV2"]

    # And back: what has been learned lies ahead of the older rows, or has been seen.
    older = await submit(reuse_models_of=onward["id"], backtest_windows=2)
    place.wait(older)
    run = (await shown(client, older))["runs"][0]
    assert (run["status"], run["report"]["windows"]) == ("succeeded", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"horizon": 4}, "a horizon of 5"),
        ({"quantiles": [0.25]}, "quantiles without p25"),
        ({"horizon": 4, "quantiles": [0.25]}, "a horizon of 5 and quantiles without p25"),
    ],
)
async def test_a_model_is_not_asked_for_what_it_has_not_learned(
    place: Place, submit: Submit, client: httpx.AsyncClient, changes: dict[str, object], said: str
) -> None:
    first = await submit()
    place.wait(first)
    skipped = await submit(reuse_models_of=first["id"], **changes)
    run = skipped["runs"][0]
    assert (run["status"], run["error"]["code"]) == ("skipped", "model-not-reusable")
    assert said in run["error"]["detail"]
    assert [run["model"] for run in skipped["runs"]] == ["canvas", "auto"]
    asked = {"dataset_id": place.dataset, "metric": "cpu_p95", "horizon": HORIZON, "models": ["canvas"]} | changes
    refused = await client.post(
        "/forecasts",
        json=asked | {"reuse_models_of": first["id"], "fallback": False},
        headers={"Idempotency-Key": f"{first['id']}-refused"},
    )
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/reuse_models_of"


async def test_a_forecast_without_a_managed_model_lends_none(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    local = await submit(models=["seasonal_naive"])
    eventually(lambda: place.ended(local), "the end of the forecast")
    skipped = await submit(reuse_models_of=local["id"])
    assert skipped["runs"][0]["error"]["code"] == "model-not-reusable"
    anew = await submit(reuse_models_of=local["id"], models=["seasonal_naive"])
    assert any("learned anew" in warning for warning in anew["warnings"])


async def test_a_setting_trains_again_for_the_forecast_and_another_forgets_at_once(
    alone: Place, lonely_submit: Submit, lonely_client: httpx.AsyncClient
) -> None:
    alone.settings = alone.settings.model_copy(update={"canvas_retrain": True, "canvas_keep_days": 0.0})
    with worker(alone.settings, HEADROOM_CANVAS_RETRAIN="true", HEADROOM_CANVAS_KEEP_DAYS="0"):
        forecast = await lonely_submit()
        alone.wait(forecast)
        assert alone.run(forecast) == ("succeeded", None)
        made = alone.made(alone.run_id(forecast))
        assert [one.operation for one in made] == ["CreateAutoMLJobV2"] * 2 + ["CreateModel"] * 2 + [
            "CreateTransformJob"
        ] * 2
        learnt_from = [
            one.request["AutoMLJobInputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"].split("/")[-2]
            for one in made[:2]
        ]
        assert learnt_from == ["window-1", "forecast"]
        models = {one.output.split("/")[-2]: one.request["ModelName"] for one in made[4:]}
        assert models == {"window-1": made[0].name, "forecast": made[1].name}
        settled = alone.query("SELECT purpose FROM ledger WHERE kind = 'settled' ORDER BY purpose")
        assert [purpose for (purpose,) in settled] == [
            "automl",
            "automl-again",
            "transform-forecast",
            "transform-window-1",
        ]
        assert alone.client("sagemaker").list_models()["Models"] == []
        folder = f"headroom/runs/{alone.run_id(forecast)}/"
        eventually(lambda: not keys(alone, folder), "the removal of all artifacts")
        late = await lonely_submit(reuse_models_of=forecast["id"])
        assert "HEADROOM_CANVAS_KEEP_DAYS" in late["runs"][0]["error"]["detail"]


async def test_what_a_setting_asks_for_is_asked_of_aws(alone: Place, lonely_submit: Submit) -> None:
    chosen = {
        "HEADROOM_CANVAS_ALGORITHMS": "prophet, ets",
        "HEADROOM_KMS_KEY": "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "HEADROOM_SUBNETS": "subnet-0aaa,subnet-0bbb",
        "HEADROOM_SECURITY_GROUPS": "sg-0ccc",
    }
    with worker(alone.settings, **chosen):
        forecast = await lonely_submit()
        alone.wait(forecast)
    check(alone, forecast)
    job, model, transform, _ = (one.request for one in alone.made(alone.run_id(forecast)))
    forecasting = job["AutoMLProblemTypeConfig"]["TimeSeriesForecastingJobConfig"]
    assert forecasting["CandidateGenerationConfig"]["AlgorithmsConfig"] == [{"AutoMLAlgorithms": ["prophet", "ets"]}]
    network = {"Subnets": ["subnet-0aaa", "subnet-0bbb"], "SecurityGroupIds": ["sg-0ccc"]}
    assert job["SecurityConfig"]["VpcConfig"] == model["VpcConfig"] == network
    key = chosen["HEADROOM_KMS_KEY"]
    assert job["OutputDataConfig"]["KmsKeyId"] == transform["TransformOutput"]["KmsKeyId"] == key
    assert job["SecurityConfig"]["VolumeKmsKeyId"] == transform["TransformResources"]["VolumeKmsKeyId"] == key


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canvas_algorithms": "prophet, arimax"}, "there is no arimax"),
        ({"subnets": "subnet-0aaa"}, "go together"),
        ({"security_groups": "sg-0ccc"}, "go together"),
    ],
)
async def test_settings_that_cannot_be_are_said_at_the_start(alone: Place, changes: dict[str, str], said: str) -> None:
    with pytest.raises(CannotStart, match=said):
        async with assemble(alone.settings.model_copy(update=changes)):
            pass

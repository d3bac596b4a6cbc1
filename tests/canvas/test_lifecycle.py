"""The managed run on the emulator: its whole life, and its life with workers that are killed at every boundary.

Each cell takes a worker that dies at a named place of the code (`kill -9`), lets another one find what it left, and
has the checker look at everything. "Effectively once" under these faults on a strict emulator; nothing here has met
AWS.
"""

import signal

import httpx
import pytest

from tests.canvas.checker import check
from tests.canvas.place import SERVERS, SPEED, Forecast, Place, Submit
from tests.processes import eventually, worker


async def test_a_managed_run_from_submit_to_nothing_left(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    forecast = await submit(models=["canvas", "seasonal_naive"])
    place.wait(forecast)
    check(place, forecast)
    made = [one.operation for one in place.made(place.run_id(forecast))]
    assert made == ["CreateAutoMLJobV2", "CreateModel", "CreateTransformJob", "CreateTransformJob"]
    shown = (await client.get(f"/forecasts/{forecast['id']}")).json()
    assert shown["status"] == "succeeded"
    assert 0 < shown["cost"]["actual_usd"] < shown["cost"]["estimated_usd"] * 2
    comparison = (await client.get(f"/forecasts/{forecast['id']}/comparison")).json()
    assert {row["model"] for row in comparison["models"]} == {"canvas", "seasonal_naive"}
    assert all(row["wql"] is not None for row in comparison["models"])
    risk = await client.get("/risk/servers", params={"forecast_id": forecast["id"], "model": "canvas"})
    assert len(risk.json()["items"]) == SERVERS
    costs = (await client.get("/costs?by=forecast")).json()
    assert costs["items"][0]["group"] == forecast["id"]
    assert costs["items"][0]["settled_usd"] == shown["cost"]["actual_usd"]


MADE = ("automl", "model", "transform-forecast", "transform-window-1")

BOUNDARIES = [
    *("before_claim", "in_claim", "after_claim"),
    *("canvas.begun", "canvas.staging", "canvas.uploaded.forecast", "canvas.uploaded.window-1"),
    *(f"canvas.{place}.{purpose}" for purpose in MADE for place in ("before", "after", "committed")),
    *("in_park", "after_park"),
    *(f"canvas.reached.{stage}" for stage in ("training", "registering", "transforming", "collecting")),
    *("canvas.collecting", "canvas.fetched.forecast", "canvas.fetched.window-1"),
    *("before_store", "before_commit", "after_commit"),
]
POLLED = {"canvas.polled.training": "CreateAutoMLJobV2", "canvas.polled.transforming": "CreateTransformJob"}
CLEANING = ["clean.billed", "clean.settled", "clean.deregistered", "clean.emptied", "clean.gone"]


@pytest.mark.parametrize("boundary", [*BOUNDARIES, *POLLED, *CLEANING])
async def test_a_worker_killed_at_a_boundary_pays_once(place: Place, submit: Submit, boundary: str) -> None:
    with place.rested():
        forecast = await submit()
        if boundary in POLLED:
            _killed_as_it_waits(place, boundary)
        else:
            _killed_at(place, boundary)
    place.wait(forecast)
    check(place, forecast)


@pytest.mark.parametrize("boundary", ["before_end", "in_end", "after_end"])
async def test_a_worker_killed_as_it_gives_up_gives_up_once(place: Place, submit: Submit, boundary: str) -> None:
    place.arm("CreateAutoMLJobV2", "fail_job")
    with place.rested():
        forecast = await submit()
        _killed_at(place, boundary)
    place.wait(forecast)
    check(place, forecast, "failed", "automl-failed")
    assert _models(place, forecast) == ["canvas", "auto"], "local models answer"


async def test_a_worker_killed_as_it_stops_a_job_stops_it_once(
    place: Place, submit: Submit, client: httpx.AsyncClient
) -> None:
    place.control("clock", {"speed": 60})
    with place.rested():
        forecast = await submit()
        with worker(place.settings, "clean.stopping=kill") as doomed:
            eventually(lambda: place.calls("DescribeAutoMLJobV2")[3:], "the training")
            assert (await client.post(f"/forecasts/{forecast['id']}/cancel")).status_code == 202
            eventually(lambda: doomed.poll() is not None, "the kill")
            assert doomed.returncode == -signal.SIGKILL
    place.control("clock", {"speed": SPEED})
    place.wait(forecast)
    check(place, forecast, "cancelled")


def _killed_at(place: Place, boundary: str) -> None:
    """A worker carries what there is, and dies there."""
    with worker(place.settings, f"{boundary}=kill") as doomed:
        eventually(lambda: doomed.poll() is not None, f"the kill at {boundary}")
        assert doomed.returncode == -signal.SIGKILL


def _killed_as_it_waits(place: Place, boundary: str) -> None:
    """As above, while time stands still on AWS: there is something to wait for, however slow this machine is."""
    place.control("clock", {"speed": 600})
    place.arm("CreateTransformJob", "slow", times=2)
    with worker(place.settings, f"{boundary}=kill") as doomed:
        eventually(lambda: place.calls(POLLED[boundary]), f"a call of {POLLED[boundary]}")
        place.control("clock", {"stop": True})
        eventually(lambda: doomed.poll() is not None, f"the kill at {boundary}")
        assert doomed.returncode == -signal.SIGKILL
    place.control("clock", {"start": True})
    place.control("clock", {"speed": SPEED})


def _models(place: Place, forecast: Forecast) -> list[str]:
    found = place.query("SELECT model FROM runs WHERE forecast_id = %s ORDER BY position", forecast["id"])
    return [model for (model,) in found]

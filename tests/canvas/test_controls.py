"""Negative controls: a guard is taken out, the fault comes that it is there for, and the checker must see it.

A checker that never finds anything proves nothing. Each control asks for the very complaint that the missing guard
leads to; the same fault with the guard in place is a cell in test_lifecycle or test_faults, and passes.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil

from tests.canvas.checker import broken
from tests.canvas.place import Forecast, Place, Submit
from tests.processes import eventually, process


@contextmanager
def sabotaged(place: Place, guard: str, failpoints: str = "") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.canvas.sabotaged_worker"]
    with process(place.settings, command, failpoints, SABOTAGE=guard) as worker:
        yield worker


def complaints(place: Place, forecast: Forecast, invariant: str) -> str:
    return "\n".join(line for line in broken(place, forecast) if line.startswith(invariant))


def frozen(worker: subprocess.Popen[bytes], point: str) -> psutil.Process:
    sleeper = psutil.Process(worker.pid)
    eventually(lambda: sleeper.status() == psutil.STATUS_STOPPED, f"the freeze at {point}")
    return sleeper


async def cancelled(client: httpx.AsyncClient, forecast: Forecast) -> None:
    assert (await client.post(f"/forecasts/{forecast['id']}/cancel")).status_code == 202


async def test_without_intents_a_late_job_is_never_paid_for(
    alone: Place, lonely_submit: Submit, lonely_client: httpx.AsyncClient
) -> None:
    forecast = await lonely_submit()
    with sabotaged(alone, "no_intent", "canvas.before.automl=kill") as worker:
        eventually(lambda: worker.poll() is not None, "the kill")
    late_call = alone.late_call(forecast)
    await cancelled(lonely_client, forecast)
    with sabotaged(alone, "no_intent"):
        alone.wait(forecast)
        late_call()
        _swept_again(alone)
    assert "was called without an intent" in complaints(alone, forecast, "I3")
    assert "AWS bills" in complaints(alone, forecast, "I5")


async def test_without_the_fence_a_cancelled_run_succeeds(
    alone: Place, lonely_submit: Submit, lonely_client: httpx.AsyncClient
) -> None:
    forecast = await lonely_submit()
    with sabotaged(alone, "no_fence", "before_store=stop") as worker:
        sleeper = frozen(worker, "the store")
        await cancelled(lonely_client, forecast)
        sleeper.send_signal(signal.SIGCONT)
        eventually(lambda: alone.run(forecast)[0] == "succeeded", "the write that no one fenced off")
    assert "canvas ended 2 times: cancelled, succeeded" in complaints(alone, forecast, "I1")


async def test_with_random_names_a_killed_worker_pays_twice(alone: Place, lonely_submit: Submit) -> None:
    forecast = await lonely_submit()
    with sabotaged(alone, "random_names", "canvas.after.automl=kill") as worker:
        eventually(lambda: worker.poll() is not None, "the kill")
        assert worker.returncode == -signal.SIGKILL
    with sabotaged(alone, "random_names"):
        eventually(lambda: alone.calls("CreateAutoMLJobV2")[1:], "the second job")
    assert "2 AutoML jobs were made for one attempt" in complaints(alone, forecast, "I2")


async def test_without_adoption_a_lost_reply_pays_twice(alone: Place, lonely_submit: Submit) -> None:
    alone.arm("CreateAutoMLJobV2", "lost_reply")
    forecast = await lonely_submit()
    with sabotaged(alone, "no_adoption"):
        eventually(lambda: alone.calls("CreateAutoMLJobV2")[1:], "the second job")
    assert "2 AutoML jobs were made for one attempt" in complaints(alone, forecast, "I2")


async def test_without_the_janitor_a_cancelled_job_runs_on(
    alone: Place, lonely_submit: Submit, lonely_client: httpx.AsyncClient
) -> None:
    alone.control("clock", {"speed": 60})
    forecast = await lonely_submit()
    with sabotaged(alone, "no_janitor"):
        eventually(lambda: alone.calls("CreateAutoMLJobV2"), "the job")
        alone.control("clock", {"stop": True})
        await cancelled(lonely_client, forecast)
        await _another_ends(alone, lonely_submit)
    assert "runs on AWS, and no live run pays for it" in complaints(alone, forecast, "I3")
    assert "objects were left in the bucket" in complaints(alone, forecast, "I3")
    assert "the ledger does not balance" in complaints(alone, forecast, "I5")


async def test_without_the_reconciler_a_killed_workers_run_never_ends(alone: Place, lonely_submit: Submit) -> None:
    forecast = await lonely_submit()
    with sabotaged(alone, "no_reconciler", "after_claim=kill") as worker:
        eventually(lambda: worker.poll() is not None, "the kill")
    with sabotaged(alone, "no_reconciler"):
        silent = "SELECT id FROM runs WHERE id = %s AND lease_until < now() - interval '2 leases'"
        silent = silent.replace("2 leases", f"{2 * alone.settings.lease_seconds} s")
        eventually(lambda: alone.query(silent, alone.run_id(forecast)), "the end of the lease")
        await _another_ends(alone, lonely_submit)
    assert "the forecast has not ended, it is running" in complaints(alone, forecast, "I1")


async def _another_ends(place: Place, submit: Submit) -> None:
    """The worker is well, and has had the time to do what it does."""
    other = await submit(models=["seasonal_naive"])
    eventually(lambda: place.ended(other), "the end of another forecast")


def _swept_again(place: Place) -> None:
    """Nothing runs any more, and the janitor has searched AWS three times since."""
    sagemaker = place.client("sagemaker")
    going = {"StatusEquals": "InProgress"}
    eventually(lambda: not sagemaker.list_auto_ml_jobs(**going)["AutoMLJobSummaries"], "the end of the job")
    rounds = len(place.calls("ListTransformJobs"))
    eventually(lambda: len(place.calls("ListTransformJobs")) >= rounds + 3, "three more rounds")

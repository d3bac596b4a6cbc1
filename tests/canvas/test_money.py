"""Money under pressure: a budget that many want at once, a job that costs more than it may, an API that dies."""

import asyncio
import json
import signal
import socket
from collections import Counter
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.storage import ledger
from tests.canvas.checker import check
from tests.canvas.place import SPEED, Place, Submit, body, serving
from tests.processes import HEADROOM, eventually, process, worker

PAID, ASKED = 3, 200


async def ask(client: httpx.AsyncClient, wanted: dict[str, Any], key: str) -> httpx.Response:
    """As a well-behaved caller: where the service is too busy, the same again."""
    while True:
        answer = await client.post("/forecasts", json=wanted, headers={"Idempotency-Key": key})
        if answer.status_code != 503 or "Retry-After" not in answer.headers:
            return answer
        await asyncio.sleep(float(answer.headers["Retry-After"]))


@pytest.fixture
def tight(alone: Place) -> Place:
    """A budget for three."""
    budget = PAID * alone.settings.max_cost_usd
    alone.settings = alone.settings.model_copy(update={"monthly_budget_usd": budget})
    return alone


def committed(place: Place) -> int:
    """Micro-dollars of this month's budget that are spoken for."""
    return int(place.query("SELECT coalesce(sum(amount_microusd), 0) FROM ledger WHERE kind = 'reserved'")[0][0])


async def test_two_hundred_at_once_and_a_budget_for_three(tight: Place) -> None:
    async with serving(tight) as client:
        wanted = await body(tight, client)
        answers = await asyncio.gather(*(ask(client, wanted, f"key-{number}") for number in range(ASKED)))
        assert {answer.status_code for answer in answers} == {202}
        month = (await client.get("/costs")).json()["month"]
    seen = Counter(
        tuple((run["model"], run["status"], (run["error"] or {}).get("code")) for run in answer.json()["runs"])
        for answer in answers
    )
    skipped = (("canvas", "skipped", "budget-exceeded"), ("auto", "queued", None))
    assert seen == {(("canvas", "queued", None),): PAID, skipped: ASKED - PAID}
    assert committed(tight) == PAID * 200_000
    assert month["committed_usd"] <= month["budget_usd"]
    assert month["remaining_usd"] == 0


async def test_two_hundred_who_want_no_fallback_and_a_budget_for_three(tight: Place) -> None:
    async with serving(tight) as client:
        wanted = await body(tight, client) | {"fallback": False}
        answers = await asyncio.gather(*(ask(client, wanted, f"key-{number}") for number in range(ASKED)))
    assert Counter(answer.status_code for answer in answers) == {202: PAID, 402: ASKED - PAID}
    refused = {answer.json()["type"].rsplit(":", 1)[-1] for answer in answers if answer.status_code == 402}
    assert refused == {"budget-exceeded"}
    for table in ("forecasts", "runs", "ledger", "idempotency_keys"):
        assert tight.query(f"SELECT count(*) FROM {table}") == [(PAID,)], table
    assert committed(tight) == PAID * 200_000


async def test_without_the_lock_the_budget_is_passed(tight: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the two above."""
    monkeypatch.setattr(ledger, "_BUDGET_LOCK", sa.literal_column("(random() * 1e9)::bigint"))
    async with serving(tight) as client:
        wanted = await body(tight, client)
        await asyncio.gather(*(ask(client, wanted, f"key-{number}") for number in range(ASKED // 4)))
    assert committed(tight) > PAID * 200_000


async def test_a_job_that_costs_more_than_its_cap_is_stopped_and_the_overrun_is_told(
    place: Place, submit: Submit
) -> None:
    place.arm("CreateAutoMLJobV2", "dear")
    place.control("clock", {"speed": 60})
    forecast = await submit()
    eventually(lambda: place.calls("CreateAutoMLJobV2"), "the job")
    place.control("clock", {"stop": True})
    place.control("clock", {"advance": 620})  # its children have begun, and are not done
    eventually(lambda: place.calls("StopAutoMLJob"), "the stop at the next poll")
    assert place.run(forecast) == ("running", None)
    place.control("clock", {"speed": SPEED})
    place.control("clock", {"start": True})
    place.wait(forecast)
    check(place, forecast, "failed", "automl-stopped")
    run_id = place.run_id(forecast)
    money = dict(place.query("SELECT kind, sum(amount_microusd)::int FROM ledger WHERE run_id = %s GROUP BY 1", run_id))
    assert money["reserved"] == 200_000
    assert money["overrun"] == money["settled"] - 200_000 > 0
    lines = [json.loads(line) for line in (place.settings.data_dir / "worker.log").read_text().splitlines()]
    alarms = [line["message"] for line in lines if line["level"] == "error" and run_id in line["message"]]
    assert any("more than" in alarm for alarm in alarms), alarms


@pytest.mark.parametrize(("point", "replayed"), [("in_submit", False), ("after_submit", True)])
async def test_an_api_killed_as_it_reserves_reserves_once(
    alone: Place, lonely_client: httpx.AsyncClient, point: str, replayed: bool
) -> None:
    wanted = await body(alone, lonely_client)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = alone.settings.model_copy(update={"port": port})
    with process(settings, [*HEADROOM, "serve"], f"{point}=kill") as doomed:
        eventually(lambda: _listens(port), "the start")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as caller:
            with pytest.raises(httpx.TransportError):
                await ask(caller, wanted, "the-same")
        assert doomed.wait(timeout=30) == -signal.SIGKILL
    stored = int(replayed)
    assert alone.query("SELECT count(*) FROM forecasts") == [(stored,)]
    assert committed(alone) == stored * 200_000
    answer = await ask(lonely_client, wanted, "the-same")
    assert answer.status_code == 202
    assert ("Idempotency-Replayed" in answer.headers) == replayed
    assert alone.query("SELECT count(*) FROM forecasts") == [(1,)]
    assert committed(alone) == 200_000


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("also_deleted", [False, True])
async def test_what_was_set_aside_for_a_run_that_never_began_is_given_back(
    alone: Place, lonely_submit: Submit, lonely_client: httpx.AsyncClient, also_deleted: bool
) -> None:
    forecast = await lonely_submit()
    run_id = alone.run_id(forecast)
    assert (await lonely_client.post(f"/forecasts/{forecast['id']}/cancel")).status_code == 202
    if also_deleted:
        assert (await lonely_client.delete(f"/forecasts/{forecast['id']}")).status_code == 204
    held = "SELECT sum(CASE kind WHEN 'reserved' THEN amount_microusd ELSE -amount_microusd END) FROM ledger"
    assert alone.query(held)[0][0] > 0
    with worker(alone.settings):
        eventually(lambda: alone.query(held)[0][0] == 0, "the release")
    assert [kind for (kind,) in alone.query("SELECT kind FROM ledger WHERE run_id = %s ORDER BY id", run_id)] == [
        "reserved",
        "released",
    ]

"""Alerts by real workers that are killed at each step: what a forecast raised arrives, and arrives as one."""

import json
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI

from app.domain.forecast import ForecastRequest
from app.settings import Settings
from tests.processes import eventually, query, worker
from tests.receiver import receiver
from tests.services.test_webhooks import verified

CANARY = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5"
LEASE = 2


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        compute_processes=1,
        lease_seconds=LEASE,
        webhook_allow="127.0.0.0/8",
    )


async def submitted(api: FastAPI, client: httpx.AsyncClient, url: str) -> UUID:
    """A rule that every forecast meets, and a forecast that waits for a worker."""
    rule = {"name": "all", "condition": {"breach_probability_over": 0.0}, "threshold": 1.0, "url": url}
    made = await client.post("/alerts/rules", json=rule | {"secret": CANARY})
    assert made.status_code == 201, made.text
    lines = [f"srv-{n},2023-01-{day:02},{50 + day % 7}" for n in range(3) for day in range(1, 32)]
    text = "\n".join(["server_id,timestamp,cpu_p95", *lines])
    dataset = await client.post("/datasets", content=text, headers={"Content-Type": "text/csv"})
    request = ForecastRequest(UUID(dataset.json()["id"]), "cpu_p95", 7, models=("seasonal_naive",))
    return UUID(str((await api.state.services.forecasts.submit(request, "", None)).forecast.id))


def at_once(settings: Settings) -> None:
    """As if the claims of the killed worker had run out."""
    query(settings, "UPDATE alert_evaluations SET due_at = now()")
    query(settings, "UPDATE alert_deliveries SET due_at = now() WHERE status = 'pending'")


def deliveries(settings: Settings) -> list[tuple[Any, ...]]:
    return query(settings, "SELECT id::text, status, attempts FROM alert_deliveries")


@pytest.mark.parametrize(
    ("place", "sent_twice"),
    [
        ("after_commit", False),  # the forecast has succeeded, and that is all
        ("alerts.claimed", False),
        ("alerts.before_commit", False),
        ("alerts.before_send", False),
        ("alerts.sent", True),  # sent, and not noted: at least once
    ],
)
async def test_a_worker_killed_anywhere_leaves_an_alert_that_arrives(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings, place: str, sent_twice: bool
) -> None:
    with receiver() as there:
        forecast_id = await submitted(api, client, there.url)
        with worker(settings, f"{place}=kill") as doomed:
            eventually(lambda: doomed.poll() is not None, "the kill")
            assert doomed.returncode == -signal.SIGKILL
        assert len(there.received) == (place == "alerts.sent")
        at_once(settings)
        with worker(settings):
            eventually(lambda: [row[1] for row in deliveries(settings)] == ["delivered"], "the delivery")
            eventually(lambda: query(settings, "SELECT FROM alert_evaluations") == [], "the judging")
    ((webhook_id, _, attempts),) = deliveries(settings)
    assert attempts == 1 + (place in ("alerts.before_send", "alerts.sent"))
    assert len(there.received) == 1 + sent_twice
    assert {one.headers["webhook-id"] for one in there.received} == {webhook_id}
    assert len({one.body for one in there.received}) == 1
    assert all(verified(CANARY, one) for one in there.received)
    data = json.loads(there.received[0].body)["data"]
    assert (data["forecast_id"], data["counts"]) == (str(forecast_id), {"entered": 3, "still": 0, "left": 0})
    log = (settings.data_dir / "worker.log").read_text()
    assert CANARY.removeprefix("whsec_") not in log
    assert there.url not in log


async def test_a_receiver_that_hangs_does_not_hold_up_the_others(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    with receiver(silent=True) as slow, receiver() as quick:
        body = {"name": "one", "condition": {"level_at_least": "high"}}
        rules = [await client.post("/alerts/rules", json=body | {"url": one.url}) for one in (slow, quick)]
        for rule in rules:
            await client.post(f"/alerts/rules/{rule.json()['id']}/test")
        with worker(settings):
            eventually(lambda: slow.received and quick.received, "both attempts")
            eventually(
                lambda: [row for row in deliveries(settings) if row[1] == "delivered"], "the delivery to the quick one"
            )
            assert [row[1:] for row in deliveries(settings) if row[1] == "pending"] == [("pending", 1)]


async def test_two_workers_send_what_there_is_once(api: FastAPI, client: httpx.AsyncClient, settings: Settings) -> None:
    with receiver() as there:
        body = {"name": "one", "condition": {"level_at_least": "high"}, "url": there.url}
        rule = (await client.post("/alerts/rules", json=body)).json()
        for _ in range(40):
            await client.post(f"/alerts/rules/{rule['id']}/test")
        with worker(settings) as one, worker(settings) as other:
            eventually(lambda: {row[1] for row in deliveries(settings)} == {"delivered"}, "all deliveries")
            assert (one.poll(), other.poll()) == (None, None)
    assert sorted(one.headers["webhook-id"] for one in there.received) == sorted(row[0] for row in deliveries(settings))

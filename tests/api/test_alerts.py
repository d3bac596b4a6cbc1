"""Alert rules over HTTP, judged and delivered in this process: real forecasts, and real servers that receive."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.domain.keys import Scope
from app.services import alerts as service
from app.settings import Settings
from tests.processes import query
from tests.receiver import receiver
from tests.services.test_webhooks import verified

CANARY = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5"
LEVELS = {"web-1": 30.0, "web-2": 60.0, "web-3": 95.0, "web-4": 97.0}
ANY = {"breach_probability_over": 0.5}


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        host="127.0.0.1",
        compute_processes=1,
        webhook_allow="127.0.0.1",
    )


def rows(levels: dict[str, float], start: str, days: int, column: str = "cpu_p95") -> str:
    times = np.arange(start, np.datetime64(start) + days, dtype="datetime64[D]")
    lines = [
        f"{server},{day},{level + number % 7 / 4},{'north' if server < 'web-4' else 'south'}"
        for server, level in levels.items()
        for number, day in enumerate(times)
    ]
    return "\n".join([f"server_id,timestamp,{column},region", *lines])


Forecast = Callable[..., Awaitable[str]]


@pytest.fixture
def forecast(api: FastAPI, client: httpx.AsyncClient) -> Forecast:
    """Carries a forecast of a dataset to its end, judges the alerts that wait, and answers its id."""

    async def carried(dataset: str, metric: str = "cpu_p95", *, judge: bool = True) -> str:
        asked = {"dataset_id": dataset, "metric": metric, "horizon": 14, "models": ["seasonal_naive"]}
        made = await client.post("/forecasts", json=asked)
        assert made.status_code == 202, made.text
        services = api.state.services
        for run in (await services.forecasts.get(UUID(made.json()["id"]))).runs:
            await services.runs.tick(run.id)
        while judge and await services.alerts.evaluate():
            pass
        return str(made.json()["id"])

    return carried


async def uploaded(client: httpx.AsyncClient, text: str, path: str = "/datasets") -> str:
    made = await client.post(path, content=text, headers={"Content-Type": "text/csv"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def ruled(client: httpx.AsyncClient, url: str, condition: Any = ANY, **more: Any) -> dict[str, Any]:
    made = await client.post("/alerts/rules", json={"name": "one", "condition": condition, "url": url, **more})
    assert made.status_code == 201, made.text
    return dict(made.json())


async def delivered(api: FastAPI) -> int:
    count = 0
    while await api.state.services.alerts.deliver():
        count += 1
    return count


async def deliveries(client: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    return list((await client.get("/alerts/deliveries", params=filters)).json()["items"])


async def test_a_rule_is_made_shown_listed_switched_and_deleted(client: httpx.AsyncClient) -> None:
    body = {
        "name": "order in time",
        "metric": "cpu_p95",
        "where": {"region": "north", "criticality": ["1", "2"]},
        "threshold": 80,
        "model": "auto",
        "condition": {"runway_under_days": 30},
        "url": "https://1.1.1.1/hook",
        "secret": CANARY,
    }
    made = await client.post("/alerts/rules", json=body)
    assert made.status_code == 201
    rule = made.json()
    assert rule.pop("secret") == CANARY
    assert made.headers["location"] == f"/alerts/rules/{rule['id']}"
    assert (rule["enabled"], rule["only_changes"], rule["problem"]) == (True, False, None)
    assert rule["where"] == {"region": ["north"], "criticality": ["1", "2"]}
    assert rule["condition"] == {"runway_under_days": 30, "which": "conservative"}
    assert (await client.get(made.headers["location"])).json() == rule
    assert (await client.get("/alerts/rules")).json() == {"items": [rule], "next_cursor": None}
    off = await client.patch(made.headers["location"], json={"enabled": False})
    assert off.json() == rule | {"enabled": False}
    assert (await client.delete(made.headers["location"])).status_code == 204
    for method, path in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test")]:
        sent = {"json": {"enabled": True}} if method == "PATCH" else {}
        gone = await client.request(method, made.headers["location"] + path, **sent)
        assert (gone.status_code, gone.json()["type"]) == (404, "urn:headroom:problem:not-found")


async def test_lists_are_paged(client: httpx.AsyncClient) -> None:
    made = [await ruled(client, "https://1.1.1.1/", name=f"rule {number}") for number in range(3)]
    for rule in made:
        await client.post(f"/alerts/rules/{rule['id']}/test")
    for path in ("/alerts/rules", "/alerts/deliveries"):
        first = (await client.get(path, params={"limit": 2})).json()
        second = (await client.get(path, params={"limit": 2, "cursor": first["next_cursor"]})).json()
        ids = [item.get("rule_id", item["id"]) for item in first["items"] + second["items"]]
        assert ids == [rule["id"] for rule in reversed(made)]
        assert second["next_cursor"] is None
    assert len(await deliveries(client, rule_id=made[0]["id"], status="pending")) == 1
    assert await deliveries(client, status="failed") == []


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"condition": {}}, "/condition", "validation"),
    ({"condition": {"level_at_least": "high", "breach_probability_over": 0.5}}, "/condition", "validation"),
    ({"condition": {"level_at_least": None}}, "/condition", "validation"),
    ({"condition": {"level_at_least": "normal"}}, "/condition/level_at_least", "validation"),
    ({"condition": {"runway_under_days": 0}}, "/condition/runway_under_days", "validation"),
    ({"condition": {"level_at_least": "high", "which": "expected"}}, "/condition", "validation"),
    ({"condition": {"breach_probability_over": 1}}, "/condition/breach_probability_over", "validation"),
    ({"condition": {"days_over": {"k": 3, "of": 2}}}, "/condition/days_over", "validation"),
    ({"condition": {"days_over": {"k": "3", "of": 7}}}, "/condition/days_over/k", "validation"),
    ({"condition": {"days_under": 3}}, "/condition/days_under", "unknown-field"),
    ({"where": {"colour": "red"}}, "/where/colour", "unknown-field"),
    ({"where": {"region": []}}, "/where/region", "validation"),
    ({"threshold": 0}, "/threshold", "validation"),
    ({"threshold": -80}, "/threshold", "validation"),
    ({"model": "oracle"}, "/model", "validation"),
    ({"name": "a\0b"}, "/name", "validation"),
    ({"name": ""}, "/name", "validation"),
    ({"secret": "whsec_short"}, "/secret", "validation"),
    ({"url": "http://10.0.0.1/"}, "/url", "webhook-address"),
    ({"url": "https://169.254.169.254/"}, "/url", "webhook-address"),
    ({"url": "https://2130706432/"}, "/url", "webhook-address"),
    ({"url": "ftp://1.1.1.1/"}, "/url", "webhook-address"),
]


async def test_what_is_no_rule_says_where(client: httpx.AsyncClient) -> None:
    right = {"name": "one", "condition": ANY, "url": "https://1.1.1.1/", "secret": CANARY}
    for wrong, pointer, slug in WRONG:
        refused = await client.post("/alerts/rules", json=right | wrong)
        problem = refused.json()
        assert (refused.status_code, problem["type"]) == (422, f"urn:headroom:problem:{slug}"), wrong
        assert problem["errors"][0]["pointer"] == pointer
        assert CANARY not in refused.text
    assert (await client.get("/alerts/rules")).json()["items"] == []


async def test_a_forecast_that_succeeds_is_told_of(api: FastAPI, client: httpx.AsyncClient, forecast: Forecast) -> None:
    with receiver() as there:
        rule = await ruled(client, there.url, {"level_at_least": "very_high"})
        await ruled(client, there.url, {"level_at_least": "very_high"}, metric="mem")
        await ruled(client, there.url, {"level_at_least": "very_high"}, enabled=False)
        await ruled(client, there.url, {"level_at_least": "very_high"}, threshold=120, where={"region": "east"})
        dataset = await uploaded(client, rows(LEVELS, "2022-09-01", 90))
        forecast_id = await forecast(dataset)
        assert await delivered(api) == 1
    (got,) = there.received
    assert verified(rule["secret"], got)
    event = json.loads(got.body)
    data = event["data"]
    assert (event["type"], data["rule"]["id"], data["forecast_id"]) == ("risk.alert", rule["id"], forecast_id)
    assert (data["dataset_id"], data["metric"], data["model"]) == (dataset, "cpu_p95", "seasonal_naive")
    assert (data["as_of"], data["truncated"]) == ("2022-11-29", False)
    assert data["counts"] == {"entered": 2, "still": 0, "left": 0}
    assert {server["server_id"] for server in data["entered"]} == {"web-3", "web-4"}
    assert (data["still"], data["left"]) == ([], [])
    # It says of each server what the risk answer says.
    told = (await client.get("/risk/servers", params={"forecast_id": forecast_id})).json()["items"]
    assert [server["server_id"] for server in data["entered"]] == [server["server_id"] for server in told[:2]]
    for server, answer in zip(data["entered"], told, strict=False):
        for name in ("level", "threshold", "runway_days"):
            assert server[name] == answer[name]
        for name in ("max_p90", "breach_probability"):
            assert server[name] == pytest.approx(answer[name], abs=1e-4)
        assert server["since"] == event["timestamp"]
    (shown,) = await deliveries(client)
    assert shown["id"] == got.headers["webhook-id"]
    assert (shown["status"], shown["attempts"], shown["last_status"]) == ("delivered", 1, 200)
    assert (shown["forecast_id"], shown["next_at"], shown["last_error"]) == (forecast_id, None, None)


async def test_later_forecasts_of_the_family_tell_what_changed(
    api: FastAPI, client: httpx.AsyncClient, forecast: Forecast
) -> None:
    with receiver() as there:
        await ruled(client, there.url)
        quiet = await ruled(client, there.url, only_changes=True)
        first = await uploaded(client, rows(LEVELS, "2022-09-01", 90))
        await forecast(first)
        await forecast(first)
        changed = {"web-1": 99.0, "web-3": 20.0, "web-4": 97.0}  # nothing new of web-2
        second = await uploaded(client, rows(changed, "2022-11-30", 30), f"/datasets/{first}/versions")
        await forecast(second)
        other = await uploaded(client, rows(LEVELS, "2022-09-01", 90))
        await forecast(other)
        await delivered(api)
    events = [json.loads(one.body) for one in there.received]
    events.sort(key=lambda event: event["timestamp"])
    told = [
        {name: sorted(server["server_id"] for server in event["data"][name]) for name in ("entered", "still", "left")}
        for event in events
        if event["data"]["rule"]["id"] != quiet["id"]
    ]
    both = ["web-3", "web-4"]
    assert told == [
        {"entered": both, "still": [], "left": []},
        {"entered": [], "still": both, "left": []},
        {"entered": ["web-1"], "still": ["web-4"], "left": ["web-3"]},
        {"entered": both, "still": [], "left": []},
    ]
    since = {server["server_id"]: server["since"] for server in events[0]["data"]["entered"]}
    third = next(event for event in events if event["data"]["counts"]["left"])
    assert {server["server_id"]: server["since"] for server in third["data"]["still"]} == {"web-4": since["web-4"]}
    assert len([event for event in events if event["data"]["rule"]["id"] == quiet["id"]]) == 3


async def test_forecasts_are_judged_once_and_in_order(
    api: FastAPI, client: httpx.AsyncClient, forecast: Forecast
) -> None:
    await ruled(client, "https://1.1.1.1/")
    dataset = await uploaded(client, rows(LEVELS, "2022-09-01", 90))
    asked = [await forecast(dataset, judge=False) for _ in range(3)]
    alerts = api.state.services.alerts
    while any(await asyncio.gather(*(alerts.evaluate() for _ in range(4)))):
        pass
    made = query(api.state.services.settings, "SELECT forecast_id, body FROM alert_deliveries ORDER BY created_at")
    assert [str(forecast_id) for forecast_id, _ in made] == asked
    counts = [json.loads(body)["data"]["counts"]["entered"] for _, body in made]
    assert counts == [2, 0, 0]


async def test_a_forecast_that_did_not_succeed_is_not_told_of(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    await ruled(client, "https://1.1.1.1/", {"breach_probability_over": 0.0})
    dataset = await uploaded(client, rows(LEVELS, "2022-09-01", 90))
    asked = {"dataset_id": dataset, "metric": "cpu_p95", "horizon": 14, "models": ["seasonal_naive"]}
    cancelled = (await client.post("/forecasts", json=asked)).json()["id"]
    await client.post(f"/forecasts/{cancelled}/cancel")
    failing = (await client.post("/forecasts", json=asked)).json()["id"]
    query(settings, "UPDATE runs SET attempt = 9 WHERE forecast_id = %s", failing)
    services = api.state.services
    for run in (await services.forecasts.get(UUID(failing))).runs:
        await services.runs.tick(run.id)
    statuses = [(await client.get(f"/forecasts/{one}")).json()["status"] for one in (cancelled, failing)]
    assert statuses == ["cancelled", "failed"]
    assert query(settings, "SELECT * FROM alert_evaluations") == []
    assert not await services.alerts.evaluate()
    assert await deliveries(client) == []


async def test_a_rule_that_cannot_be_judged_says_why(client: httpx.AsyncClient, forecast: Forecast) -> None:
    wrong = {
        "model": await ruled(client, "https://1.1.1.1/", model="prophet"),
        "quantile": await ruled(client, "https://1.1.1.1/", {"days_over": {"k": 1, "of": 1, "quantile": 0.95}}),
        "threshold": await ruled(client, "https://1.1.1.1/", metric="orders"),
    }
    right = await ruled(client, "https://1.1.1.1/")
    await forecast(await uploaded(client, rows(LEVELS, "2022-09-01", 90)))
    await forecast(await uploaded(client, rows(LEVELS, "2022-09-01", 90, "orders")), "orders")

    async def problem(rule: dict[str, Any]) -> Any:
        return (await client.get(f"/alerts/rules/{rule['id']}")).json()["problem"]

    assert "no run of model 'prophet'" in await problem(wrong["model"])
    assert "has no p95; it has p10, p50, p90" in await problem(wrong["quantile"])
    assert "4 servers had no threshold" in await problem(wrong["threshold"])
    assert [one["rule_id"] for one in await deliveries(client)] == [right["id"]]
    await forecast(await uploaded(client, rows(LEVELS, "2022-09-01", 90)))
    assert await problem(right) is None


async def test_many_servers_are_counted_and_some_are_named(
    api: FastAPI, client: httpx.AsyncClient, forecast: Forecast, settings: Settings
) -> None:
    await ruled(client, "https://1.1.1.1/")
    many = {f"server-{'x' * 100}-{number:04}": 95.0 for number in range(1_203)}
    await forecast(await uploaded(client, rows(many, "2022-09-01", 20)))
    ((body,),) = query(settings, "SELECT body FROM alert_deliveries")
    data = json.loads(body)["data"]
    assert len(body.encode()) <= 256 << 10
    assert data["counts"] == {"entered": 1_203, "still": 0, "left": 0}
    assert 0 < len(data["entered"]) <= service.LISTED
    assert data["truncated"]


async def due(settings: Settings) -> None:
    query(settings, "UPDATE alert_deliveries SET due_at = now()")


async def test_a_receiver_that_fails_is_tried_again_with_the_same_id(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    with receiver(500, 503, 200) as there:
        rule = await ruled(client, there.url, secret=CANARY)
        asked = await client.post(f"/alerts/rules/{rule['id']}/test")
        assert (asked.status_code, asked.json()["status"]) == (202, "pending")
        assert await delivered(api) == 1, "the next attempt is not due yet"
        (waiting,) = await deliveries(client)
        assert (waiting["status"], waiting["attempts"], waiting["last_status"]) == ("pending", 1, 500)
        assert waiting["last_error"] == "answered 500"
        assert waiting["next_at"] > waiting["created_at"]
        for _ in range(2):
            await due(settings)
            assert await delivered(api) == 1
    assert [one.headers["webhook-id"] for one in there.received] == [waiting["id"]] * 3
    assert len({one.body for one in there.received}) == 1
    assert all(verified(CANARY, one) for one in there.received)
    assert json.loads(there.received[0].body)["type"] == "risk.test"
    (shown,) = await deliveries(client)
    assert (shown["status"], shown["attempts"], shown["last_error"]) == ("delivered", 3, None)


async def test_after_the_last_attempt_a_delivery_has_failed(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    with receiver(302) as there:
        there.location = "http://169.254.169.254/"
        rule = await ruled(client, there.url)
        await client.post(f"/alerts/rules/{rule['id']}/test")
        waits = []
        for _ in range(len(service.BACK_OFF)):
            assert await delivered(api) == 1
            waits += query(
                settings,
                "SELECT extract(epoch FROM due_at - now())::float FROM alert_deliveries WHERE status = 'pending'",
            )
            await due(settings)
        assert await delivered(api) == 1
    for (wait,), planned in zip(waits, service.BACK_OFF, strict=True):
        assert 0.7 * planned - 3 < wait < 1.3 * planned
    (shown,) = await deliveries(client)
    assert (shown["status"], shown["attempts"], shown["last_status"]) == ("failed", 7, 302)
    assert shown["last_error"] == "answered 302, a redirect, which is not followed"
    assert len(there.received) == 7


async def test_gone_switches_the_rule_off(api: FastAPI, client: httpx.AsyncClient) -> None:
    with receiver(410) as there:
        rule = await ruled(client, there.url)
        for _ in range(2):
            await client.post(f"/alerts/rules/{rule['id']}/test")
        assert await delivered(api) == 1
    shown = (await client.get(f"/alerts/rules/{rule['id']}")).json()
    assert (shown["enabled"], shown["problem"]) == (False, "its receiver answered 410: it wants no more")
    assert {one["status"] for one in await deliveries(client)} == {"failed"}
    back = await client.patch(f"/alerts/rules/{rule['id']}", json={"enabled": True})
    assert (back.json()["enabled"], back.json()["problem"]) == (True, None)


async def test_what_is_private_by_now_is_not_sent_to(
    api: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    with receiver() as there:
        rule = await ruled(client, "https://1.1.1.1/")
        # As if the name of a receiver had moved inside since the rule was made.
        query(settings, "UPDATE alert_rules SET url = %s", f"https://127.0.0.2:{there.port}/")
        await client.post(f"/alerts/rules/{rule['id']}/test")
        assert await delivered(api) == 1
    assert there.received == []
    (shown,) = await deliveries(client)
    assert (shown["status"], shown["last_status"]) == ("pending", None)
    assert shown["last_error"] == "the host '127.0.0.2' is not at an address of the internet"


async def test_no_answer_and_no_log_has_the_secret(
    api: FastAPI, client: httpx.AsyncClient, forecast: Forecast, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(500) as there, caplog.at_level("DEBUG"):
        rule = await ruled(client, there.url, secret=CANARY)
        await forecast(await uploaded(client, rows(LEVELS, "2022-09-01", 90)))
        await client.post(f"/alerts/rules/{rule['id']}/test")
        await delivered(api)
        said = [
            (await client.get(path)).text
            for path in ("/alerts/rules", f"/alerts/rules/{rule['id']}", "/alerts/deliveries")
        ]
    assert len(there.received) == 2
    assert not any(CANARY in text or CANARY.removeprefix("whsec_") in text for text in said)
    assert CANARY.removeprefix("whsec_") not in caplog.text
    assert not any(CANARY.encode() in one.body for one in there.received)


async def test_rules_are_made_by_writers_and_seen_by_readers(api: FastAPI, client: httpx.AsyncClient) -> None:
    keys = {}
    for held in (Scope.READ, Scope.WRITE):
        _, secret = await api.state.services.keys.create(held.value, [held])
        keys[held] = {"Authorization": f"Bearer {secret}"}
    body = {"name": "one", "condition": ANY, "url": "https://1.1.1.1/"}
    assert (await client.post("/alerts/rules", json=body, headers=keys[Scope.READ])).status_code == 403
    assert (await client.post("/alerts/rules", json=body, headers=keys[Scope.WRITE])).status_code == 201
    assert (await client.get("/alerts/rules", headers=keys[Scope.READ])).status_code == 200
    assert (await client.get("/alerts/rules", headers=keys[Scope.WRITE])).status_code == 403


async def test_a_deleted_rule_sends_nothing_more(api: FastAPI, client: httpx.AsyncClient) -> None:
    with receiver() as there:
        rule = await ruled(client, there.url)
        await client.post(f"/alerts/rules/{rule['id']}/test")
        await client.delete(f"/alerts/rules/{rule['id']}")
        assert await delivered(api) == 0
    assert there.received == []
    assert await deliveries(client, rule_id=str(uuid4())) == []


async def test_what_ended_long_ago_is_forgotten(api: FastAPI, client: httpx.AsyncClient, settings: Settings) -> None:
    rule = await ruled(client, "https://1.1.1.1/")
    for status, days in [("delivered", 31), ("failed", 31), ("delivered", 29), ("pending", 31)]:
        query(
            settings,
            "INSERT INTO alert_deliveries (id, rule_id, body, status, finished_at, due_at)"
            " VALUES (gen_random_uuid(), %s, '', %s, now() - make_interval(days => %s), now() + '1 day')",
            rule["id"], status, days,
        )  # fmt: skip
    await api.state.services.alerts.forget()
    assert sorted(one["status"] for one in await deliveries(client)) == ["delivered", "pending"]

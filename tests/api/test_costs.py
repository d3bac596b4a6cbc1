"""GET /costs: what the ledger says, by forecast, model and day."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from app.domain.cost import Settled
from app.errors import CannotStart
from app.settings import Settings
from app.storage import ledger
from app.wiring import assemble


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, compute_processes=1, monthly_budget_usd=1.0)


async def spend(api: FastAPI, amount: int, forecast_id: UUID, reserved: int = 200_000) -> None:
    run = uuid4()
    async with api.state.services.database.begin() as connection:
        assert await ledger.reserve(
            connection,
            run_id=run,
            forecast_id=forecast_id,
            model="canvas",
            owner="",
            attempt=0,
            amount=reserved,
            monthly_budget=api.state.services.costs.terms.monthly_budget,
        )
        await ledger.settle(connection, run, 0, [Settled("automl", amount)])


async def test_costs_are_summed_and_held_against_the_budget(api: FastAPI, client: httpx.AsyncClient) -> None:
    first, second = uuid4(), uuid4()
    await spend(api, 131_452, first)
    await spend(api, 250_000, second)
    answer = (await client.get("/costs")).json()
    assert answer["items"] == [
        {
            "group": str(second),
            "reserved_usd": 0.2,
            "settled_usd": 0.25,
            "released_usd": 0.0,
            "overrun_usd": 0.05,
            "committed_usd": 0.25,
        },
        {
            "group": str(first),
            "reserved_usd": 0.2,
            "settled_usd": 0.131452,
            "released_usd": 0.068548,
            "overrun_usd": 0.0,
            "committed_usd": 0.131452,
        },
    ]
    assert answer["total"] == {
        "reserved_usd": 0.4,
        "settled_usd": 0.381452,
        "released_usd": 0.068548,
        "overrun_usd": 0.05,
        "committed_usd": 0.381452,
    }
    assert answer["month"] | {"start": None} == {
        "start": None,
        "committed_usd": 0.381452,
        "budget_usd": 1.0,
        "remaining_usd": 0.618548,
    }
    assert answer["month"]["start"].endswith("-01")
    assert (answer["by"], answer["currency"]) == ("forecast", "USD")
    assert answer["basis"].startswith("estimated")


async def test_costs_by_model_and_by_day(api: FastAPI, client: httpx.AsyncClient) -> None:
    await spend(api, 100_000, uuid4())
    (model,) = (await client.get("/costs", params={"by": "model"})).json()["items"]
    assert (model["group"], model["settled_usd"]) == ("canvas", 0.1)
    (day,) = (await client.get("/costs", params={"by": "day"})).json()["items"]
    booked = datetime.fromisoformat(day["group"]).replace(tzinfo=UTC)
    assert day["settled_usd"] == 0.1

    async def settled(start: datetime, end: datetime) -> float:
        bounds = {"start": str(start.date()), "end": str(end.date())}
        return float((await client.get("/costs", params=bounds)).json()["total"]["settled_usd"])

    one = timedelta(days=1)
    assert await settled(booked, booked) == 0.1
    assert await settled(booked - one, booked - one) == 0.0
    assert await settled(booked + one, booked + one) == 0.0


@pytest.mark.parametrize("path", ["/costs", f"/forecasts/{UUID(int=0)}/quantiles"])
async def test_a_span_that_ends_before_it_starts_is_refused(client: httpx.AsyncClient, path: str) -> None:
    for start, end in (("2023-01-02", "2023-01-01"), ("2023-01-01T12:00:00Z", "2023-01-01T13:00:00+02:00")):
        refused = await client.get(path, params={"start": start, "end": end})
        assert refused.status_code == 422
        assert [error["pointer"] for error in refused.json()["errors"]] == ["?start", "?end"]
    same_day = await client.get(path, params={"start": "2023-01-01T22:00:00Z", "end": "2023-01-01"})
    assert same_day.status_code == (200 if path == "/costs" else 404)


async def test_pages_of_costs_go_on_where_the_last_one_ended(api: FastAPI, client: httpx.AsyncClient) -> None:
    forecasts = [uuid4() for _ in range(5)]
    for forecast in forecasts:
        await spend(api, 1, forecast, reserved=1)
    seen, cursor = [], None
    while True:
        page = (await client.get("/costs", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        assert page["total"]["settled_usd"] == 0.000005
        seen += [item["group"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [str(forecast) for forecast in reversed(forecasts)]


async def test_nothing_spent_is_nothing(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/costs")).json()
    assert (answer["items"], answer["next_cursor"], answer["total"]["reserved_usd"]) == ([], None, 0.0)
    assert answer["month"]["remaining_usd"] == 1.0


@pytest.mark.parametrize(
    ("query", "slug", "status"),
    [
        ({"by": "colour"}, "validation", 422),
        ({"start": "2024-02-01", "end": "2024-01-31"}, "validation", 422),
        ({"start": "soon"}, "validation", 422),
        ({"from": "2024-01-01"}, "unknown-field", 422),
        ({"cursor": "x"}, "bad-cursor", 400),
    ],
)
async def test_what_costs_refuses(client: httpx.AsyncClient, query: dict[str, str], slug: str, status: int) -> None:
    answer = await client.get("/costs", params=query)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:headroom:problem:{slug}")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prices": {"ml.m5.large": 0.1}}, "HEADROOM_PRICES.*as_of"),
        ({"cost_assumptions": {"training_speed": 3}}, "HEADROOM_COST_ASSUMPTIONS.*training_speed"),
    ],
)
async def test_prices_that_cannot_be_used_keep_it_from_starting(
    settings: Settings, wrong: dict[str, object], says: str
) -> None:
    with pytest.raises(CannotStart, match=says):
        async with assemble(settings.model_copy(update=wrong)):
            pass


async def test_prices_and_assumptions_come_from_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = '{"ml.m5.large": 0.2, "ml.m5.xlarge": 0.4, "ml.m5.4xlarge": 1.6, "as_of": "2026-01-31"}'
    monkeypatch.setenv("HEADROOM_PRICES", prices)
    monkeypatch.setenv("HEADROOM_COST_ASSUMPTIONS", '{"training_instances": 6, "training_instance": "ml.m5.4xlarge"}')
    read = Settings(data_dir=settings.data_dir, database_url=settings.database_url, compute_processes=1)
    async with assemble(read) as services:
        terms = services.costs.terms
    assert terms.prices.price("ml.m5.large", 3_600) == 200_000
    assert (terms.assumed.training_instances, terms.assumed.training_instance) == (6, "ml.m5.4xlarge")


@pytest.mark.parametrize(
    ("paid_runs", "budget", "expected", "cap", "says"),
    [
        (True, 1.0, 150_000, 200_000, None),
        (True, 0.2, 200_000, 200_000, None),
        (False, 1.0, 150_000, 200_000, "HEADROOM_PAID_RUNS"),
        (True, 0.0, 150_000, 200_000, "HEADROOM_MONTHLY_BUDGET_USD"),
        (True, 1.0, 200_001, 200_000, r"\$0.200001; `max_cost_usd` allows \$0.20"),
        (True, 0.1, 50_000, 200_000, r"monthly budget of \$0.10"),
    ],
)
async def test_a_paid_run_may_start_only_on_these_terms(
    settings: Settings, paid_runs: bool, budget: float, expected: int, cap: int, says: str | None
) -> None:
    settings = settings.model_copy(update={"paid_runs": paid_runs, "monthly_budget_usd": budget})
    async with assemble(settings) as services:
        refusal = services.costs.terms.refusal(expected, cap)
    if says is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert re.search(says, refusal)

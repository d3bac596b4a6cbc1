"""What changed between two forecasts, over HTTP."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain import paths
from app.domain.dataset import Unit
from app.domain.panel import Frequency
from app.storage.results import SCORES, ResultMatrix
from tests.api.risk_world import World

BODY = dict[str, Any]
SERVERS = ("SRV-1", "SRV-2", "SRV-3", "SRV-4")


def ramps(
    breach: Sequence[int | None], *, behind: int = 0, horizon: int = 10, names: Sequence[str] = SERVERS
) -> ResultMatrix:
    """p90 is 70 before the breach, 85 on its day, 95 from the day after on; `behind` days before the end of 2022."""
    step = np.arange(1, horizon + 1)
    p90 = np.array([np.where(step < (b or 99), 70.0, np.where(step == (b or 99), 85.0, 95.0)) for b in breach])
    return ResultMatrix(
        server_ids=tuple(names),
        as_of=np.full(len(names), np.datetime64("2022-12-31T00:00:00", "s") - behind * np.timedelta64(1, "D")),
        frequency=Frequency.DAILY,
        levels=(0.1, 0.5, 0.9),
        values=(p90[..., None] + np.array([-20, -10, 0])).astype(np.float32),
        fallback=(None,) * len(names),
        scores={name: np.full(len(names), 0.8, np.float32) for name in SCORES},
    )


async def forecast(world: World, found: ResultMatrix, **more: Any) -> str:
    template = paths.autoregressive(found.values.shape[1], 0.9)
    dataset = more.pop("dataset", None) or await world.dataset(names=found.server_ids, **more.pop("attributes", {}))
    return str(await world.forecast(dataset, found=found, template=template, **more))


async def diff(client: httpx.AsyncClient, before: str, to: str, status: int = 200, /, **asked: Any) -> BODY:
    answer = await client.get("/risk/diff", params={"from": before, "to": to} | asked)
    assert answer.status_code == status, answer.text
    body: BODY = answer.json()
    return body


def moves(body: BODY) -> dict[str, Any]:
    return {item["server_id"]: item["moved_days"] and item["moved_days"]["total"] for item in body["items"]}


def by_id(body: BODY) -> dict[str, BODY]:
    return {item["server_id"]: item for item in body["items"]}


async def test_passing_of_time_moves_nothing(client: httpx.AsyncClient, world: World) -> None:
    """Four days later, each breach is four days nearer, and stands where it stood."""
    old = await forecast(world, ramps([5, 9, None, None], behind=4))
    new = await forecast(world, ramps([1, 5, None, 7]))
    body = await diff(client, old, new, threshold=80)
    assert moves(body) == {name: 0 for name in SERVERS}
    assert body["moved_days"] == {"total": 0, "threshold": 0, "model": 0, "data": 0}
    assert (body["compared"], body["moved"], body["model_part"]) == (4, 0, "same_model")
    assert body["servers"] == {"entered": 1, "left": 0, "at_risk": 2, "clear": 1, "added": 0, "removed": 0}
    assert (body["from"]["as_of"], body["to"]["as_of"]) == ("2022-12-27", "2022-12-31")
    found = by_id(body)
    assert found["SRV-1"]["from"]["breach"] == found["SRV-1"]["to"]["breach"] == "2023-01-01"
    assert (found["SRV-1"]["from"]["runway_days"], found["SRV-1"]["to"]["runway_days"]) == (5, 1)
    assert found["SRV-1"]["censored"] == {"from": False, "to": False}
    assert found["SRV-3"]["censored"] == {"from": True, "to": True}
    # Its breach on the 7th lies behind the 6th, the last day that the old forecast saw.
    assert (found["SRV-4"]["status"], found["SRV-4"]["newly_in_view"]) == ("entered", True)
    assert found["SRV-4"]["censored"] == {"from": True, "to": True}


async def test_who_moved_and_by_how_much(client: httpx.AsyncClient, world: World) -> None:
    old = await forecast(world, ramps([9, 6, None, 8], behind=2))
    new = await forecast(world, ramps([2, None, 4, 8]))
    body = await diff(client, old, new, threshold=80)
    assert list(moves(body).items()) == [("SRV-1", -5), ("SRV-3", -5), ("SRV-4", 2), ("SRV-2", 5)]
    found = by_id(body)
    assert [found[name]["status"] for name in SERVERS] == ["at_risk", "left", "entered", "at_risk"]
    # None within what both see, up to 8 January, counts as the 9th: the old breach of SRV-2 was on the 4th.
    assert found["SRV-2"]["censored"] == {"from": False, "to": True}
    assert body["moved_days"]["data"] == body["moved_days"]["total"] == -3
    assert list(moves(await diff(client, old, new, threshold=80, sort="server_id"))) == list(SERVERS)
    assert list(moves(await diff(client, old, new, threshold=80, sort="runway"))) == [
        "SRV-1",
        "SRV-3",
        "SRV-4",
        "SRV-2",
    ]
    some = await diff(client, old, new, threshold=80, status=["entered", "left"])
    assert list(moves(some)) == ["SRV-3", "SRV-2"]
    assert some["servers"] == body["servers"]
    assert list(moves(await diff(client, old, new, threshold=80, region="us"))) == ["SRV-4", "SRV-2"]


async def test_the_part_of_the_threshold(client: httpx.AsyncClient, world: World) -> None:
    old = await forecast(world, ramps([9, 6, None, 8]))
    new = await forecast(world, ramps([2, None, 4, 8]))
    body = await diff(client, old, new, from_threshold=80, to_threshold=90)
    parts = {name: item["moved_days"] for name, item in by_id(body).items()}
    assert parts["SRV-4"] == {"total": 1, "threshold": 1, "model": 0, "data": 0}
    assert parts["SRV-1"] == {"total": -6, "threshold": 1, "model": 0, "data": -7}
    assert parts["SRV-3"] == {"total": -6, "threshold": 0, "model": 0, "data": -6}
    assert (body["from"]["threshold"], body["to"]["threshold"]) == (80, 90)
    itself = await diff(client, old, old, from_threshold=80, to_threshold=90, group_threshold="region:us:80")
    assert moves(itself) == {"SRV-1": 1, "SRV-2": 0, "SRV-3": 0, "SRV-4": 0}


async def test_the_part_of_the_model(client: httpx.AsyncClient, world: World) -> None:
    dataset = await world.dataset(names=("SRV-1", "SRV-2"))
    low = {"SRV-1": 84.5, "SRV-2": 20.0}  # p90 of 89.5; the second model tells 1 more, over 90
    both = str(await world.forecast(dataset, ("auto", "prophet"), medians=low))
    same = await diff(client, both, both, from_model="auto", to_model="prophet")
    assert same["model_part"] == "in_from"
    assert by_id(same)["SRV-1"]["moved_days"] == {"total": -10, "threshold": 0, "model": -10, "data": 0}
    assert by_id(same)["SRV-1"]["status"] == "entered"

    alone = str(await world.forecast(dataset, ("prophet",), medians={"SRV-1": 60.0, "SRV-2": 95.0}))
    into = await diff(client, alone, both, to_model="auto")
    assert into["model_part"] == "in_to"
    assert by_id(into)["SRV-1"]["moved_days"] == {"total": 0, "threshold": 0, "model": 10, "data": -10}
    assert by_id(into)["SRV-2"]["moved_days"] == {"total": 10, "threshold": 0, "model": 0, "data": 10}

    other = str(await world.forecast(dataset, ("structural",), medians=low))
    blurred = await diff(client, alone, other)
    assert blurred["model_part"] == "not_separable"
    assert blurred["moved_days"]["model"] == 0
    assert blurred["moved_days"]["total"] == 10
    await diff(client, alone, other, 422, to_model="auto")


async def test_what_is_asked_of_both_forecasts_is_not_asked_of_one(client: httpx.AsyncClient, world: World) -> None:
    one = await forecast(world, ramps([9, 6, None, 8]))
    thresholds = await diff(client, one, one, 422, threshold=90, to_threshold=80)
    assert [error["pointer"] for error in thresholds["errors"]] == ["?threshold", "?to_threshold"]
    assert "Either `threshold`, for both forecasts, or `from_threshold` and `to_threshold`" in thresholds["detail"]
    models = await diff(client, one, one, 422, model="auto", from_model="auto", to_model="auto")
    assert [error["pointer"] for error in models["errors"]] == ["?model", "?from_model", "?to_model"]
    alone = await diff(client, one, one, from_threshold=80)
    assert (alone["from"]["threshold"], alone["to"]["threshold"]) == (80, 90)


async def test_servers_that_came_and_went_and_forecasts_without_a_date_in_common(
    client: httpx.AsyncClient, world: World
) -> None:
    old = await forecast(world, ramps([3, 3], names=("SRV-1", "SRV-2")))
    new = await forecast(world, ramps([3, 5], names=("SRV-2", "SRV-3")))
    body = await diff(client, old, new, threshold=80, sort="server_id")
    assert [(item["server_id"], item["status"]) for item in body["items"]] == [
        ("SRV-1", "removed"),
        ("SRV-2", "at_risk"),
        ("SRV-3", "added"),
    ]
    assert (body["items"][0]["to"], body["items"][2]["from"], body["items"][0]["moved_days"]) == (None, None, None)
    early = await forecast(world, ramps([3, 3], names=("SRV-1", "SRV-2"), behind=10))
    apart = await diff(client, early, old, threshold=80)
    assert apart["compared"] == 0
    assert moves(apart) == {"SRV-1": None, "SRV-2": None}
    assert apart["moved_days"]["total"] == 0
    none = await diff(client, old, await forecast(world, ramps([1], names=("SRV-9",))), threshold=80)
    assert none["servers"] == {"entered": 0, "left": 0, "at_risk": 0, "clear": 0, "added": 1, "removed": 2}


async def test_what_cannot_be_compared(client: httpx.AsyncClient, world: World) -> None:
    old = await forecast(world, ramps([3] * 4))
    for attributes, more, code in (
        ({"metric": "mem"}, {"metric": "mem"}, "other-metric"),
        ({"unit": Unit.ABSOLUTE, "capacity": 100.0}, {}, "other-unit"),
        ({"frequency": Frequency.HOURLY}, {}, "other-frequency"),
    ):
        frequency = attributes.get("frequency", Frequency.DAILY)
        other = await forecast(world, replace(ramps([3] * 4), frequency=frequency), attributes=attributes, **more)
        assert (await diff(client, old, other, 422))["errors"][0]["code"] == code
    await diff(client, old, "0" * 32, 404)
    await diff(client, old, "nonsense", 422)
    await diff(client, old, old, 422, forecast_id=old)
    assert (await client.get("/risk/diff", params={"from": old})).status_code == 422


async def test_pages_join(client: httpx.AsyncClient, world: World) -> None:
    old = await forecast(world, ramps([9, 6, None, 8]))
    new = await forecast(world, ramps([2, None, 4, 8]))
    seen, cursor = [], None
    while True:
        body = await diff(client, old, new, threshold=80, limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [item["server_id"] for item in body["items"]]
        if (cursor := body["next_cursor"]) is None:
            break
    assert seen == list(moves(await diff(client, old, new, threshold=80)))


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_parts_add_up_exactly(client: httpx.AsyncClient, world: World, data: st.DataObject) -> None:
    """Hourly, so that days are fractions; ends, horizons, thresholds and models as they come."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    names = [f"SRV-{n}" for n in range(6)]
    dataset = await world.dataset(names=names, frequency=Frequency.HOURLY)

    async def made(models: tuple[str, ...]) -> str:
        found = ramps([None] * 6, horizon=int(random.integers(2, 40)), names=names)
        values = np.sort(random.normal(70, 15, found.values.shape), axis=-1).clip(0, 99).astype(np.float32)
        as_of = found.as_of - random.integers(0, 30, 6) * np.timedelta64(1, "h")
        found = replace(found, frequency=Frequency.HOURLY, values=values, as_of=as_of)
        return await forecast(world, found, dataset=dataset, models=models)

    old, new = await made(("auto", "prophet")), await made(("prophet",))
    one, other = random.uniform(60, 99, 2).tolist()
    body = await diff(client, old, new, from_threshold=one, to_threshold=other)
    sums = dict.fromkeys(("total", "threshold", "model", "data"), 0.0)
    for item in body["items"]:
        parts = item["moved_days"]
        if parts is None:
            continue
        assert parts["threshold"] + parts["model"] + parts["data"] == parts["total"]
        for name in sums:
            sums[name] += parts[name]
        if item["censored"] == {"from": False, "to": False}:
            dates = [np.datetime64(item[side]["breach"][:-1]) for side in ("from", "to")]
            assert parts["total"] * 24 == pytest.approx((dates[1] - dates[0]) / np.timedelta64(1, "h"))
    assert sums == pytest.approx(body["moved_days"], abs=1e-9)
    whole = body["moved_days"]
    assert whole["threshold"] + whole["model"] + whole["data"] == whole["total"]

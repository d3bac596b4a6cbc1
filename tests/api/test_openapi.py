"""The API's own document: everything in it is described, and every example in it works as it says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_described(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"].strip()
    assert operation["tags"]
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), parameter["name"]
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        assert list(bodies(operation)), "a JSON body needs an example"
    assert any(status.startswith("2") for status in operation["responses"])
    for status, response in operation["responses"].items():
        assert response["description"]
        if int(status) >= 400:
            assert list(response["content"]) == ["application/problem+json"], status


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_a_schema_is_described(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema.get("description"), "what it is"
    undescribed = [
        field
        for field, one in schema.get("properties", {}).items()
        if not ({"description"} & (one.keys() | resolved(one)))
    ]
    assert undescribed == []


@dataclass(frozen=True)
class Request:
    """One example: what to send, and the statuses that it may bring."""

    method: str
    path: str
    statuses: frozenset[int]
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    media_type: str | None = None


def bodies(operation: dict[str, Any]) -> Iterator[tuple[str, Any, int | None]]:
    """(media type, example, status it must bring where that is not the operation's own) of the request body."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        for example in content.get("examples", {}).values():
            yield media_type, example["value"], example.get("x-status")
        if "example" in content:
            yield media_type, content["example"], None
        schema = resolved(content.get("schema", {}))
        for value in schema.get("examples", []):
            yield media_type, value, None
        if not schema.get("examples") and schema.get("properties"):
            each = {name: resolved(one).get("examples") for name, one in schema["properties"].items()}
            if all(each[name] for name in schema.get("required", [])):
                yield media_type, {name: values[0] for name, values in each.items() if values}, None


def examples(parameter: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in parameter.get("examples", {}).values()]
    one = [parameter["example"]] if "example" in parameter else []
    values = named + one + resolved(parameter.get("schema", {})).get("examples", [])
    return [value for value in values if value is not None]


def requests(name: str) -> Iterator[Request]:
    """The operation with its required parameters, once per body; and once with each further parameter's example."""
    operation = OPERATIONS[name]
    method, path = name.split(" ")
    fine = frozenset(int(status) for status in operation["responses"] if status.startswith("2"))
    parameters = [one for one in operation.get("parameters", []) if one["in"] in ("query", "header")]
    required = {one["name"]: examples(one)[0] for one in parameters if one.get("required")}
    sent = list(bodies(operation)) or [(None, None, None)]
    plain = [
        Request(method, path, frozenset({status}) if status else fine, required, {}, body, media_type)
        for media_type, body, status in sent
    ]
    yield from plain
    for one in parameters:
        for value in [] if one.get("required") else examples(one):
            if one["in"] == "query":
                yield replace(plain[0], query=required | {one["name"]: value})
            else:
                yield replace(plain[0], headers={one["name"]: str(value)})


class World:
    """A dataset with a finished forecast, made over HTTP, and fresh things for the requests that use one up."""

    def __init__(self, api: FastAPI, client: httpx.AsyncClient) -> None:
        self._api = api
        self._client = client
        self._base: dict[str, str] = {}

    async def ids(self, method: str, path: str) -> dict[str, str]:
        """The ids that a request may name."""
        if not self._base:
            dataset = await self.dataset()
            self._base = {"dataset_id": dataset, "forecast_id": await self.forecast(dataset), "server_id": "web-1"}
        match method, path:
            case "POST", "/forecasts/{forecast_id}/cancel":
                return self._base | {"forecast_id": await self.forecast(self._base["dataset_id"], run=False)}
            case "DELETE", "/forecasts/{forecast_id}":
                fresh = await self.forecast(self._base["dataset_id"], run=False)
                await self._client.post(f"/forecasts/{fresh}/cancel")
                return self._base | {"forecast_id": fresh}
            case "GET", "/risk/rollups":  # of the newest forecast, whose servers must have a capacity
                return self._base | {"forecast_id": await self.forecast(self._base["dataset_id"])}
            case "GET", "/risk/diff":
                return self._base | dict.fromkeys(("from", "to"), self._base["forecast_id"])
            case "DELETE", "/datasets/{dataset_id}":
                return self._base | {"dataset_id": await self.dataset()}
            case "POST", "/forecasts/{forecast_id}/runs/canvas/results":
                media_type, example, _ = next(bodies(OPERATIONS["POST /datasets"]))
                first = await self._client.request("POST", "/datasets", **sending(media_type, example))
                return self._base | {"forecast_id": await self.forecast(first.json()["id"], horizon=5)}
            case _, path if path.startswith("/alerts/rules"):
                # An address of the internet that needs no name resolved; nothing is sent, for no worker runs.
                reachable = {"url": "https://1.1.1.1/headroom"}
                rule = {"name": "one", "condition": {"level_at_least": "high"}, **reachable}
                made = await self._client.post("/alerts/rules", json=rule)
                return self._base | reachable | {"rule_id": made.json()["id"]}
            case "POST", "/datasets/{dataset_id}/versions":
                media_type, example, _ = next(bodies(OPERATIONS["POST /datasets"]))
                first = await self._client.request("POST", "/datasets", **sending(media_type, example))
                return self._base | {"dataset_id": first.json()["id"]}
        return self._base

    async def dataset(self) -> str:
        days = np.arange("2022-09-01", "2023-01-01", dtype="datetime64[D]")
        rows = [
            f"web-{server},{day},{30 + 5 * server + number % 7},north,8"
            for server in (1, 2, 3)
            for number, day in enumerate(days)
        ]
        made = await self._client.post(
            "/datasets",
            content="\n".join(["server_id,timestamp,cpu_p95,region,capacity", *rows]),
            headers={"Content-Type": "text/csv"},
        )
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def forecast(self, dataset: str, *, run: bool = True, horizon: int = 14) -> str:
        asked = {"dataset_id": dataset, "metric": "cpu_p95", "horizon": horizon, "models": ["seasonal_naive"]}
        made = await self._client.post("/forecasts", json=asked)
        assert made.status_code == 202, made.text
        forecast = made.json()["id"]
        if run:
            services = self._api.state.services
            for one in (await services.forecasts.get(UUID(forecast))).runs:
                await services.runs.tick(one.id)
            state = (await self._client.get(f"/forecasts/{forecast}")).json()
            assert state["status"] == "succeeded", state
        return str(forecast)


def sending(media_type: str | None, body: Any) -> dict[str, Any]:
    """What httpx is to send as this body."""
    match media_type, body:
        case None, _:
            return {}
        case "multipart/form-data", dict():
            return {
                "files": {"file": ("fleet.csv", body["file"], "text/csv")},
                "data": {name: value for name, value in body.items() if name != "file"},
            }
        case _, str():
            return {"content": body, "headers": {"Content-Type": media_type}}
    return {"json": body}


def with_ids(value: Any, ids: dict[str, str]) -> Any:
    """`value`, naming this test's own things in place of the document's."""
    match value:
        case dict():
            return {key: ids[key] if key in ids and one else with_ids(one, ids) for key, one in value.items()}
        case list():
            return [with_ids(one, ids) for one in value]
    return value


async def test_every_example_does_as_it_says(api: FastAPI, client: httpx.AsyncClient) -> None:
    world = World(api, client)
    wrong = []
    for request in (request for name in OPERATIONS for request in requests(name)):
        ids = await world.ids(request.method, request.path)
        sent = sending(request.media_type, with_ids(request.body, ids))
        sent["headers"] = sent.get("headers", {}) | request.headers
        answer = await client.request(
            request.method,
            re.sub(r"{(\w+)}", lambda part, ids=ids: ids[part[1]], request.path),
            params=with_ids(request.query, ids),
            **sent,
        )
        if answer.status_code not in request.statuses:
            wrong.append((request, answer.status_code, answer.text))
    assert wrong == []

"""The what-if panel of the risk page: the fields of a form as a scenario of the API, and its answer side by side.

A form holds one change of each kind, any of which may be left empty. What is wrong is told in the API's words, at the
field that it is about. It leaves out what a change does (services/scenarios.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from uuid import UUID

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api import problems, risk_scenarios
from app.api.pages import Paging
from app.api.risk_scenarios import ScenarioPage, ScenarioRequest
from app.api.wired import Services
from app.domain.panel import Frequency
from app.domain.risk import LEVELS
from app.errors import CapacityRequired, HeadroomError, Rejected
from app.services.risk import Group
from app.services.scenarios import Moved
from app.web import charts
from app.web.charts import Flow, Shift

KINDS = {"growth": ("percent", "from"), "threshold": ("value",), "capacity": ("factor", "add"), "retire": ()}
"""The changes in the order in which they act, and what each asks for beside its servers."""

FIELDS = tuple(f"{kind}_{name}" for kind, asked in KINDS.items() for name in (*asked, "where", "servers"))

LISTED = 10
"""Most servers shown of those that enter, of those that leave, and of the others that change."""

_POINTER = re.compile(r"/changes/(\d+)(?:/(.*))?")


@dataclass(frozen=True)
class Listed:
    """Some of the servers that moved in one way, each with the picture of how its runway did."""

    moved: Moved
    count: int
    servers: list[tuple[risk_scenarios.ScenarioItem, Shift]]


@dataclass(frozen=True)
class WhatIf:
    """The panel: its fields as they came, and either the two worlds or what is wrong with the question."""

    fields: Mapping[str, str]
    rest: list[tuple[str, str]]
    """The query of the page without them."""
    changes: list[str] = field(default_factory=list)
    """What was asked, in words."""
    found: ScenarioPage | None = None
    flow: Flow | None = None
    lists: list[Listed] = field(default_factory=list)
    problem: HeadroomError | None = None
    complaints: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return any(self.fields.values())

    @property
    def hidden(self) -> dict[str, str]:
        """For the other form of the page, so that another filter asks the same question."""
        return {name: value for name, value in self.fields.items() if value}


async def panel(
    request: Request,
    services: Services,
    forecast_id: UUID,
    model: str,
    threshold: float | None,
    horizon: int,
    frequency: Frequency,
) -> WhatIf:
    """Nothing is asked of the service where every field is empty. `horizon` is in steps."""
    fields = {name: request.query_params.get(name, "").strip() for name in FIELDS}
    rest = [pair for pair in request.query_params.multi_items() if pair[0] not in (*FIELDS, "cursor")]
    changes = _changes(fields)
    if not changes:
        return WhatIf(fields, rest)
    body = {"forecast_id": str(forecast_id), "model": model, "threshold": threshold, "changes": changes}
    try:
        asked = _asked(request, body)
        pages = {
            moved: await risk_scenarios.compare(services, asked, Paging(LISTED, None, ""), moved=moved)
            for moved in get_args(Moved)
        }
    except Rejected as error:
        complaints = _complaints(error, [change["kind"] for change in changes])
        return WhatIf(fields, rest, problem=error, complaints=complaints)
    found = pages["entered"]
    days = horizon / frequency.per_day
    counts = found.moved.model_dump()
    return WhatIf(
        fields,
        rest,
        [_said(change) for change in changes],
        found,
        charts.flow({(move.before, move.after): move.servers for move in found.moves}, LEVELS),
        [
            Listed(moved, counts[moved], [(item, _shift(item, days)) for item in page.items])
            for moved, page in pages.items()
        ],
    )


def _changes(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """A kind of which anything was filled in is a change; what it lacks is for the API to say."""
    changes = []
    for kind, asked in KINDS.items():
        given = {name: fields[f"{kind}_{name}"] for name in asked if fields[f"{kind}_{name}"]}
        where = _where(fields[f"{kind}_where"], fields[f"{kind}_servers"])
        if given or where:
            changes.append({"kind": kind, **given, **({"where": where} if where else {})})
    return changes


def _where(group: str, servers: str) -> dict[str, Any]:
    """`region=north` of the select; names of servers, one a line."""
    attribute, _, value = group.partition("=")
    names = [line.strip() for line in servers.splitlines() if line.strip()]
    return ({attribute: value} if attribute in get_args(Group) else {}) | ({"server_ids": names} if names else {})


def _said(change: Mapping[str, Any]) -> str:
    match change["kind"]:
        case "growth":
            said = f"{float(change['percent']):+g} %" + (f" from {change['from']}" if "from" in change else "")
        case "threshold":
            said = f"threshold {change['value']}"
        case "capacity":
            said = f"capacity × {change['factor']}" if "factor" in change else f"capacity + {change['add']}"
        case _:
            said = "retired"
    where = dict(change.get("where", {}))
    names = where.pop("server_ids", [])
    return " ".join([said, *map(str, where.values()), *([", ".join(names[:3])] if names else [])])


def _asked(request: Request, body: dict[str, Any]) -> ScenarioRequest:
    """Raises what the API would answer with."""
    try:
        return ScenarioRequest.model_validate(body)
    except ValidationError as error:
        failures = [failure | {"loc": ("body", *failure["loc"])} for failure in error.errors()]
        raise problems.refined(request, RequestValidationError(failures, body=body)) from None


def _complaints(error: Rejected, kinds: list[str]) -> dict[str, str]:
    """By the field that each is about; the first of a field."""
    found: dict[str, str] = {}
    for one in error.errors:
        if place := _POINTER.fullmatch(one.pointer):
            kind, rest = kinds[int(place[1])], place[2] or ""
            name = "servers" if rest.startswith("where/server_ids") else rest.split("/")[0]
            known = name if f"{kind}_{name}" in FIELDS else (*KINDS[kind], "where")[0]
            found.setdefault(f"{kind}_{known}", one.detail)
    if isinstance(error, CapacityRequired):
        found.setdefault("capacity_add", error.detail)
    return found


def _shift(item: risk_scenarios.ScenarioItem, horizon: float) -> Shift:
    after = None if item.scenario is None else item.scenario.runway_days.conservative
    return charts.shift(item.base.runway_days.conservative, after, horizon, retired=item.scenario is None)

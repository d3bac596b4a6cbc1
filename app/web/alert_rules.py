"""The page of alerts: the rules, a form to make one, and what became of what was sent.

It leaves out the changes themselves: the page's script asks the API for them.
"""

from datetime import datetime
from typing import Annotated, assert_never, get_args
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from app import forecasters
from app.api.auth import Reader
from app.api.pages import PagingParameters
from app.api.wired import Services
from app.domain import quantiles
from app.domain.alerts import Condition, DaysOver, LevelAtLeast, ProbabilityOver, Rule, RunwayUnder
from app.domain.keys import Scope
from app.errors import Complaint, ForecastNotReady, Invalid, NoResults, NotFound, ThresholdRequired
from app.services.fleets import Question
from app.storage.alerts import DeliveryStatus
from app.web.pages import OFFERED, groups_of
from app.web.render import LEVELS, PageRoute, days, page, percent

RULES = 200
"""Most rules on the page; the API lists all."""

STATUSES = {"pending": "On its way", "delivered": "Delivered", "failed": "Failed"}

router = APIRouter(include_in_schema=False, route_class=PageRoute, default_response_class=HTMLResponse)

Text = Annotated[str, Query()]


@router.get("/pages/alerts")
async def alerts(
    services: Services, caller: Reader, paging: PagingParameters, rule_id: Text = "", status: Text = ""
) -> HTMLResponse:
    """Every rule, and the deliveries, newest first, of all rules or of one."""
    rules = await services.alerts.rules(None, RULES + 1)
    after = paging.after(tuple[datetime, UUID])
    found = await services.alerts.deliveries(_id_of(rule_id), _status_of(status), after, paging.limit + 1)
    deliveries = paging.page(found, [(one.created_at, one.id) for one in found])
    datasets = await services.datasets.newest(None, OFFERED)
    recent = await services.forecasts.newest(None, None, OFFERED)
    return page(
        "alerts.html",
        caller=caller,
        may_write=Scope.WRITE in caller.scopes,
        rules=rules[:RULES],
        more_rules=len(rules) > RULES,
        said={rule.id: in_words(rule.condition) for rule in rules},
        whom={rule.id: _whom(rule) for rule in rules},
        names={rule.id: rule.name for rule in rules},
        deliveries=deliveries.items,
        next_cursor=deliveries.next_cursor,
        first_page=paging.cursor is None,
        forecasts={one.id: one for one in recent},
        chosen={"rule_id": rule_id, "status": status},
        groups=await _groups(services),
        metrics=sorted({metric for dataset in datasets for metric in dataset.contents.metrics}),
        models=[*sorted(forecasters.names(), key=lambda name: (name != "auto", name)), "canvas"],
        STATUSES=STATUSES,
    )


def in_words(condition: Condition) -> str:
    match condition:
        case LevelAtLeast(level):
            return f"the level is {LEVELS[level].lower()}" + (" or very high" if level == "high" else "")
        case RunwayUnder(count, which):
            return f"the runway is under {days(count)}, by {'p90' if which == 'conservative' else 'p50'}"
        case ProbabilityOver(probability):
            return f"the breach probability is over {percent(probability)}"
        case DaysOver(k, of, level):
            return f"{quantiles.name(level)} is over the threshold on {k} of {of} days"
        case _:
            assert_never(condition)


def _whom(rule: Rule) -> list[str]:
    """What the rule is about, part by part."""
    where = rule.where.to_json()
    said = [f"{name.replace('_', ' ')} {', '.join(values)}" for name, values in where.items()] or ["all servers"]
    if rule.metric is not None:
        said.append(f"metric {rule.metric}")
    if rule.threshold is not None:
        said.append(f"threshold {rule.threshold:g}")
    if rule.model is not None:
        said.append(f"model {rule.model}")
    return said


async def _groups(services: Services) -> dict[str, list[str]]:
    """Values to choose servers by, of the newest forecast; none as long as there is none that can be judged."""
    try:
        groups, _ = await groups_of(services, Question(None))
    except (NotFound, NoResults, ForecastNotReady, ThresholdRequired):
        return {}
    return groups


def _id_of(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise NotFound(f"There is no alert rule {text}.") from None


def _status_of(text: str) -> DeliveryStatus | None:
    for status in get_args(DeliveryStatus):
        if status == text:
            known: DeliveryStatus = status
            return known
    if text:
        detail = f"{text!r} is no status of a delivery; those are {', '.join(get_args(DeliveryStatus))}."
        raise Invalid(detail, errors=[Complaint("?status", "literal_error", detail)])
    return None

"""The risk answer over HTTP: which server runs out of room, when, and how sure that is (formulas: docs/risk.md).

Totals of groups stand beside it (risk_rollups.py), and what the routes have in common (risk_models.py).
"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from app.api.auth import scope
from app.api.pages import PagingParameters
from app.api.problems import problems
from app.api.risk_models import (
    RESPONSES,
    SORT,
    ForecastId,
    GroupCounts,
    GroupThresholds,
    LeadTime,
    Level,
    LevelCounts,
    Metric,
    MetricRisk,
    Model,
    RiskPage,
    ServerAnswer,
    ServerId,
    SummaryPage,
    Threshold,
    Values,
    counts,
    group_thresholds,
    items,
)
from app.api.wired import Services
from app.errors import NotFound
from app.services.fleets import Limits, Question
from app.services.risk import Filters, Group, Sort

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])


@router.get("/servers", summary="Servers at risk", responses=RESPONSES)
async def list_servers(
    services: Services,
    paging: PagingParameters,
    forecast_id: ForecastId = None,
    metric: Metric = None,
    model: Model = None,
    threshold: Threshold = None,
    group_threshold: GroupThresholds = [],  # noqa: B006
    lead_time_days: LeadTime = None,
    level: Annotated[
        list[Level], Query(description="Only servers at one of these levels.", examples=[["very_high", "high"]])
    ] = [],  # noqa: B006
    business_unit: Values = [],  # noqa: B006
    region: Values = [],  # noqa: B006
    criticality: Values = [],  # noqa: B006
    sort: Annotated[Sort, SORT] = "runway",
) -> RiskPage:
    """Each server of a forecast against its threshold: runway, breach probability, peaks.

    A breach is value > threshold.
    """
    found = await services.risk.servers(
        Question(forecast_id, metric, model, threshold, group_thresholds(group_threshold), lead_time_days),
        Filters(tuple(level), tuple(business_unit), tuple(region), tuple(criticality)),
        sort,
        paging.after(tuple[UUID, str]),
        paging.limit + 1,
    )
    positions = [(found.forecast_id, server.server_id) for server in found.servers]
    page = paging.page(items(found.servers), positions)
    return RiskPage.model_validate(
        {
            "forecast_id": found.forecast_id,
            "metric": found.metric,
            "threshold": found.threshold,
            "as_of": found.frequency.show(found.as_of),
            "items": page.items,
            "next_cursor": page.next_cursor,
        }
    )


@router.get("/servers/{server_id:path}", summary="One server over all metrics", responses=problems(NotFound))
async def show_server(
    services: Services,
    server_id: ServerId,
    threshold: Threshold = None,
    group_threshold: GroupThresholds = [],  # noqa: B006
    lead_time_days: LeadTime = None,
) -> ServerAnswer:
    """The newest succeeded forecast of each metric that holds the server, and which metric runs out first."""
    answers, without = await services.risk.server(
        server_id, Limits(threshold, group_thresholds(group_threshold)), lead_time_days
    )
    found = sorted(
        (
            MetricRisk(forecast_id=answer.forecast_id, metric=answer.metric, **fields)
            for answer, fields in zip(answers, items(answers), strict=True)
        ),
        key=lambda item: (_or_never(item.runway_days.conservative), -item.breach_probability, item.metric),
    )
    runs_out = bool(found) and found[0].runway_days.conservative is not None
    return ServerAnswer(
        server_id=server_id,
        bottleneck=found[0].metric if runs_out else None,
        items=found,
        without_threshold=without,
    )


@router.get("/summary", summary="Servers at each level, by group", responses=RESPONSES)
async def summarise(
    services: Services,
    paging: PagingParameters,
    by: Annotated[Group, Query(description="The attribute that makes the groups.", examples=["region"])],
    forecast_id: ForecastId = None,
    metric: Metric = None,
    model: Model = None,
    threshold: Threshold = None,
    group_threshold: GroupThresholds = [],  # noqa: B006
) -> SummaryPage:
    """How many servers of a forecast are at each level, in all and by business unit, region or criticality."""
    after = paging.after(tuple[UUID, int])
    if after is not None:
        forecast_id = after[0]
    found = await services.risk.summary(
        Question(forecast_id, metric, model, threshold, group_thresholds(group_threshold)), by
    )
    start = after[1] if after else 0
    groups = found.groups[start : start + paging.limit + 1]
    page = paging.page(
        [GroupCounts(group=group.group, **counts(group)) for group in groups],
        [(found.forecast_id, start + place) for place in range(1, len(groups) + 1)],
    )
    return SummaryPage(
        forecast_id=found.forecast_id,
        metric=found.metric,
        threshold=found.threshold,
        as_of=found.frequency.show(found.as_of),
        by=by,
        total=LevelCounts(**counts(found.total)),
        items=page.items,
        next_cursor=page.next_cursor,
    )


def _or_never(days: float | None) -> float:
    return float("inf") if days is None else days

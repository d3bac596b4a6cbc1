"""Totals of groups of servers over HTTP (formulas: docs/risk.md)."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.risk_models import (
    AS_OF,
    FORECAST,
    METRIC,
    FirstBreach,
    ForecastId,
    GroupThresholds,
    Metric,
    Model,
    Runway,
    Threshold,
    days,
    group_thresholds,
    rounded,
    time,
)
from app.api.wired import Services
from app.domain.dataset import Unit
from app.domain.panel import Frequency
from app.errors import BadCursor, CapacityRequired, ForecastNotReady, NoResults, NotFound
from app.services.fleets import Question
from app.services.rollups import Rollup, Sort

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])


class TotalQuantiles(BaseModel):
    """Quantiles of a total."""

    p10: float = Field(description="The 10 % quantile.", examples=[41.2])
    p50: float = Field(description="The median.", examples=[47.9])
    p90: float = Field(description="The 90 % quantile.", examples=[55.0])


class TotalStep(TotalQuantiles):
    """Quantiles of a group's total on one date."""

    timestamp: str = Field(description="The date; a time in UTC for hourly data.", examples=["2023-01-01"])


class GroupTotal(BaseModel):
    """What a group of servers needs together. Without a limit to measure it against, what needs one is null."""

    group: str | None = Field(description="Value of the attribute; null for servers without one.", examples=["eu-west"])
    servers: int = Field(description="Servers that count.", examples=[40])
    left_out: list[str] = Field(
        description="Servers that do not: their history ended too long before `as_of`.", examples=[[]]
    )
    capacity: float | None = Field(
        description="Sum of the servers' attribute `capacity`; null unless each has one.", examples=[320.0]
    )
    threshold: float | None = Field(
        description="The limit of the total: of an absolute metric the one asked for, else the capacity; of others the"
        " mean of the servers' thresholds, weighted by capacity.",
        examples=[90.0],
    )
    max_p90: float = Field(description="The highest p90 of the total.", examples=[81.5])
    sum_of_p90: float = Field(
        description="The highest sum of the servers' own p90 (weighted alike): the p90 if all ran hot at once.",
        examples=[88.0],
    )
    peak: TotalQuantiles = Field(description="Quantiles of the highest total of the whole time.")
    headroom_pct: float | None = Field(
        description="Room between `max_p90` and the threshold, 0 when there is none: in percentage points; for an"
        " absolute metric in percent of the threshold.",
        examples=[8.5],
    )
    breach_probability: float | None = Field(
        description="P(the total passes the threshold on some date), from joint paths.", examples=[0.02]
    )
    runway_days: Runway | None = Field(description="Days left before the total's quantiles pass the threshold.")
    first_breach: FirstBreach | None = Field(description="Dates by which the total has passed the threshold.")
    until: str = Field(description="The last date at which all servers that count have a forecast.")
    steps: list[TotalStep] = Field(description="Each date; empty unless asked for with `steps=true`.")


class RollupPage(Page[GroupTotal]):
    """Totals by group."""

    forecast_id: UUID = FORECAST
    metric: str = METRIC
    model: str = Field(description="Whose forecast it is.", examples=["auto"])
    unit: Unit = Field(
        description="Of the totals: an absolute metric is added up; others are means weighted by capacity."
    )
    as_of: str = AS_OF
    by: str = Field(description="The attribute that makes the groups.", examples=["region"])
    ended: list[str | None] = Field(
        description="Groups of which no server counts: all their histories ended too long before `as_of`.",
        examples=[[]],
    )
    correlation: float = Field(
        description="Of two servers' surprises on one date, out of the back-tests; 0.3 where they tell none.",
        examples=[0.45],
    )


@router.get(
    "/rollups",
    summary="Totals of groups of servers",
    responses=problems(BadCursor, NotFound, ForecastNotReady, NoResults, CapacityRequired),
)
async def roll_up(
    services: Services,
    paging: PagingParameters,
    by: Annotated[
        str,
        Query(
            max_length=200, description="The attribute that makes the groups: any of the dataset.", examples=["region"]
        ),
    ],
    forecast_id: ForecastId = None,
    metric: Metric = None,
    model: Model = None,
    threshold: Threshold = None,
    group_threshold: GroupThresholds = [],  # noqa: B006
    group: Annotated[list[str], Query(description="Only these groups.", examples=[["north"]])] = [],  # noqa: B006
    steps: Annotated[bool, Query(description="Whether to give the quantiles of each date.", examples=[True])] = False,
    sort: Annotated[
        Sort,
        Query(
            description="`runway`: the shortest conservative one first; `breach_probability`: the highest first;"
            " `group`: by name.",
            examples=["breach_probability"],
        ),
    ] = "group",
) -> RollupPage:
    """What each group needs together: a p90 of a sum, which is less than the sum of the p90s, and its first passage.

    An absolute metric is added up and measured against the sum of the servers' `capacity`. Percentages and ratios are
    means weighted by `capacity`; where a server has none, 422 `capacity-required`.
    """
    after = paging.after(tuple[UUID, int])
    if after is not None:
        forecast_id = after[0]
    found = await services.rollups.rollups(
        Question(forecast_id, metric, model, threshold, group_thresholds(group_threshold)), by, sort, group
    )
    start = after[1] if after else 0
    groups = found.groups[start : start + paging.limit + 1]
    page = paging.page(
        [_shown(rollup, found.frequency, steps) for rollup in groups],
        [(found.forecast_id, start + place) for place in range(1, len(groups) + 1)],
    )
    return RollupPage(
        forecast_id=found.forecast_id,
        metric=found.metric,
        model=found.model,
        unit=found.unit,
        as_of=found.frequency.show(found.as_of),
        by=by,
        ended=list(found.ended),
        correlation=rounded(found.between),
        items=page.items,
        next_cursor=page.next_cursor,
    )


def _shown(rollup: Rollup, frequency: Frequency, steps: bool) -> GroupTotal:
    passing = rollup.passing
    dates = zip(rollup.times, rollup.quantiles.tolist(), strict=True) if steps else ()
    return GroupTotal(
        group=rollup.group,
        servers=rollup.servers,
        left_out=list(rollup.left_out),
        capacity=rollup.capacity,
        threshold=passing and passing.limit,
        max_p90=rounded(rollup.quantiles[:, -1].max()),
        sum_of_p90=rounded(rollup.summed_p90),
        peak=_quantiles(rollup.peak.tolist()),
        headroom_pct=passing and rounded(passing.headroom_pct),
        breach_probability=passing and rounded(passing.probability),
        runway_days=passing
        and Runway(
            conservative=days(passing.runway_conservative, frequency), expected=days(passing.runway_expected, frequency)
        ),
        first_breach=passing
        and FirstBreach(p10=time(passing.first_p10, frequency), p50=time(passing.first_p50, frequency)),
        until=frequency.show(rollup.times[-1]),
        steps=[TotalStep(timestamp=frequency.show(at), **_quantiles(row).model_dump()) for at, row in dates],
    )


def _quantiles(row: list[float]) -> TotalQuantiles:
    p10, p50, p90 = map(rounded, row)
    return TotalQuantiles(p10=p10, p50=p50, p90=p90)

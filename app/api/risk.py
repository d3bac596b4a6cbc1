"""The risk answer over HTTP: which server runs out of room, when, and how sure that is (formulas: docs/risk.md)."""

from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.wired import Services
from app.domain.panel import Frequency
from app.domain.risk import Peak
from app.errors import BadCursor, ForecastNotReady, NoResults, NotFound, ThresholdRequired
from app.services.risk import Filters, Group, GroupCount, Question, ServerRisk, Sort

Level = Literal["very_high", "high", "normal", "underutilized"]
_AS_OF = Field(
    description="Time of the last row that the forecast knows: a date for daily data, else UTC.",
    examples=["2022-12-31"],
)
_FORECAST = Field(description="The forecast that is judged.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
_SERVER = Field(description="The server.", examples=["SRV-0001"])
_METRIC = Field(description="What is forecast.", examples=["cpu_p95"])


class Runway(BaseModel):
    """Days from `as_of` to the breach; the first daily step is 1, hours are fractions. Null: not in the horizon."""

    conservative: int | float | None = Field(
        description="To the first step whose p90 is over the threshold.", examples=[12]
    )
    expected: int | float | None = Field(
        description="To the first step whose p50 is over the threshold.", examples=[40]
    )


class FirstBreach(BaseModel):
    """When the first breach has happened with this probability, from joint paths; null when it never gets there."""

    p10: str | None = Field(description="With 10 %.", examples=["2023-01-10"])
    p50: str | None = Field(description="With 50 %.", examples=["2023-02-09"])


class PeakWindow(BaseModel):
    """Days on which the forecast stands out over its surroundings."""

    start: str = Field(description="First day.", examples=["2023-03-25"])
    end: str = Field(description="Last day.", examples=["2023-03-31"])
    cause: Literal["end_of_quarter", "holiday", "weekday"] = Field(description="What the calendar says about them.")
    uplift_pct: float = Field(description="Mean p50 over the surrounding level, in percent above it.", examples=[18.0])


class RiskItem(BaseModel):
    """One server and one metric."""

    server_id: str = _SERVER
    model: str = Field(description="Whose forecast it is.", examples=["auto"])
    threshold: float = Field(
        description="What a value must be over to be a breach, in the metric's unit.", examples=[90.0]
    )
    as_of: str = _AS_OF
    level: Level = Field(
        description="`very_high` and `high` by the highest p90, `underutilized` by the mean p50: three settings."
    )
    risk_high: bool = Field(description="Whether some p90 is over the threshold.", examples=[True])
    max_p90: float = Field(description="The highest p90 of the horizon.", examples=[96.1])
    mean_p50: float = Field(description="The mean p50 of the horizon.", examples=[61.0])
    breach_probability: float = Field(
        description="P(some step of the horizon breaches), from joint sample paths.", examples=[0.83]
    )
    expected_breach_days: float = Field(description="Sum over the steps of P(breach), in days.", examples=[4.2])
    runway_days: Runway = Field(description="Days left before the threshold is passed.")
    first_breach: FirstBreach = Field(description="Dates by which the first breach has happened.")
    headroom_pct: float = Field(
        description="Room between the highest p90 and the threshold, 0 when there is none: in percentage points; for an"
        " absolute metric in percent of the threshold.",
        examples=[0.0],
    )
    severity: float | None = Field(
        description="Mean excess over the threshold of a step that breaches, in the metric's unit; null when none can.",
        examples=[3.4],
    )
    peaks: list[PeakWindow] = Field(description="Where the forecast stands out, in order of time.")
    fallback: bool = Field(description="Whether another model stood in for this server.", examples=[False])
    coverage: float | None = Field(
        description="Share of back-tested values of this server that fell within p10 to p90 (of the run, where the"
        " server has none); 0.8 is nominal.",
        examples=[0.79],
    )
    history_days: int = Field(description="Days from the server's first row to its last.", examples=[1096])
    quality: list[str] = Field(
        description="What makes the answer less sure: `short_history`, `gaps`, `constant`, `stale`, `level_shift`.",
        examples=[[]],
    )
    level_shift_at: str | None = Field(
        description="When the server's level shifted, if it did lately; null otherwise.", examples=["2022-11-03"]
    )
    attributes: dict[str, str | float] = Field(
        description="The server's own, from the dataset.", examples=[{"region": "eu-west"}]
    )


class RiskPage(Page[RiskItem]):
    """Servers of one forecast, the most urgent first unless sorted otherwise."""

    forecast_id: UUID = _FORECAST
    metric: str = _METRIC
    threshold: float | None = Field(
        description="The threshold of all servers; null where they have different ones: see the items.", examples=[90.0]
    )
    as_of: str = _AS_OF


class MetricRisk(RiskItem):
    """One metric of a server, in the newest forecast of that metric that succeeded."""

    forecast_id: UUID = _FORECAST
    metric: str = _METRIC


class ServerAnswer(BaseModel):
    """A server over all metrics that were forecast."""

    server_id: str = _SERVER
    bottleneck: str | None = Field(
        description="The metric with the shortest conservative runway; null when none runs out.", examples=["cpu_p95"]
    )
    items: list[MetricRisk] = Field(description="The shortest runway first.")
    without_threshold: list[str] = Field(
        description="Metrics that are forecast but have no threshold to be judged against.", examples=[[]]
    )


class LevelCounts(BaseModel):
    """Servers of a group, by level."""

    servers: int = Field(description="All of them.", examples=[40])
    risk_high: int = Field(description="Those of which some p90 is over the threshold.", examples=[5])
    very_high: int = Field(description="Those whose level is `very_high`.", examples=[4])
    high: int = Field(description="Those whose level is `high`.", examples=[6])
    normal: int = Field(description="Those whose level is `normal`.", examples=[22])
    underutilized: int = Field(description="Those whose level is `underutilized`.", examples=[8])


class GroupCounts(LevelCounts):
    """One group."""

    group: str | None = Field(description="Value of the attribute; null for servers without one.", examples=["eu-west"])


class SummaryPage(Page[GroupCounts]):
    """How many servers are at each level, by group."""

    forecast_id: UUID = _FORECAST
    metric: str = _METRIC
    threshold: float | None = Field(
        description="The threshold of all servers; null where they differ.", examples=[90.0]
    )
    as_of: str = _AS_OF
    by: Group = Field(description="The attribute that makes the groups.")
    total: LevelCounts = Field(description="All servers.")


ForecastId = Annotated[
    UUID | None, Query(description="The forecast; by default the newest that succeeded (of `metric`, if given).")
]
ServerId = Annotated[str, Path(description="The server, as its datasets name it.", examples=["SRV-0001"])]
Metric = Annotated[
    str | None, Query(description="Picks among metrics when no forecast is named.", examples=["cpu_p95"])
]
Model = Annotated[str | None, Query(description="Whose run; by default the forecast's best model.")]
Threshold = Annotated[
    float | None,
    Query(
        allow_inf_nan=False,
        description="In the metric's unit, for all servers. By default each server's own attribute `threshold` (for an"
        " absolute metric also `capacity`), else 90 for percent and 0.9 for ratios.",
        examples=[80],
    ),
]
Values = Annotated[list[str], Query(description="Only servers with one of these values.", examples=[["north"]])]

_RESPONSES = problems(BadCursor, NotFound, ForecastNotReady, NoResults, ThresholdRequired)

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])


@router.get("/servers", summary="Servers at risk", responses=_RESPONSES)
async def list_servers(
    services: Services,
    paging: PagingParameters,
    forecast_id: ForecastId = None,
    metric: Metric = None,
    model: Model = None,
    threshold: Threshold = None,
    level: Annotated[
        list[Level], Query(description="Only servers at one of these levels.", examples=[["very_high", "high"]])
    ] = [],  # noqa: B006
    business_unit: Values = [],  # noqa: B006
    region: Values = [],  # noqa: B006
    criticality: Values = [],  # noqa: B006
    sort: Annotated[
        Sort,
        Query(
            description="`runway`: the shortest conservative one first, those without one by breach probability;"
            " `breach_probability` and `max_p90`: the highest first; `server_id`: ascending.",
            examples=["breach_probability"],
        ),
    ] = "runway",
) -> RiskPage:
    """Each server of a forecast against its threshold: runway, breach probability, peaks.

    A breach is value > threshold.
    """
    found = await services.risk.servers(
        Question(forecast_id, metric, model, threshold),
        Filters(tuple(level), tuple(business_unit), tuple(region), tuple(criticality)),
        sort,
        paging.after(tuple[UUID, str]),
        paging.limit + 1,
    )
    positions = [(found.forecast_id, server.server_id) for server in found.servers]
    page = paging.page([RiskItem(**_item(server)) for server in found.servers], positions)
    return RiskPage(
        forecast_id=found.forecast_id,
        metric=found.metric,
        threshold=found.threshold,
        as_of=found.frequency.show(found.as_of),
        items=page.items,
        next_cursor=page.next_cursor,
    )


@router.get("/servers/{server_id:path}", summary="One server over all metrics", responses=problems(NotFound))
async def show_server(services: Services, server_id: ServerId, threshold: Threshold = None) -> ServerAnswer:
    """The newest succeeded forecast of each metric that holds the server, and which metric runs out first."""
    answers, without = await services.risk.server(server_id, threshold)
    items = sorted(
        (MetricRisk(forecast_id=a.forecast_id, metric=a.metric, **_item(a)) for a in answers),
        key=lambda item: (_or_never(item.runway_days.conservative), -item.breach_probability, item.metric),
    )
    runs_out = bool(items) and items[0].runway_days.conservative is not None
    return ServerAnswer(
        server_id=server_id,
        bottleneck=items[0].metric if runs_out else None,
        items=items,
        without_threshold=without,
    )


@router.get("/summary", summary="Servers at each level, by group", responses=_RESPONSES)
async def summarise(
    services: Services,
    paging: PagingParameters,
    by: Annotated[Group, Query(description="The attribute that makes the groups.", examples=["region"])],
    forecast_id: ForecastId = None,
    metric: Metric = None,
    model: Model = None,
    threshold: Threshold = None,
) -> SummaryPage:
    """How many servers of a forecast are at each level, in all and by business unit, region or criticality."""
    after = paging.after(tuple[UUID, int])
    if after is not None:
        forecast_id = after[0]
    found = await services.risk.summary(Question(forecast_id, metric, model, threshold), by)
    start = after[1] if after else 0
    groups = found.groups[start : start + paging.limit + 1]
    page = paging.page(
        [GroupCounts(group=group.group, **_counts(group)) for group in groups],
        [(found.forecast_id, start + place) for place in range(1, len(groups) + 1)],
    )
    return SummaryPage(
        forecast_id=found.forecast_id,
        metric=found.metric,
        threshold=found.threshold,
        as_of=found.frequency.show(found.as_of),
        by=by,
        total=LevelCounts(**_counts(found.total)),
        items=page.items,
        next_cursor=page.next_cursor,
    )


def _item(server: ServerRisk) -> dict[str, Any]:
    frequency = server.frequency
    return {
        "server_id": server.server_id,
        "model": server.model,
        "threshold": server.threshold,
        "as_of": frequency.show(server.as_of),
        "level": server.level,
        "risk_high": server.risk_high,
        "max_p90": _rounded(server.max_p90),
        "mean_p50": _rounded(server.mean_p50),
        "breach_probability": _rounded(server.breach_probability),
        "expected_breach_days": _rounded(server.expected_breach_days),
        "runway_days": Runway(
            conservative=_days(server.runway_conservative, frequency),
            expected=_days(server.runway_expected, frequency),
        ),
        "first_breach": FirstBreach(
            p10=_time(server.first_breach_p10, frequency), p50=_time(server.first_breach_p50, frequency)
        ),
        "headroom_pct": _rounded(server.headroom_pct),
        "severity": None if server.severity is None else _rounded(server.severity),
        "peaks": [_peak(peak) for peak in server.peaks],
        "fallback": server.fallback,
        "coverage": None if server.coverage is None else _rounded(server.coverage),
        "history_days": server.history_days,
        "quality": list(server.quality),
        "level_shift_at": _time(server.level_shift, frequency),
        "attributes": server.attributes,
    }


def _peak(peak: Peak) -> PeakWindow:
    return PeakWindow.model_validate(
        {"start": str(peak.start), "end": str(peak.end), "cause": peak.cause, "uplift_pct": round(peak.uplift_pct, 1)}
    )


def _counts(count: GroupCount) -> dict[str, int]:
    return {"servers": count.servers, "risk_high": count.risk_high, **count.levels}


def _days(runway: float | None, frequency: Frequency) -> int | float | None:
    """Whole days of daily data are whole numbers."""
    if runway is None:
        return None
    return int(runway) if frequency is Frequency.DAILY else runway


def _or_never(days: float | None) -> float:
    return float("inf") if days is None else days


def _time(time: np.datetime64 | None, frequency: Frequency) -> str | None:
    return None if time is None else frequency.show(time)


def _rounded(value: float) -> float:
    """As few digits as tell it from its neighbours in single precision, in which quantiles are stored and shown."""
    return float(str(np.float32(value)))

"""What the routes of the risk answer have in common: how a server's answer is written, and what may be asked.

It leaves out the routes (risk.py and those beside it) and the meaning of the figures (docs/risk.md).
"""

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, Field

from app.api.pages import Page
from app.api.problems import problems
from app.domain.dataset import spellings
from app.domain.panel import Frequency
from app.domain.risk import Peak, can_be_threshold
from app.errors import BadCursor, Complaint, ForecastNotReady, Invalid, NoResults, NotFound, ThresholdRequired
from app.services.fleets import GroupThreshold, check_threshold, no_threshold
from app.services.risk import Group, GroupCount, ServerRisk

Level = Literal["very_high", "high", "normal", "underutilized"]
AS_OF = Field(
    description="Time of the last row that the forecast knows: a date for daily data, else UTC.",
    examples=["2022-12-31"],
)
FORECAST = Field(description="The forecast that is judged.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
SERVER = Field(description="The server.", examples=["SRV-0001"])
METRIC = Field(description="What is forecast.", examples=["cpu_p95"])


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

    server_id: str = SERVER
    model: str = Field(description="Whose forecast it is.", examples=["auto"])
    threshold: float = Field(
        description="What a value must be over to be a breach, in the metric's unit.", examples=[90.0]
    )
    as_of: str = AS_OF
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
    usable_headroom_pct: float = Field(
        description="What is left of `headroom_pct` after the buffer, a setting.", examples=[0.0]
    )
    usable_headroom: float | None = Field(
        description="The same in absolute units: of the server's `capacity`, null where it has none; for an absolute"
        " metric in its own unit.",
        examples=[0.0],
    )
    lead_time_days: float = Field(description="Days from an order to the room it brings.", examples=[30])
    order_by: str | None = Field(
        description="The day on which to order: the end of the conservative runway minus the lead time. Null without"
        " such an end.",
        examples=["2022-12-13"],
    )
    overdue: bool = Field(description="Whether that day lies before `as_of`.", examples=[True])
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

    forecast_id: UUID = FORECAST
    metric: str = METRIC
    threshold: float | None = Field(
        description="The threshold of all servers; null where they have different ones: see the items.", examples=[90.0]
    )
    as_of: str = AS_OF


class MetricRisk(RiskItem):
    """One metric of a server, in the newest forecast of that metric that succeeded."""

    forecast_id: UUID = FORECAST
    metric: str = METRIC


class ServerAnswer(BaseModel):
    """A server over all metrics that were forecast."""

    server_id: str = SERVER
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

    forecast_id: UUID = FORECAST
    metric: str = METRIC
    threshold: float | None = Field(
        description="The threshold of all servers; null where they differ.", examples=[90.0]
    )
    as_of: str = AS_OF
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


def _can_be_threshold(asked: float) -> float:
    if not can_be_threshold(asked):
        raise ValueError(no_threshold(asked))
    return asked


ThresholdValue = Annotated[
    float,
    Field(allow_inf_nan=False, json_schema_extra={"exclusiveMinimum": 0}),
    AfterValidator(_can_be_threshold),
]
Threshold = Annotated[
    ThresholdValue | None,
    Query(
        description="In the metric's unit, for all servers. By default each server's own attribute `threshold` (for an"
        " absolute metric also `capacity`), else 90 for percent and 0.9 for ratios.",
        examples=[80],
    ),
]
GroupThresholds = Annotated[
    list[str],
    Query(
        description="A threshold for the servers of a group, as `attribute:value:threshold`; it goes before"
        " `threshold`. Of several that fit a server the lowest counts.",
        examples=[["region:north:80"]],
    ),
]
_LEAD_TIME: dict[str, Any] = {
    "ge": 0,
    "le": 36_500,
    "allow_inf_nan": False,
    "description": "Days from an order to the room it brings, for all servers. By default each server's own attribute"
    " `lead_time_days`, else a setting.",
    "examples": [45],
}
LeadTime = Annotated[float | None, Query(**_LEAD_TIME)]
LEAD_TIME = Field(default=None, **_LEAD_TIME)
SORT = Query(
    description="`runway`: the shortest conservative one first, those without one by breach probability;"
    " `breach_probability` and `max_p90`: the highest first; `server_id`: ascending.",
    examples=["breach_probability"],
)


def _however_written(values: list[str]) -> list[str]:
    return [text for value in values for text in spellings(value)]


Values = Annotated[
    list[str],
    Query(description="Only servers with one of these values.", examples=[["north"]]),
    AfterValidator(_however_written),
]

RESPONSES = problems(BadCursor, NotFound, ForecastNotReady, NoResults, ThresholdRequired)
"""What a question to a forecast may be answered with instead."""


def group_thresholds(written: Sequence[str], pointer: str = "?group_threshold") -> tuple[GroupThreshold, ...]:
    """Out of `attribute:value:threshold`; the value may hold colons. Raises Invalid."""
    found = []
    for one in written:
        attribute, _, rest = one.partition(":")
        value, _, number = rest.rpartition(":")
        try:
            threshold = float(number)
        except ValueError:
            threshold = float("nan")
        if not (attribute and value and isfinite(threshold)):
            detail = f"{one!r} is not of the form attribute:value:threshold, such as criticality:high:80."
            raise Invalid(detail, errors=[Complaint(pointer, "group-threshold", detail)])
        check_threshold(threshold, pointer)
        found.append(GroupThreshold(attribute, value, threshold))
    return tuple(found)


_FIGURES = (
    "max_p90",
    "mean_p50",
    "breach_probability",
    "expected_breach_days",
    "headroom_pct",
    "usable_headroom_pct",
    "usable_headroom",
    "severity",
    "coverage",
)


def items(servers: Sequence[ServerRisk]) -> list[dict[str, Any]]:
    """The fields of a RiskItem of each; a page checks all of its items in one go."""
    figures = [_singles([getattr(server, name) for server in servers]) for name in _FIGURES]
    return [
        _item(server) | dict(zip(_FIGURES, its, strict=True))
        for server, its in zip(servers, zip(*figures, strict=True), strict=True)
    ]


def _item(server: ServerRisk) -> dict[str, Any]:
    frequency = server.frequency
    return {
        "server_id": server.server_id,
        "model": server.model,
        "threshold": server.threshold,
        "as_of": frequency.show(server.as_of),
        "level": server.level,
        "risk_high": server.risk_high,
        "runway_days": {
            "conservative": days(server.runway_conservative, frequency),
            "expected": days(server.runway_expected, frequency),
        },
        "first_breach": {
            "p10": time(server.first_breach_p10, frequency),
            "p50": time(server.first_breach_p50, frequency),
        },
        "lead_time_days": server.lead_time_days,
        "order_by": day(server.order_by),
        "overdue": server.overdue,
        "peaks": [_peak(peak) for peak in server.peaks],
        "fallback": server.fallback,
        "history_days": server.history_days,
        "quality": list(server.quality),
        "level_shift_at": time(server.level_shift, frequency),
        "attributes": server.attributes,
    }


def _peak(peak: Peak) -> dict[str, Any]:
    """The fields of a PeakWindow."""
    return {
        "start": str(peak.start),
        "end": str(peak.end),
        "cause": peak.cause,
        "uplift_pct": round(peak.uplift_pct, 1),
    }


def counts(count: GroupCount) -> dict[str, int]:
    return {"servers": count.servers, "risk_high": count.risk_high, **count.levels}


def days(runway: float | None, frequency: Frequency) -> int | float | None:
    """Whole days of daily data are whole numbers."""
    if runway is None:
        return None
    return int(runway) if frequency is Frequency.DAILY else runway


def time(time: np.datetime64 | None, frequency: Frequency) -> str | None:
    return None if time is None else frequency.show(time)


def day(time: np.datetime64 | None) -> str | None:
    return None if time is None else str(time.astype("datetime64[D]"))


def rounded(value: float) -> float:
    """As few digits as tell it from its neighbours in single precision, in which quantiles are stored and shown."""
    return float(str(np.float32(value)))


def _singles(values: Sequence[float | None]) -> list[float | None]:
    """Each `rounded`, all at once."""
    single = pa.array(values, pa.float64()).cast(pa.float32(), safe=False)
    shown: list[float | None] = single.cast(pa.string()).cast(pa.float64()).to_pylist()
    return shown

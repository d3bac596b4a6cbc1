"""What changed between two forecasts, over HTTP (formulas: docs/risk.md)."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.risk_models import (
    METRIC,
    SERVER,
    GroupThresholds,
    Level,
    Model,
    Threshold,
    ThresholdValue,
    Values,
    days,
    group_thresholds,
    rounded,
    time,
)
from app.api.wired import Services
from app.domain.panel import Frequency
from app.errors import BadCursor, Complaint, ForecastNotReady, Invalid, NoResults, NotFound, ThresholdRequired
from app.services.fleets import Question
from app.services.risk import Filters
from app.services.risk_diff import End, ModelPart, Moved, Parts, Sort, Status

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])


class ForecastEnd(BaseModel):
    """One of the two forecasts."""

    forecast_id: UUID = Field(description="The forecast.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    model: str = Field(description="Whose run.", examples=["auto"])
    threshold: float | None = Field(description="That of all servers; null where they differ.", examples=[90.0])
    as_of: str = Field(description="The last row that it knows.", examples=["2022-12-31"])


class ServerEnd(BaseModel):
    """A server in one of the two forecasts; fields as in `GET /risk/servers`."""

    as_of: str = Field(description="The server's last row that it knows.", examples=["2022-12-31"])
    threshold: float = Field(description="What a value must be over to be a breach.", examples=[90.0])
    level: Level = Field(description="As in `GET /risk/servers`.")
    risk_high: bool = Field(description="Whether some p90 is over the threshold.", examples=[True])
    max_p90: float = Field(description="The highest p90 of the horizon.", examples=[96.1])
    breach_probability: float = Field(description="P(some step of the horizon breaches).", examples=[0.83])
    runway_days: int | float | None = Field(description="The conservative runway.", examples=[12])
    breach: str | None = Field(description="The date on which it ends.", examples=["2023-01-12"])


class MovedParts(BaseModel):
    """Days by which a breach moved, negative for sooner; the parts add up to `total`."""

    total: float = Field(description="In all.", examples=[-9])
    threshold: float = Field(description="Because it is measured against another threshold.", examples=[-4])
    model: float = Field(description="Because another model tells it; see `model_part`.", examples=[0])
    data: float = Field(description="Because of what has been seen since.", examples=[-5])


class Censored(BaseModel):
    """Whether a breach lies behind the last date that both forecasts see, and counts as the step behind it."""

    model_config = ConfigDict(validate_by_name=True)

    before: bool = Field(alias="from", description="In the old forecast.", examples=[False])
    to: bool = Field(description="In the new forecast.", examples=[False])


class DiffItem(BaseModel):
    """One server in both forecasts."""

    model_config = ConfigDict(validate_by_name=True)

    server_id: str = SERVER
    status: Status = Field(
        description="By `risk_high`: `entered` and `left` the risk, `at_risk` and `clear` before as after; `added` and"
        " `removed`: in one of the forecasts only."
    )
    newly_in_view: bool = Field(
        description="Whether the new breach lies behind the horizon of the old forecast, which could not tell of it.",
        examples=[False],
    )
    before: ServerEnd | None = Field(alias="from", description="In the old forecast.")
    to: ServerEnd | None = Field(description="In the new forecast.")
    moved_days: MovedParts | None = Field(
        description="By how much the date of the conservative breach moved. Null of a server that is in one forecast"
        " only, and where the two share no date."
    )
    censored: Censored | None = Field(description="What of that is only known to be late.")
    attributes: dict[str, str | float] = Field(
        description="The server's own, of the newer dataset.", examples=[{"region": "north"}]
    )


class DiffCounts(BaseModel):
    """How many servers there are of each status."""

    entered: int = Field(default=0, description="At risk now, not before.", examples=[3])
    left: int = Field(default=0, description="At risk before, not now.", examples=[1])
    at_risk: int = Field(default=0, description="At risk before and now.", examples=[5])
    clear: int = Field(default=0, description="Neither before nor now.", examples=[60])
    added: int = Field(default=0, description="In the new forecast only.", examples=[0])
    removed: int = Field(default=0, description="In the old forecast only.", examples=[0])


class DiffPage(Page[DiffItem]):
    """What changed. Counts and sums are those of all servers, whatever the filters."""

    model_config = ConfigDict(validate_by_name=True)

    metric: str = METRIC
    before: ForecastEnd = Field(alias="from", description="The old forecast.")
    to: ForecastEnd = Field(description="The new forecast.")
    model_part: ModelPart = Field(
        description="Where the model's part comes from: the old forecast (`in_from`) or the new one (`in_to`) has run"
        " both models; `same_model`: it is 0; `not_separable`: neither has, and it is told as 0, within `data`."
    )
    servers: DiffCounts = Field(description="How many there are of each status.")
    compared: int = Field(description="Servers in both forecasts, with dates in common.", examples=[69])
    moved: int = Field(description="Those of them whose breach moved.", examples=[9])
    moved_days: MovedParts = Field(description="Sums over the servers that were compared.")


_OTHER_THRESHOLD = "Of this forecast alone; not beside `threshold`, which is that of both."
_OTHER_MODEL = "Of this forecast alone; not beside `model`, which is that of both."


@router.get(
    "/diff",
    summary="What changed between two forecasts",
    responses=problems(BadCursor, NotFound, ForecastNotReady, NoResults, ThresholdRequired),
)
async def difference(
    services: Services,
    paging: PagingParameters,
    before: Annotated[
        UUID, Query(alias="from", description="The old forecast.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    ],
    to: Annotated[
        UUID,
        Query(description="The new forecast, of the same metric.", examples=["1b0d6f0e-8e0b-4f8e-8f65-0d9f5b8a2f77"]),
    ],
    threshold: Threshold = None,
    from_threshold: Annotated[ThresholdValue | None, Query(description=_OTHER_THRESHOLD, examples=[90])] = None,
    to_threshold: Annotated[ThresholdValue | None, Query(description=_OTHER_THRESHOLD, examples=[80])] = None,
    group_threshold: GroupThresholds = [],  # noqa: B006
    model: Model = None,
    from_model: Annotated[str | None, Query(description=_OTHER_MODEL, examples=["seasonal_naive"])] = None,
    to_model: Annotated[str | None, Query(description=_OTHER_MODEL, examples=["seasonal_naive"])] = None,
    status: Annotated[
        list[Status], Query(description="Only servers of one of these.", examples=[["entered", "left"]])
    ] = [],  # noqa: B006
    business_unit: Values = [],  # noqa: B006
    region: Values = [],  # noqa: B006
    criticality: Values = [],  # noqa: B006
    sort: Annotated[
        Sort,
        Query(
            description="`moved`: the furthest towards now first; `runway`: the shortest one now first; `server_id`:"
            " ascending.",
            examples=["runway"],
        ),
    ] = "moved",
) -> DiffPage:
    """Who came to be at risk and who no longer is, by how many days each breach moved, and why: threshold, model, data.

    Dates are compared, so that mere passing of time moves nothing.
    """
    _refuse_both("threshold", threshold, from_threshold, to_threshold)
    _refuse_both("model", model, from_model, to_model)
    groups = group_thresholds(group_threshold)
    old_threshold = threshold if from_threshold is None else from_threshold
    new_threshold = threshold if to_threshold is None else to_threshold
    found = await services.risk_diff.difference(
        Question(before, model=from_model or model, threshold=old_threshold, group_thresholds=groups),
        Question(to, model=to_model or model, threshold=new_threshold, group_thresholds=groups),
        status,
        Filters((), tuple(business_unit), tuple(region), tuple(criticality)),
        sort,
    )
    after = paging.after(tuple[int])
    start = after[0] if after else 0
    servers = found.servers[start : start + paging.limit + 1]
    page = paging.page(
        [_item(server, found.frequency) for server in servers],
        [(start + place,) for place in range(1, len(servers) + 1)],
    )
    ends = [
        ForecastEnd(forecast_id=one, model=model, threshold=limit, as_of=found.frequency.show(as_of))
        for one, model, limit, as_of in zip(found.forecasts, found.models, found.thresholds, found.as_of, strict=True)
    ]
    return DiffPage(
        metric=found.metric,
        before=ends[0],
        to=ends[1],
        model_part=found.model_part,
        servers=DiffCounts.model_validate(found.statuses),
        compared=found.compared,
        moved=found.moved,
        moved_days=_parts(found.parts),
        items=page.items,
        next_cursor=page.next_cursor,
    )


def _refuse_both(name: str, both: object, before: object, after: object) -> None:
    """Raises Invalid for one that is asked of both forecasts and of one alone: which is meant?"""
    alone = [f"{end}_{name}" for end, value in (("from", before), ("to", after)) if value is not None]
    if both is not None and alone:
        detail = (
            f"Either `{name}`, for both forecasts, or `from_{name}` and `to_{name}`, one for each; not "
            f"`{name}` beside {' and '.join(f'`{other}`' for other in alone)}."
        )
        complaints = [Complaint(f"?{each}", "ambiguous", detail) for each in (name, *alone)]
        raise Invalid(detail, errors=complaints)


def _item(server: Moved, frequency: Frequency) -> DiffItem:
    return DiffItem(
        server_id=server.server_id,
        status=server.status,
        newly_in_view=server.newly_in_view,
        before=server.before and _end(server.before, frequency),
        to=server.after and _end(server.after, frequency),
        moved_days=server.parts and _parts(server.parts),
        censored=server.censored and Censored(before=server.censored[0], to=server.censored[1]),
        attributes=server.attributes,
    )


def _end(end: End, frequency: Frequency) -> ServerEnd:
    return ServerEnd.model_validate(
        {
            "as_of": frequency.show(end.as_of),
            "threshold": end.threshold,
            "level": end.level,
            "risk_high": end.risk_high,
            "max_p90": rounded(end.max_p90),
            "breach_probability": rounded(end.breach_probability),
            "runway_days": days(end.runway_days, frequency),
            "breach": time(end.breach, frequency),
        }
    )


def _parts(parts: Parts) -> MovedParts:
    return MovedParts(total=parts.total, threshold=parts.threshold, model=parts.model, data=parts.data)

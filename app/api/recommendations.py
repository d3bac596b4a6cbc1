"""Under-used servers over HTTP: what could be smaller or gone, what that saves, and the profiles of load."""

from typing import Annotated, Literal
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.risk_models import ThresholdValue, Values
from app.api.wired import Services
from app.domain.cost import dollars
from app.domain.profiles import FIGURES
from app.errors import BadCursor, ForecastNotReady, NoResults, NotFound
from app.services.fleets import Question
from app.services.recommendations import Advice, Basis, Kind, Recommendation, Selection, totals

_SERVER = Field(description="The server.", examples=["SRV-0001"])
_METRIC = Field(description="What is forecast.", examples=["cpu_p95"])
_FORECAST = Field(description="The forecast that was looked at.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])


class Size(BaseModel):
    """A size, as a share of what the server has today."""

    factor: float = Field(description="1 is today's size; 0 is no server.", examples=[0.5])
    capacity: float | None = Field(
        description="The same share of the server's `capacity`; null where it has none.", examples=[16.0]
    )


class MonthlyPrice(BaseModel):
    """What the server costs now."""

    usd_per_month: float = Field(description="In dollars.", examples=[100.0])
    basis: str = Field(
        description="Where the price comes from: an attribute of the server, or the setting that is assumed.",
        examples=["assumed: HEADROOM_SERVER_USD_PER_MONTH"],
    )


class RecommendationItem(BaseModel):
    """One server that could be smaller, or emptied and given up."""

    # `from` is a word of the language.
    kind: Kind = Field(description="`downsize`: a smaller one will do. `consolidate`: its work fits onto another.")
    server_id: str = _SERVER
    onto: str | None = Field(
        description="The server that takes the work in; null for a downsize.", examples=["SRV-0002"]
    )
    from_: Size = Field(alias="from", description="As it is.")
    to: Size = Field(description="As it could be.")
    breach_probability: dict[str, float] = Field(
        description="By metric, P(some step of the horizon breaches): at the new size; or on the host, with all that is"
        " put onto it.",
        examples=[{"cpu_p95": 0.004, "mem_p95": 0.012}],
    )
    epsilon: float = Field(description="What each of these may be at most.", examples=[0.05])
    metrics: list[str] = Field(description="All metrics that are measured.", examples=[["cpu_p95", "mem_p95"]])
    formula: str = Field(
        description="The sum in words and numbers.",
        examples=[
            "At 1/2 of the size a threshold is 1/2 of today's: P(cpu_p95 > 45 within 90 days) = 0.0040, each at most"
            " 0.05, and the history was never above. Saving: $100.00 × (1 - 1/2) = $50.00 a month."
        ],
    )
    assumptions: list[str] = Field(
        description="What was taken for granted to compare two servers.",
        examples=[["no capacity is known: servers of eu-west are taken to be of equal size in cpu_p95"]],
    )
    method: Literal["milp", "first_fit_decreasing"] | None = Field(
        description="How the servers to be emptied were packed; null for a downsize."
    )
    prices: MonthlyPrice = Field(description="The price that the saving is of.")
    saving_usd_per_month: float = Field(description="Exact to the micro-dollar.", examples=[50.0])
    profile: str | None = Field(
        description="The server's profile of load; null where its history is too short for one.",
        examples=["steady, low"],
    )
    attributes: dict[str, str | float] = Field(
        description="The server's own, from the dataset.", examples=[{"region": "eu-west"}]
    )


class Savings(BaseModel):
    """Sums over all items of the list, on whatever page; a server is in one item at most."""

    servers: int = Field(description="How many items there are.", examples=[12])
    downsize_usd: float = Field(description="A month, by smaller servers.", examples=[350.0])
    consolidate_usd: float = Field(description="A month, by servers given up.", examples=[400.0])
    saving_usd_per_month: float = Field(description="Both.", examples=[750.0])


class UsedForecast(BaseModel):
    """A forecast that was looked at: the newest that succeeded of its metric, on any version of the dataset."""

    metric: str = _METRIC
    forecast_id: UUID = _FORECAST
    model: str = Field(description="Whose forecast it is.", examples=["auto"])
    as_of: str = Field(description="The newest row that it knows.", examples=["2022-12-31"])
    horizon: int = Field(description="In steps.", examples=[90])


class NotRecommended(BaseModel):
    """Servers that are in no item, and why. The counts are of the whole dataset, whatever the filters."""

    reason: Literal["no_forecast", "no_values", "no_threshold", "no_room", "host"] = Field(
        description="`no_forecast`, `no_values`, `no_threshold`: of `metric`; a server that lacks one is never shrunk."
        " `no_room`: at half the size it would breach too easily, or would have before. `host`: it takes others in."
    )
    metric: str | None = Field(description="The metric that it is about, if any.", examples=["mem_p95"])
    servers: int = Field(description="How many.", examples=[3])


class MissingMetric(BaseModel):
    """A metric of the dataset that is not forecast. While there is one, nothing is recommended."""

    metric: str = Field(description="Its name.", examples=["mem_p95"])
    todo: str = Field(description="The request that mends it.", examples=['POST /forecasts {"metric": "mem_p95"}'])


class RecommendationPage(Page[RecommendationItem]):
    """What could be saved, the most first."""

    totals: Savings = Field(description="Of the list, over all its pages.")
    epsilon: float = Field(description="The breach probability that is put up with, per metric.", examples=[0.05])
    forecasts: list[UsedForecast] = Field(description="One per metric; that asked for comes first.")
    servers: int = Field(description="Servers of the dataset.", examples=[69])
    not_recommended: list[NotRecommended] = Field(description="Those that are in no item.")
    missing_metrics: list[MissingMetric] = Field(description="What to forecast before anything can be recommended.")


class Centre(BaseModel):
    """The means of a profile's servers over the last year; all in percent."""

    level_pct: float = Field(description="Mean use; of an absolute metric, of the threshold.", examples=[12.4])
    weekday_uplift_pct: float = Field(description="Mondays to Fridays over weekends, of the level.", examples=[31.0])
    trend_pct_per_year: float = Field(description="Of the level, a year.", examples=[4.2])
    variability_pct: float = Field(description="Spread (σ) that the other figures leave, of the level.", examples=[6.0])
    quarter_end_uplift_pct: float = Field(description="The last 7 days of a quarter over all others.", examples=[0.4])


class Cluster(BaseModel):
    """Servers that are used alike."""

    name: str = Field(description="Shape and height.", examples=["weekday peaks, medium"])
    servers: int = Field(description="How many.", examples=[23])
    centre: Centre = Field(description="What they are like on average.")
    examples: list[str] = Field(description="Those nearest to the centre.", examples=[["SRV-0001", "SRV-0007"]])


class ClusterPage(Page[Cluster]):
    """Profiles of load of a forecast's servers, the lowest level first."""

    forecast_id: UUID = _FORECAST
    metric: str = _METRIC
    servers: int = Field(description="Servers of the dataset that have a profile.", examples=[69])
    silhouette: float | None = Field(
        description="How well the profiles are told apart, up to 1; null where there is one.", examples=[0.62]
    )


ForecastId = Annotated[
    UUID | None, Query(description="The forecast; by default the newest that succeeded (of `metric`, if given).")
]
Metric = Annotated[
    str | None, Query(description="Picks among metrics when no forecast is named.", examples=["cpu_p95"])
]

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])


@router.get(
    "/recommendations",
    summary="What could be saved",
    responses=problems(BadCursor, NotFound, ForecastNotReady, NoResults),
)
async def recommend(
    services: Services,
    paging: PagingParameters,
    forecast_id: ForecastId = None,
    metric: Metric = None,
    threshold: Annotated[
        ThresholdValue | None,
        Query(
            description="For the metric of the forecast, in its unit. By default, and for every other metric, each"
            " server's own, as in `/risk/servers`.",
            examples=[80],
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        Query(
            gt=0,
            le=0.5,
            description="The breach probability that is put up with, per metric; by default a setting.",
            examples=[0.05],
        ),
    ] = None,
    kind: Annotated[list[Kind], Query(description="Only these.", examples=[["downsize"]])] = [],  # noqa: B006
    business_unit: Values = [],  # noqa: B006
    region: Values = [],  # noqa: B006
) -> RecommendationPage:
    """Servers that could be smaller or given up, with the sum behind each, the price used and the monthly saving.

    A server is shrunk only when the breach probability at the new size is at most ε on every metric that its dataset
    measures; so each metric needs a forecast. An idle server is given up when another of its region has the room.
    """
    after = paging.after(tuple[list[UUID], int])
    advice = await services.recommendations.advice(
        Question(forecast_id, metric, threshold=threshold), epsilon, after[0] if after else ()
    )
    chosen = advice.select(Selection(tuple(kind), tuple(business_unit), tuple(region)))
    start = after[1] if after else 0
    shown = chosen[start : start + paging.limit + 1]
    page = paging.page(
        [_item(one, advice) for one in shown],
        [(advice.forecasts, start + place) for place in range(1, len(shown) + 1)],
    )
    sums = totals(chosen)
    return RecommendationPage(
        items=page.items,
        next_cursor=page.next_cursor,
        totals=Savings(
            servers=sums.servers,
            downsize_usd=dollars(sums.downsize),
            consolidate_usd=dollars(sums.consolidate),
            saving_usd_per_month=dollars(sums.saving),
        ),
        epsilon=advice.epsilon,
        forecasts=[_used(basis) for basis in advice.basis],
        servers=advice.servers,
        not_recommended=[
            NotRecommended(reason=one.reason, metric=one.metric, servers=one.servers) for one in advice.left_out
        ],
        missing_metrics=[MissingMetric(metric=one.metric, todo=one.todo) for one in advice.missing],
    )


@router.get(
    "/clusters",
    summary="Profiles of load",
    responses=problems(BadCursor, NotFound, ForecastNotReady, NoResults),
)
async def list_clusters(
    services: Services, paging: PagingParameters, forecast_id: ForecastId = None, metric: Metric = None
) -> ClusterPage:
    """The servers of a forecast grouped by level and shape of their last year's load (k-means), each group named."""
    after = paging.after(tuple[UUID, int])
    question = Question(after[0], metric) if after else Question(forecast_id, metric)
    fleet, found = await services.profiles.answer(question)
    start = after[1] if after else 0
    shown = found.profiles[start : start + paging.limit + 1]
    clusters = [
        Cluster(
            name=one.name,
            servers=one.servers,
            centre=Centre(**{name: round(getattr(one.centre, name), 2) for name in FIGURES}),
            examples=list(one.examples),
        )
        for one in shown
    ]
    page = paging.page(clusters, [(fleet.forecast.id, start + place) for place in range(1, len(shown) + 1)])
    return ClusterPage(
        items=page.items,
        next_cursor=page.next_cursor,
        forecast_id=fleet.forecast.id,
        metric=fleet.metric,
        servers=len(found.of),
        silhouette=None if found.silhouette is None else round(found.silhouette, 3),
    )


def _item(one: Recommendation, advice: Advice) -> RecommendationItem:
    capacity = None if one.capacity is None else one.capacity * one.factor
    return RecommendationItem.model_validate(
        {
            "kind": one.kind,
            "server_id": one.server_id,
            "onto": one.onto,
            "from": Size(factor=1.0, capacity=one.capacity),
            "to": Size(factor=one.factor, capacity=capacity),
            "breach_probability": {name: float(str(np.float32(value))) for name, value in one.breach.items()},
            "epsilon": one.epsilon,
            "metrics": [basis.metric for basis in advice.basis],
            "formula": one.formula,
            "assumptions": list(one.assumptions),
            "method": one.method,
            "prices": MonthlyPrice(usd_per_month=dollars(one.price.monthly), basis=one.price.basis),
            "saving_usd_per_month": dollars(one.saving),
            "profile": one.profile,
            "attributes": one.attributes,
        }
    )


def _used(basis: Basis) -> UsedForecast:
    return UsedForecast(
        metric=basis.metric,
        forecast_id=basis.forecast_id,
        model=basis.model,
        as_of=basis.frequency.show(basis.as_of),
        horizon=basis.steps,
    )

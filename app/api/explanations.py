"""Why a server's forecast is what it is, over HTTP."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.problems import problems
from app.api.strict import Text
from app.api.wired import Services
from app.domain.explanation import EventLift, Lift
from app.domain.forecast import Model
from app.errors import ForecastNotReady, NoResults, NotFound
from app.services.explanations import Explained

router = APIRouter(prefix="/forecasts", tags=["forecasts"])

METHOD = (
    "The p50 is divided by the calendar regression of structural, fitted to this server and {peers} like it; "
    "effects that multiply are made to add up by the logarithmic mean Divisia index, and other is what the model's p50 "
    "has beyond the regression."
)


class PartLift(BaseModel):
    """What one part does over the horizon, in the metric's unit."""

    part: str = Field(description="Which part.", examples=["weekday"])
    low: float = Field(description="The least that it adds.", examples=[-6.1])
    high: float = Field(description="The most that it adds.", examples=[2.9])
    peak_to_trough: float = Field(description="`high` − `low`.", examples=[9.0])
    percent: float | None = Field(
        description="`peak_to_trough` in percent of the level; null for a level of zero.", examples=[18.8]
    )
    share: float = Field(description="Of all that the parts add or take away, level apart; 0 to 1.", examples=[0.46])

    @classmethod
    def of(cls, lift: Lift, level: float) -> "PartLift":
        reach = lift.high - lift.low
        return cls(
            part=lift.part,
            low=lift.low,
            high=lift.high,
            peak_to_trough=reach,
            percent=100 * reach / abs(level) if level else None,
            share=lift.share,
        )


class EventState(BaseModel):
    """What one event adds to the steps that it falls on."""

    event: str = Field(
        description="`end_of_quarter`, `holiday:<name>`, or the day `before:<name>` or `after:<name>`.",
        examples=["end_of_quarter"],
    )
    steps: int = Field(description="Steps of the horizon that it falls on.", examples=[7])
    lift: float = Field(description="What it adds to them on average, in the metric's unit.", examples=[5.3])
    lift_pct: float | None = Field(
        description="`lift` in percent of the level; null for a level of zero.", examples=[11.1]
    )

    @classmethod
    def of(cls, lift: EventLift) -> "EventState":
        return cls(event=lift.event, steps=lift.steps, lift=lift.lift, lift_pct=lift.percent)


class ExplanationSummary(BaseModel):
    """The same in short."""

    level: float = Field(description="The level.", examples=[47.9])
    parts: list[PartLift] = Field(description="Every part but the level, in the order of `parts`.")
    events: list[EventState] = Field(description="Events that fall into the horizon, the strongest first.")


class ExplanationState(BaseModel):
    """The parts that one server's p50 adds up from."""

    forecast_id: UUID = Field(description="The forecast.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    metric: str = Field(description="What is forecast.", examples=["cpu_p95"])
    server_id: str = Field(description="The server.", examples=["SRV-0001"])
    model: Model = Field(description="Whose p50 it is.", examples=["auto"])
    method: str = Field(description="How it was divided.", examples=[METHOD.format(peers="120 others")])
    parts: list[str] = Field(
        description="`level`: where the server stands at the outset, without its calendar. `trend`: how far the level "
        "moves from there. `weekday`, `hour` (hourly data), `year`: its rhythms. `calendar`: holidays, the days around "
        "them, ends of quarters. `known_ahead`: columns known ahead, where there are any. `other`: the rest of p50.",
        examples=[["level", "trend", "weekday", "year", "calendar", "other"]],
    )
    items: list[dict[str, Any]] = Field(
        description="Each step: `timestamp`, `p50`, one column per part, which add up to `p50`, and its `events`.",
        examples=[
            [
                {
                    "timestamp": "2023-03-31",
                    "p50": 56.5,
                    "level": 47.75,
                    "trend": 0.5,
                    "weekday": 2.0,
                    "year": 0.5,
                    "calendar": 5.5,
                    "other": 0.25,
                    "events": ["end_of_quarter"],
                }
            ]
        ],
    )
    summary: ExplanationSummary = Field(description="Each part and each event in short.")

    @classmethod
    def of(cls, explained: Explained) -> "ExplanationState":
        found = explained.explanation
        level = float(found.rows[0, 0])
        return cls(
            forecast_id=explained.forecast.id,
            metric=explained.forecast.request.metric,
            server_id=explained.server_id,
            model=explained.model,
            method=METHOD.format(peers=f"{explained.peers} other{'' if explained.peers == 1 else 's'}"),
            parts=list(found.names),
            items=[
                {
                    "timestamp": timestamp,
                    "p50": p50,
                    **dict(zip(found.names, row, strict=True)),
                    "events": found.falling(step),
                }
                for step, (timestamp, p50, row) in enumerate(
                    zip(explained.timestamps, found.p50.tolist(), found.rows.tolist(), strict=True)
                )
            ],
            summary=ExplanationSummary(
                level=level,
                parts=[PartLift.of(lift, level) for lift in found.lifts()],
                events=[EventState.of(lift) for lift in found.event_lifts()],
            ),
        )


@router.get(
    "/{forecast_id}/explanation",
    dependencies=[scope("read")],
    summary="Explain one server's forecast",
    responses=problems(NotFound, ForecastNotReady, NoResults),
)
async def explain(
    forecast_id: Annotated[UUID, Path(description="The forecast.")],
    services: Services,
    server_id: Annotated[Text, Query(description="One of its servers.", examples=["SRV-0001"])],
    model: Annotated[Text | None, Query(description="Whose p50; the best model's by default.")] = None,
) -> ExplanationState:
    """What the p50 of each step adds up from: level, trend, weekday, year, calendar events, and the rest."""
    return ExplanationState.of(await services.explanations.of(forecast_id, server_id, model))

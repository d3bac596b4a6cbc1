"""What-if over HTTP: changes to a fleet, and the risk answer beside that of the fleet as it is (docs/risk.md)."""

from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.risk_models import (
    AS_OF,
    FORECAST,
    LEAD_TIME,
    METRIC,
    SERVER,
    SORT,
    Level,
    LevelCounts,
    Runway,
    ThresholdValue,
    Values,
    counts,
    day,
    days,
    group_thresholds,
    rounded,
)
from app.api.strict import Body, Text, Time
from app.api.wired import Services
from app.domain.panel import Frequency
from app.domain.risk import LEVELS
from app.errors import BadCursor, CapacityRequired, ForecastNotReady, NoResults, NotFound, ThresholdRequired
from app.services import scenarios
from app.services.fleets import Question
from app.services.risk import Filters, Sort
from app.services.scenarios import Compared, Comparison, Moved, Side, World

router = APIRouter(prefix="/risk", tags=["risk"], dependencies=[scope("read")])

Selection = Annotated[
    dict[Text, Text | float | list[Text | float]],
    Field(
        min_length=1,
        description="Which servers: `server_ids` (a list), and attributes of the dataset with a value or a list of"
        " values; a server must fit all.",
        examples=[{"region": "north"}],
    ),
]


class GrowthChange(Body):
    """The forecast is higher, or lower, by a share."""

    kind: Literal["growth"] = Field(description="Says which change it is.")
    percent: float = Field(gt=-100, le=10_000, description="How much higher, in percent.", examples=[10])
    since: Time | None = Field(
        default=None, alias="from", description="From this time on; by default from the start.", examples=["2023-01-05"]
    )
    where: Selection | None = Field(default=None, description="Which servers; by default all.")


class ThresholdChange(Body):
    """Another threshold."""

    kind: Literal["threshold"] = Field(description="Says which change it is.")
    value: ThresholdValue = Field(description="In the metric's unit.", examples=[85])
    where: Selection | None = Field(default=None, description="Which servers; by default all.")


class CapacityChange(Body):
    """More room, or less: a percentage or ratio falls as room grows, the threshold of an absolute metric rises."""

    kind: Literal["capacity"] = Field(description="Says which change it is.")
    factor: float | None = Field(default=None, gt=0, le=1_000, description="Multiplies the room.", examples=[1.5])
    add: float | None = Field(
        default=None, description="Adds to the room, in the unit of `capacity`, which must be known.", examples=[16]
    )
    where: Selection | None = Field(default=None, description="Which servers; by default all.")

    @model_validator(mode="after")
    def _either(self) -> "CapacityChange":
        if (self.factor is None) == (self.add is None):
            raise ValueError("give either `factor` or `add`")
        return self


class RetireChange(Body):
    """The servers leave. Their load leaves with them: it is not moved to others."""

    kind: Literal["retire"] = Field(description="Says which change it is.")
    where: Selection = Field(description="Which servers.")


Change = Annotated[
    GrowthChange | ThresholdChange | CapacityChange | RetireChange, Field(discriminator="kind", description="A change.")
]


class ScenarioRequest(Body):
    """A fleet, and what is to become of it. Changes act in their order, each on what those before have left."""

    forecast_id: UUID | None = Field(
        default=None, description="The forecast; by default the newest that succeeded (of `metric`, if given)."
    )
    metric: Text | None = Field(default=None, description="Picks among metrics when no forecast is named.")
    model: Text | None = Field(default=None, description="Whose run; by default the forecast's best model.")
    threshold: ThresholdValue | None = Field(default=None, description="As in `GET /risk/servers`, in both worlds.")
    group_threshold: list[Text] = Field(
        default=[], max_length=100, description="As in `GET /risk/servers`, in both worlds."
    )
    lead_time_days: float | None = LEAD_TIME
    changes: list[Change] = Field(min_length=1, max_length=50, description="What is different in the scenario.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "forecast_id": "7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10",
                    "threshold": 80,
                    "changes": [
                        {"kind": "growth", "percent": 10, "from": "2023-01-05", "where": {"region": "north"}},
                        {"kind": "threshold", "value": 85},
                        {"kind": "capacity", "factor": 1.5, "where": {"server_ids": ["web-1"]}},
                        {"kind": "retire", "where": {"server_ids": ["web-2"]}},
                    ],
                }
            ]
        }
    )


class SideAnswer(BaseModel):
    """A server in one of the two worlds; fields as in `GET /risk/servers`."""

    threshold: float = Field(description="What a value must be over to be a breach.", examples=[85.0])
    level: Level = Field(description="As in `GET /risk/servers`.")
    risk_high: bool = Field(description="Whether some p90 is over the threshold.", examples=[True])
    runway_days: Runway = Field(description="Days left before the threshold is passed.")
    breach_probability: float = Field(description="P(some step of the horizon breaches).", examples=[0.83])
    max_p90: float = Field(description="The highest p90 of the horizon.", examples=[96.1])
    headroom_pct: float = Field(description="Room between the highest p90 and the threshold.", examples=[0.0])
    order_by: str | None = Field(description="The day on which to order.", examples=["2022-12-13"])
    overdue: bool = Field(description="Whether that day lies before the server's `as_of`.", examples=[True])


class ScenarioItem(BaseModel):
    """A server in both worlds."""

    server_id: str = SERVER
    base: SideAnswer = Field(description="As it is.")
    scenario: SideAnswer | None = Field(description="As it would be; null of a server that was retired.")
    changed: bool = Field(description="Whether anything of its answer differs.", examples=[True])
    attributes: dict[str, str | float] = Field(
        description="The server's own, from the dataset.", examples=[{"region": "north"}]
    )


class WorldSummary(LevelCounts):
    """All servers of one of the two worlds."""

    threshold: float | None = Field(description="That of all servers; null where they differ.", examples=[80.0])
    expected_breaches: float = Field(
        description="How many servers are to be expected to breach: the sum of their probabilities.", examples=[7.3]
    )


class Move(BaseModel):
    """Servers of one level in the base, and of one in the scenario."""

    before: Level = Field(description="Their level in the base.", examples=["normal"])
    after: Level | None = Field(description="Their level in the scenario; null: retired.", examples=["high"])
    servers: int = Field(description="How many.", examples=[4])


class MovedCounts(BaseModel):
    """Servers whose answer differs, by whether they are at risk (`risk_high`)."""

    entered: int = Field(description="At risk in the scenario alone.", examples=[5])
    left: int = Field(description="At risk in the base alone; retired ones included.", examples=[2])
    stayed: int = Field(description="At risk in both, or in neither.", examples=[31])


class ScenarioPage(Page[ScenarioItem]):
    """Both worlds, side by side. Filters and sort go by the scenario; retired servers count as they were."""

    forecast_id: UUID = FORECAST
    metric: str = METRIC
    model: str = Field(description="Whose forecast it is.", examples=["auto"])
    as_of: str = AS_OF
    selected: list[int] = Field(description="How many servers each change acts on.", examples=[[40, 120, 1, 1]])
    base: WorldSummary = Field(description="The fleet as it is.")
    scenario: WorldSummary = Field(description="The fleet as it would be.")
    moved: MovedCounts = Field(description="Who comes to be at risk, and who no longer is.")
    moves: list[Move] = Field(description="All servers, counted by their level in both worlds.")


@router.post(
    "/scenarios",
    summary="What if",
    responses=problems(BadCursor, NotFound, ForecastNotReady, NoResults, ThresholdRequired, CapacityRequired),
)
async def compare(
    services: Services,
    body: ScenarioRequest,
    paging: PagingParameters,
    changed: Annotated[
        bool, Query(description="Only servers whose answer differs between the worlds.", examples=[True])
    ] = False,
    moved: Annotated[
        Moved | None, Query(description="Only servers that came to be at risk, or left, or neither.", examples=["left"])
    ] = None,
    level: Annotated[
        list[Level], Query(description="Only servers at one of these levels in the scenario.", examples=[["high"]])
    ] = [],  # noqa: B006
    business_unit: Values = [],  # noqa: B006
    region: Values = [],  # noqa: B006
    criticality: Values = [],  # noqa: B006
    sort: Annotated[Sort, SORT] = "runway",
) -> ScenarioPage:
    """The risk of a fleet after growth, new thresholds, more room or fewer servers, beside that of the fleet as it is.

    Recomputed from the stored quantiles and paths; nothing is fitted, and nothing is kept. The answer to a further
    page needs the same body.
    """
    paging = paging.bound_to(body.model_dump(mode="json", by_alias=True))
    found = await services.scenarios.compare(
        Question(
            body.forecast_id,
            body.metric,
            body.model,
            body.threshold,
            group_thresholds(body.group_threshold, "/group_threshold"),
            body.lead_time_days,
        ),
        [_change(change) for change in body.changes],
        Filters(tuple(level), tuple(business_unit), tuple(region), tuple(criticality)),
        sort,
        paging.after(tuple[UUID, str]),
        paging.limit + 1,
        changed_only=changed,
        moved=moved,
    )
    page = paging.page(
        [_item(server, found.frequency) for server in found.servers],
        [(found.forecast_id, server.server_id) for server in found.servers],
    )
    return ScenarioPage(
        forecast_id=found.forecast_id,
        metric=found.metric,
        model=found.model,
        as_of=found.frequency.show(found.as_of),
        selected=found.selected,
        base=_world(found.base),
        scenario=_world(found.scenario),
        moved=MovedCounts(**found.moved),
        moves=_moves(found),
        items=page.items,
        next_cursor=page.next_cursor,
    )


def _change(change: GrowthChange | ThresholdChange | CapacityChange | RetireChange) -> scenarios.Change:
    where = _where(change.where or {})
    match change:
        case GrowthChange():
            since = None if change.since is None else np.datetime64(change.since.isoformat()[:19], "s")
            return scenarios.Growth(change.percent, since, where)
        case ThresholdChange():
            return scenarios.NewThreshold(change.value, where)
        case CapacityChange():
            return scenarios.Capacity(change.factor, change.add, where)
        case RetireChange():
            return scenarios.Retire(where)


def _where(selection: dict[str, Any]) -> scenarios.Where:
    texts = {name: tuple(map(str, value if isinstance(value, list) else [value])) for name, value in selection.items()}
    names = texts.pop("server_ids", None)
    return scenarios.Where(names, tuple(sorted(texts.items())))


def _item(server: Compared, frequency: Frequency) -> ScenarioItem:
    return ScenarioItem(
        server_id=server.server_id,
        base=_side(server.base, frequency),
        scenario=None if server.scenario is None else _side(server.scenario, frequency),
        changed=server.changed,
        attributes=server.attributes,
    )


def _side(side: Side, frequency: Frequency) -> SideAnswer:
    return SideAnswer.model_validate(
        {
            "threshold": side.threshold,
            "level": side.level,
            "risk_high": side.risk_high,
            "runway_days": Runway(
                conservative=days(side.runway_conservative, frequency), expected=days(side.runway_expected, frequency)
            ),
            "breach_probability": rounded(side.breach_probability),
            "max_p90": rounded(side.max_p90),
            "headroom_pct": rounded(side.headroom_pct),
            "order_by": day(side.order_by),
            "overdue": side.overdue,
        }
    )


def _moves(found: Comparison) -> list[Move]:
    """The most urgent levels first."""
    order = {level: place for place, level in enumerate((*LEVELS, None))}
    moves = sorted(found.moves.items(), key=lambda move: (order[move[0][0]], order[move[0][1]]))
    return [
        Move.model_validate({"before": before, "after": after, "servers": servers})
        for (before, after), servers in moves
    ]


def _world(world: World) -> WorldSummary:
    return WorldSummary(threshold=world.threshold, expected_breaches=round(world.breaches, 4), **counts(world.counts))

"""Alert rules over HTTP, and what was delivered for them (how to verify a delivery: docs/alerts.md)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StrictInt,
    field_validator,
    model_validator,
)

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.risk_models import ThresholdValue
from app.api.strict import Body, Text
from app.api.wired import Services
from app.domain.alerts import (
    Alarm,
    Condition,
    DaysOver,
    LevelAtLeast,
    ProbabilityOver,
    Rule,
    RunwayUnder,
    Where,
    Which,
    condition_to_json,
)
from app.domain.forecast import MAX_HORIZON, Model
from app.errors import BadCursor, NotFound, WebhookAddress
from app.services.webhooks import MAX_URL, new_secret, secret_bytes
from app.storage.alerts import Delivery, DeliveryStatus

EXAMPLE: dict[str, Any] = {
    "name": "order in time",
    "metric": "cpu_p95",
    "where": {"region": ["north"]},
    "condition": {"runway_under_days": 30, "which": "conservative"},
    "url": "https://alerts.example.com/headroom",
}

Values = Annotated[list[Text], Field(min_length=1, max_length=1_000)]


class Servers(Body):
    """Servers that have one of the values of each; what is left out lets all pass."""

    business_unit: Values | None = Field(None, description="Of these business units.", examples=[["payments"]])
    region: Values | None = Field(None, description="In these regions.", examples=[["north"]])
    criticality: Values | None = Field(None, description="Of this criticality.", examples=[["gold"]])
    server_id: Values | None = Field(None, description="These servers.", examples=[["SRV-0001"]])

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class Stretch(Body):
    """On at least `k` of some `of` days in a row."""

    k: StrictInt = Field(description="Days over the threshold.", ge=1, le=MAX_HORIZON, examples=[3])
    of: StrictInt = Field(description="Days in a row.", ge=1, le=MAX_HORIZON, examples=[7])
    quantile: float = Field(
        0.9, description="The level that is held against the threshold; the forecast must have it.", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.k > self.of:
            raise ValueError("k must not be more than `of`")
        return self


class ConditionBody(Body):
    """What makes a server match: exactly one of these (`which` goes with `runway_under_days`)."""

    level_at_least: Alarm | None = Field(None, description="Its level is this one, or a higher.")
    runway_under_days: float | None = Field(
        None, description="Its runway is shorter than so many days.", gt=0, le=MAX_HORIZON, examples=[30]
    )
    which: Which | None = Field(None, description="The runway by p90 (`conservative`, the default) or by p50.")
    breach_probability_over: float | None = Field(
        None, description="Its breach probability is higher than this.", ge=0, lt=1, examples=[0.5]
    )
    days_over: Stretch | None = Field(None, description="A quantile of it stays over the threshold.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = self.model_fields_set - {"which"}
        if len(given) != 1 or any(getattr(self, name) is None for name in given):
            raise ValueError(
                "give exactly one of level_at_least, runway_under_days, breach_probability_over and days_over"
            )
        if self.which is not None and self.runway_under_days is None:
            raise ValueError("`which` goes with runway_under_days")
        return self

    def condition(self) -> Condition:
        if self.level_at_least is not None:
            return LevelAtLeast(self.level_at_least)
        if self.runway_under_days is not None:
            return RunwayUnder(self.runway_under_days, self.which or "conservative")
        if self.breach_probability_over is not None:
            return ProbabilityOver(self.breach_probability_over)
        assert self.days_over is not None  # exactly one is given
        return DaysOver(**self.days_over.model_dump())


def _signs(secret: SecretStr) -> SecretStr:
    secret_bytes(secret.get_secret_value())
    return secret


class RuleBody(Body):
    """A rule to make: `name`, `condition` and `url` are required."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: Text = Field(description="What it is called.", min_length=1, max_length=200, examples=[EXAMPLE["name"]])
    metric: Text | None = Field(
        None, description="Forecasts of this metric; of any when left out.", min_length=1, max_length=255
    )
    where: Servers = Field(default_factory=lambda: Servers(), description="Which servers; all when left out.")
    threshold: ThresholdValue | None = Field(
        None, description="In the metric's unit, for all servers; each server's own when left out.", examples=[80.0]
    )
    model: Model | None = Field(None, description="Whose forecasts; the best of each when left out.")
    condition: ConditionBody = Field(description="What makes a server match.")
    only_changes: bool = Field(
        False, description="Send nothing for a forecast in which no server entered and none left.", examples=[False]
    )
    url: Text = Field(
        description="Where events are sent: https, at an address of the internet unless the host is allowed. Readers"
        " of the rule see it.",
        min_length=1,
        max_length=MAX_URL,
        examples=[EXAMPLE["url"]],
    )
    secret: Annotated[SecretStr, AfterValidator(_signs)] | None = Field(
        None, description="What signs: `whsec_` and the base64 of 24 to 64 bytes. One is made when it is left out."
    )
    enabled: bool = Field(True, description="Whether forecasts are judged by it.", examples=[True])

    def rule(self) -> Rule:
        return Rule(
            id=uuid4(),
            name=self.name,
            metric=self.metric,
            where=Where.from_json(self.where.model_dump(exclude_none=True)),
            threshold=self.threshold,
            model=self.model,
            condition=self.condition.condition(),
            only_changes=self.only_changes,
            url=self.url,
            secret=self.secret.get_secret_value() if self.secret else new_secret(),
            enabled=self.enabled,
            created_at=datetime.now(UTC),
        )


class Switch(Body):
    """What can be changed of a rule."""

    enabled: bool = Field(description="Whether forecasts are judged by it.", examples=[True])


class RuleState(BaseModel):
    """A rule, without its secret."""

    id: UUID = Field(description="Its id.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    name: str = Field(description="What it is called.", examples=[EXAMPLE["name"]])
    metric: str | None = Field(description="Forecasts of this metric; null: of any.", examples=["cpu_p95"])
    where: dict[str, list[str]] = Field(description="Which servers.", examples=[EXAMPLE["where"]])
    threshold: float | None = Field(description="Of all servers; null: each server's own.", examples=[None])
    model: Model | None = Field(description="Whose forecasts; null: the best of each.", examples=[None])
    condition: dict[str, Any] = Field(
        description="What makes a server match, as it was asked for.", examples=[EXAMPLE["condition"]]
    )
    only_changes: bool = Field(description="Whether an event needs a change.", examples=[False])
    url: str = Field(description="Where events are sent.", examples=[EXAMPLE["url"]])
    enabled: bool = Field(description="Whether forecasts are judged by it.", examples=[True])
    problem: str | None = Field(
        description="Why it was switched off, or what of the last forecast it could not be judged on.",
        examples=[None],
    )
    created_at: datetime = Field(description="When it was made.", examples=["2023-01-02T08:00:00Z"])

    @classmethod
    def of(cls, rule: Rule) -> Self:
        return cls(
            id=rule.id,
            name=rule.name,
            metric=rule.metric,
            where=rule.where.to_json(),
            threshold=rule.threshold,
            model=rule.model,
            condition=condition_to_json(rule.condition),
            only_changes=rule.only_changes,
            url=rule.url,
            enabled=rule.enabled,
            problem=rule.problem,
            created_at=rule.created_at,
        )


class NewRule(RuleState):
    """A rule that was just made."""

    secret: str = Field(
        description="What its deliveries are signed with. It is shown this once.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )


class DeliveryState(BaseModel):
    """An event on its way to the receiver of a rule."""

    id: UUID = Field(description="Its `webhook-id`, the same for every attempt.")
    rule_id: UUID = Field(description="The rule that it is of.")
    forecast_id: UUID | None = Field(description="The forecast that it is about; null: it is a test.")
    status: DeliveryStatus = Field(description="`failed`: it is not tried any more.")
    attempts: int = Field(description="How often it was tried.", examples=[1])
    last_status: int | None = Field(
        description="HTTP status that the last attempt brought; null: none.", examples=[200]
    )
    last_error: str | None = Field(description="Why the last attempt did not deliver it.", examples=[None])
    next_at: datetime | None = Field(description="When it is tried next; null when it has ended.")
    created_at: datetime = Field(description="When it was put into the outbox.")
    finished_at: datetime | None = Field(description="When it was delivered, or given up.")

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        next_at = delivery.due_at if delivery.status == "pending" else None
        values = {name: value for name, value in vars(delivery).items() if name != "due_at"}
        return cls(**values, next_at=next_at)


RuleId = Annotated[UUID, Path(description="Id of the rule.")]

router = APIRouter(prefix="/alerts", tags=["alerts"])
_WRITE, _READ = [scope("write")], [scope("read")]


@router.post(
    "/rules", status_code=201, dependencies=_WRITE, summary="Make an alert rule", responses=problems(WebhookAddress)
)
async def make_rule(body: RuleBody, response: Response, services: Services) -> NewRule:
    """Each forecast that succeeds from now on is judged by it, and what it finds is sent to its URL, signed.

    The answer holds the secret, once.
    """
    rule = await services.alerts.add(body.rule())
    response.headers["Location"] = f"/alerts/rules/{rule.id}"
    return NewRule(**dict(RuleState.of(rule)), secret=rule.secret)


@router.get("/rules", dependencies=_READ, summary="List alert rules", responses=problems(BadCursor))
async def list_rules(services: Services, paging: PagingParameters) -> Page[RuleState]:
    """Newest first."""
    rules = await services.alerts.rules(paging.after(tuple[datetime, UUID]), paging.limit + 1)
    return paging.page([RuleState.of(rule) for rule in rules], [(rule.created_at, rule.id) for rule in rules])


@router.get("/rules/{rule_id}", dependencies=_READ, summary="Show an alert rule", responses=problems(NotFound))
async def show_rule(rule_id: RuleId, services: Services) -> RuleState:
    """All but its secret."""
    return RuleState.of(await services.alerts.get(rule_id))


@router.patch("/rules/{rule_id}", dependencies=_WRITE, summary="Switch an alert rule", responses=problems(NotFound))
async def switch_rule(rule_id: RuleId, body: Switch, services: Services) -> RuleState:
    """On or off. Off, what is still to be delivered for it has failed."""
    return RuleState.of(await services.alerts.switch(rule_id, body.enabled))


@router.delete(
    "/rules/{rule_id}",
    status_code=204,
    dependencies=_WRITE,
    summary="Delete an alert rule",
    responses=problems(NotFound),
)
async def delete_rule(rule_id: RuleId, services: Services) -> None:
    """With all its deliveries, also those that are still to be made."""
    await services.alerts.delete(rule_id)


@router.post(
    "/rules/{rule_id}/test",
    status_code=202,
    dependencies=_WRITE,
    summary="Send a test event",
    responses=problems(NotFound),
)
async def test_rule(rule_id: RuleId, services: Services) -> DeliveryState:
    """An event of type `risk.test`, the way of all others; `GET /alerts/deliveries` shows what came of it."""
    return DeliveryState.of(await services.alerts.test(rule_id))


@router.get("/deliveries", dependencies=_READ, summary="List alert deliveries", responses=problems(BadCursor))
async def list_deliveries(
    services: Services,
    paging: PagingParameters,
    rule_id: Annotated[UUID | None, Query(description="Only those of this rule.")] = None,
    status: Annotated[
        Literal["pending", "delivered", "failed"] | None, Query(description="Only those.", examples=["pending"])
    ] = None,
) -> Page[DeliveryState]:
    """Newest first; those that ended are kept for 30 days."""
    found = await services.alerts.deliveries(rule_id, status, paging.after(tuple[datetime, UUID]), paging.limit + 1)
    return paging.page([DeliveryState.of(one) for one in found], [(one.created_at, one.id) for one in found])

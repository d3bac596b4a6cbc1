"""What paid runs cost over HTTP, by forecast, model or day (what the figures are worth: docs/costs.md)."""

from datetime import UTC, date, datetime, time
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.strict import Time, check_order
from app.api.wired import Services
from app.domain.cost import Balance, dollars
from app.errors import BadCursor

router = APIRouter(tags=["costs"])


class CostSums(BaseModel):
    """Sums of ledger lines. Of what is closed, reserved + overrun = settled + released."""

    reserved_usd: float = Field(description="Set aside before runs started.", examples=[0.2])
    settled_usd: float = Field(
        description="Spent, as an estimate: billed seconds × configured prices.", examples=[0.131452]
    )
    released_usd: float = Field(description="Set aside and not spent.", examples=[0.068548])
    overrun_usd: float = Field(description="Spent beyond what was set aside.", examples=[0.0])
    committed_usd: float = Field(
        description="Spent or still set aside: reserved + overrun − released.", examples=[0.131452]
    )


class CostItem(CostSums):
    """The lines of one forecast, model or day."""

    group: str = Field(
        description="Id of the forecast (also of a deleted one), the model, or the day of booking in UTC.",
        examples=["2023-01-31"],
    )


class CostMonth(BaseModel):
    """How the present month stands, in UTC."""

    start: date = Field(description="Its first day.", examples=["2023-01-01"])
    committed_usd: float = Field(description="Spent or still set aside this month.", examples=[1.41])
    budget_usd: float = Field(description="What may be committed in a month; 0: no paid run starts.", examples=[10.0])
    remaining_usd: float = Field(description="What a new run may still reserve.", examples=[8.59])


class CostPage(Page[CostItem]):
    """Costs by group, the group that began last first."""

    by: Literal["forecast", "model", "day"] = Field(description="What makes the groups.", examples=["day"])
    total: CostSums = Field(description="All lines from `start` to `end`, on this page or not.")
    month: CostMonth = Field(description="The present month against its budget, whatever was asked for.")
    currency: Literal["USD"] = Field("USD", description="Of every amount.")
    basis: str = Field(
        description="How settled amounts come about.", examples=["estimated: billed seconds × configured prices"]
    )


@router.get("/costs", dependencies=[scope("read")], summary="What paid runs cost", responses=problems(BadCursor))
async def costs(
    services: Services,
    paging: PagingParameters,
    by: Annotated[
        Literal["forecast", "model", "day"], Query(description="What makes the groups.", examples=["day"])
    ] = "forecast",
    start: Annotated[
        Time | None, Query(description="First time of booking, inclusive.", examples=["2023-01-01"])
    ] = None,
    end: Annotated[Time | None, Query(description="Last time of booking, inclusive.", examples=["2023-01-31"])] = None,
) -> CostPage:
    """Sums out of the append-only ledger: reserved, settled, released, overrun.

    AWS sends its bill later; what is settled here is an estimate from the seconds that it billed.
    """
    check_order(start, end)
    first, last = _bound(start, time.min), _bound(end, time.max)
    after = paging.after(tuple[int])
    report = await services.costs.report(first, last, by, before=after[0] if after else None, limit=paging.limit + 1)
    page = paging.page(
        [CostItem(group=group.group, **_sums(group.balance)) for group in report.groups],
        [(group.position,) for group in report.groups],
    )
    return CostPage(
        items=page.items,
        next_cursor=page.next_cursor,
        by=by,
        total=CostSums(**_sums(report.total)),
        month=CostMonth(
            start=report.month_start.date(),
            committed_usd=dollars(report.month_committed),
            budget_usd=dollars(report.monthly_budget),
            remaining_usd=dollars(max(report.monthly_budget - report.month_committed, 0)),
        ),
        basis=report.basis,
    )


def _sums(balance: Balance) -> dict[str, float]:
    return {
        "reserved_usd": dollars(balance.reserved),
        "settled_usd": dollars(balance.settled),
        "released_usd": dollars(balance.released),
        "overrun_usd": dollars(balance.overrun),
        "committed_usd": dollars(balance.committed),
    }


def _bound(moment: date | datetime | None, clock: time) -> datetime | None:
    """An inclusive bound in UTC: a bare date is its first or last instant."""
    if moment is None or isinstance(moment, datetime):
        return moment
    return datetime.combine(moment, clock, UTC)

"""The page of savings: what could be smaller or given up, with each sum, and the fleet's profiles of load."""

from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.api.auth import Reader
from app.api.pages import PagingParameters
from app.api.wired import Services
from app.domain.keys import Scope
from app.errors import Complaint, Invalid, NotFound
from app.services.fleets import Question
from app.services.recommendations import Kind, Selection, totals
from app.web.pages import OFFERED, forecast_id_of, number_of
from app.web.render import PageRoute, page

KINDS = {"downsize": "Smaller servers", "consolidate": "Servers given up"}
REASONS = {
    "no_forecast": "have no forecast of",
    "no_values": "have no values of",
    "no_threshold": "have no threshold for",
    "no_room": "would have too little room at half the size",
    "host": "take others in",
}

router = APIRouter(include_in_schema=False, route_class=PageRoute, default_response_class=HTMLResponse)

Text = Annotated[str, Query()]


@router.get("/pages/savings")
async def savings(
    request: Request,
    services: Services,
    caller: Reader,
    paging: PagingParameters,
    forecast_id: Text = "",
    threshold: Text = "",
    epsilon: Text = "",
    kind: Kind | Literal[""] = "",
    region: Text = "",
) -> HTMLResponse:
    """Every recommendation of a dataset, the largest saving first, page by page."""
    common: dict[str, Any] = {
        "caller": caller,
        "offered": await services.forecasts.newest("succeeded", None, OFFERED),
        "forecast_id": forecast_id,
        "chosen": {"kind": kind, "region": region, "threshold": threshold, "epsilon": epsilon},
        "KINDS": KINDS,
        "REASONS": REASONS,
        # As it came: a cursor is bound to the filters of its own request.
        "query": urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]),
    }
    after = paging.after(tuple[list[UUID], int])
    question = Question(forecast_id_of(forecast_id), threshold=number_of("threshold", threshold))
    try:
        advice = await services.recommendations.advice(question, _share(epsilon), after[0] if after else ())
    except NotFound:
        if forecast_id:
            raise
        return page("savings.html", advice=None, **common)
    first = (await services.forecasts.get(advice.forecasts[0])).request
    _, profiles = await services.profiles.answer(Question(advice.forecasts[0]))
    chosen = advice.select(Selection((kind,) if kind else (), (), (region,) if region else ()))
    start = after[1] if after else 0
    items = chosen[start : start + paging.limit + 1]
    shown = paging.page(items, [(advice.forecasts, start + place) for place in range(1, len(items) + 1)])
    return page(
        "savings.html",
        advice=advice,
        may_write=Scope.WRITE in caller.scopes,
        dataset_id=str(first.dataset_id),
        horizon=first.horizon,
        items=shown.items,
        next_cursor=shown.next_cursor,
        first_page=after is None,
        sums=totals(chosen),
        counts={of: sum(item.kind == of for item in chosen) for of in KINDS},
        regions=sorted({str(item.attributes["region"]) for item in advice.items if "region" in item.attributes}),
        profiles=profiles.profiles,
        **common,
    )


def _share(epsilon: str) -> float | None:
    value = number_of("epsilon", epsilon)
    if value is not None and not 0.0 < value <= 0.5:
        detail = f"{epsilon} is no probability from above 0 to 0.5."
        raise Invalid(detail, errors=[Complaint("?epsilon", "probability", detail)])
    return value

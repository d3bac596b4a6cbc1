"""The pages: an overview, one forecast, one server of it, and the whole fleet's risk.

A page gathers what it shows from the services and hands it to a template; the numbers are theirs, so that a page and
the API never differ. Little fans are drawn here (charts.py), the two large charts by plotly.js in the browser.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlencode
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app import forecasters
from app.api.auth import OPEN, Reader
from app.api.pages import PagingParameters
from app.api.wired import Services
from app.domain.dataset import Dataset, Unit
from app.domain.forecast import Forecast, rank
from app.domain.keys import Scope
from app.domain.panel import Array
from app.domain.risk import LEVELS, default_threshold
from app.domain.run import Run
from app.errors import Complaint, HeadroomError, Invalid, NoResults, NotFound, ThresholdRequired
from app.services import by_hand
from app.services.answers import NOMINAL_COVERAGE, Selection
from app.services.comparisons import why
from app.services.fleets import Limits, Question
from app.services.risk import Answer, Filters, Group, GroupCount, ServerRisk, Sort
from app.storage.results import ResultMatrix
from app.web import charts, what_if
from app.web.charts import Fan
from app.web.render import CAUSES, PageRoute, page

_plotly = find_spec("plotly")
assert _plotly is not None
assert _plotly.origin is not None
PLOTLY = Path(_plotly.origin).parent / "package_data"
"""plotly.js, as the wheel ships it."""

SOONEST = 12
"""Servers on the overview."""

PLOTTED = 500
"""Most servers in one scatter plot."""

RECENT = 10
OFFERED = 50
"""Forecasts and datasets listed on the overview; those offered for choosing."""

router = APIRouter(include_in_schema=False, route_class=PageRoute, default_response_class=HTMLResponse)

Text = Annotated[str, Query()]


@dataclass(frozen=True)
class Glance:
    """A forecast's risk in short: counts per level, some servers with their fans."""

    forecast: Forecast
    dataset: Dataset
    model: str
    answer: Answer
    total: GroupCount
    groups: dict[str, list[str]]
    fans: dict[str, Fan]

    @property
    def unit(self) -> Unit:
        return self.dataset.contents.units[self.answer.metric]


@router.get("/")
async def overview(services: Services, caller: Reader, forecast_id: Text = "", threshold: Text = "") -> HTMLResponse:
    """What a planner wants to know first, and where to go on from there."""
    question = Question(forecast_id_of(forecast_id), threshold=number_of("threshold", threshold))
    recent = await services.forecasts.newest(None, None, RECENT)
    datasets = await services.datasets.newest(None, OFFERED)
    glance, trouble = None, None
    if recent:
        try:
            glance = await _glance(services, question, Filters(), "runway", SOONEST)
        except (NotFound, NoResults, ThresholdRequired) as error:
            if question.forecast_id is not None and isinstance(error, NotFound):
                raise
            trouble = error
    return page(
        "overview.html",
        caller=caller,
        may_write=Scope.WRITE in caller.scopes,
        may_pay=Scope.PAID in caller.scopes,
        emulated=_emulated(services),
        max_cost_usd=services.settings.max_cost_usd,
        glance=glance,
        trouble=trouble,
        asks_threshold=isinstance(trouble, ThresholdRequired),
        forecast_id=forecast_id,
        recent=recent,
        datasets=datasets,
        names={dataset.id: dataset.name for dataset in datasets},
        models=sorted(forecasters.names(), key=lambda name: (name != "auto", name)),
    )


@router.get("/pages/risk")
async def risk(
    request: Request,
    services: Services,
    caller: Reader,
    paging: PagingParameters,
    forecast_id: Text = "",
    model: Text = "",
    threshold: Text = "",
    level: Text = "",
    business_unit: Text = "",
    region: Text = "",
    criticality: Text = "",
    sort: Sort = "runway",
) -> HTMLResponse:
    """Every server of a forecast, filtered, sorted, page by page."""
    chosen = {
        "level": level,
        "business_unit": business_unit,
        "region": region,
        "criticality": criticality,
        "model": model,
        "threshold": threshold,
        "sort": sort,
    }
    filters = Filters(
        *(((value,) if value else ()) for value in (level, business_unit, region, criticality)),
    )
    question = Question(forecast_id_of(forecast_id), model=model or None, threshold=number_of("threshold", threshold))
    offered = await services.forecasts.newest("succeeded", None, OFFERED)
    common: dict[str, Any] = {
        "caller": caller,
        "offered": offered,
        "chosen": chosen,
        "forecast_id": forecast_id,
        # As it came: a cursor is bound to the filters of its own request.
        "query": urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]),
    }
    try:
        after = paging.after(tuple[UUID, str])
        glance = await _glance(services, question, filters, sort, paging.limit + 1, after)
    except (NotFound, ThresholdRequired) as error:
        if forecast_id and isinstance(error, NotFound):
            raise
        asks = isinstance(error, ThresholdRequired)
        return page("risk.html", glance=None, trouble=error, asks_threshold=asks, **common)
    asked = await what_if.panel(
        request,
        services,
        glance.forecast.id,
        glance.model,
        question.threshold,
        glance.forecast.request.horizon,
        glance.answer.frequency,
    )
    positions = [(glance.forecast.id, server.server_id) for server in glance.answer.servers]
    shown = paging.page(glance.answer.servers, positions)
    return page(
        "risk.html",
        status=asked.problem.status if asked.problem else 200,
        charts=True,
        what_if=asked,
        glance=replace(glance, answer=replace(glance.answer, servers=shown.items)),
        points=await _points(services, replace(question, forecast_id=glance.forecast.id), filters),
        next_cursor=shown.next_cursor,
        first_page=paging.cursor is None,
        **common,
    )


@router.get("/pages/forecasts/{forecast_id}")
async def forecast(forecast_id: UUID, services: Services, caller: Reader, threshold: Text = "") -> HTMLResponse:
    """One forecast: how far it is; when it has ended, its models compared and its servers at risk."""
    found = await services.forecasts.get(forecast_id)
    ranked: list[Run] = []
    glance, trouble = None, None
    if found.is_terminal:
        try:
            _, ranked = await services.answers.comparison(forecast_id)
            question = Question(forecast_id, threshold=number_of("threshold", threshold))
            glance = await _glance(services, question, Filters(), "runway", SOONEST)
        except (NoResults, ThresholdRequired) as error:
            trouble = error
    return page(
        "forecast.html",
        caller=caller,
        may_write=Scope.WRITE in caller.scopes,
        emulated=_emulated(services),
        takes_results=found.is_terminal and by_hand.refusal(found) is None,
        brought=any(by_hand.is_by_hand(run) for run in found.runs),
        forecast=found,
        dataset=await services.datasets.get(found.request.dataset_id),
        ranked=ranked,
        worst=max((_score(run, "wql") or 0.0 for run in ranked), default=0.0),
        nominal=NOMINAL_COVERAGE,
        glance=glance,
        trouble=trouble,
        asks_threshold=isinstance(trouble, ThresholdRequired),
    )


@router.get("/pages/forecasts/{forecast_id}/servers/{server_id:path}")
async def server(
    forecast_id: UUID, server_id: str, services: Services, caller: Reader, model: Text = "", threshold: Text = ""
) -> HTMLResponse:
    """One server: its history and its fan, when it runs out, and how good each model has been for it."""
    selection = Selection((model,) if model else (), (server_id,))
    found, runs = await services.answers.chosen(forecast_id, selection)
    succeeded = rank(found.runs)
    limit = number_of("threshold", threshold)
    matrix = await services.answers.server(runs[0], server_id)
    judged, others = await _judged(services, Question(forecast_id, model=runs[0].model, threshold=limit), server_id)
    dataset = await services.datasets.get(found.request.dataset_id)
    history = await services.datasets.history(dataset.id, found.request.metric, server_id)
    quantiles = {f"p{100 * level:g}": matrix.values[0, :, matrix.levels.index(level)] for level in (0.1, 0.5, 0.9)}
    unit = dataset.contents.units[found.request.metric]
    drawn = judged.threshold if judged else default_threshold(unit)
    scores = await services.answers.comparison_by_server(succeeded, None, 1, only=server_id)
    return page(
        "server.html",
        charts=True,
        caller=caller,
        forecast=found,
        dataset=dataset,
        server_id=server_id,
        model=runs[0].model,
        succeeded=succeeded,
        judged=judged,
        others=others,
        unit=unit,
        chosen_threshold=threshold,
        scores=scores[0].models if scores else {},
        why={
            run.model: why(run, of.weights.get(run.model), None, tested=of.is_tested(run.model))
            for of in scores
            for run in succeeded
        },
        weights=scores[0].weights.get(runs[0].model, {}) if scores else {},
        nominal=NOMINAL_COVERAGE,
        fallback=matrix.fallback[0],
        rows=_rows(matrix),
        figures=charts.figures(history, matrix.times()[0], quantiles, drawn, judged.peaks if judged else (), CAUSES),
    )


@router.get("/sign-in", dependencies=[OPEN])
async def sign_in() -> HTMLResponse:
    return page("problem.html", problem={"status": 401, "title": "Sign in", "detail": "", "errors": []})


def _emulated(services: Services) -> bool:
    """Whoever reads of canvas is told when its AWS is none."""
    return services.settings.aws == "emulated"


async def _glance(
    services: Services,
    question: Question,
    filters: Filters,
    sort: Sort,
    limit: int,
    after: tuple[UUID, str] | None = None,
) -> Glance:
    """Raises what the risk service raises."""
    answer = await services.risk.servers(question, filters, sort, after, limit)
    question = replace(question, forecast_id=answer.forecast_id)
    groups, total = await groups_of(services, question)
    forecast = await services.forecasts.get(answer.forecast_id)
    dataset = await services.datasets.get(forecast.request.dataset_id)
    model = question.model or forecast.best_model
    assert model is not None  # else there were no results to judge
    return Glance(
        forecast,
        dataset,
        model,
        answer,
        total,
        groups,
        await _fans(services, forecast, model, answer.servers),
    )


async def groups_of(services: Services, question: Question) -> tuple[dict[str, list[str]], GroupCount]:
    """What servers can be told apart by, with the names of its groups; and the count of all servers."""
    summaries = {by: await services.risk.summary(question, by) for by in get_args(Group)}
    named = {by: [one.group for one in found.groups if one.group is not None] for by, found in summaries.items()}
    return {by: names for by, names in named.items() if len(names) > 1}, summaries["region"].total


async def _fans(services: Services, forecast: Forecast, model: str, servers: list[ServerRisk]) -> dict[str, Fan]:
    """The little fan of each server."""
    if not servers:
        return {}
    thresholds = {server.server_id: server.threshold for server in servers}
    selection = Selection((model,), tuple(thresholds))
    _, runs = await services.answers.chosen(forecast.id, selection)
    fans = {}
    async for table in services.answers.tables(forecast, runs, selection):
        ids = table.column("server_id").to_pylist()[:: forecast.request.horizon]
        p10, p50, p90 = (
            table.column(name).to_numpy().reshape(len(ids), -1).astype(np.float64) for name in ("p10", "p50", "p90")
        )
        for row, name in enumerate(ids):
            fans[name] = charts.fan(p10[row], p50[row], p90[row], thresholds[name])
    return fans


async def _points(services: Services, question: Question, filters: Filters) -> dict[str, Any]:
    """The scatter plot: runway against breach probability of the most urgent servers."""
    answer = await services.risk.servers(question, filters, "runway", None, PLOTTED)
    forecast = await services.forecasts.get(answer.forecast_id)
    servers = [
        {
            "id": server.server_id,
            "level": server.level,
            "runway": server.runway_conservative,
            "probability": round(server.breach_probability, 4),
            "maxP90": round(server.max_p90, 2),
        }
        for server in answer.servers
    ]
    horizon = forecast.request.horizon / answer.frequency.per_day
    return {"forecast": str(forecast.id), "horizon": horizon, "levels": list(LEVELS), "servers": servers}


async def _judged(services: Services, question: Question, server_id: str) -> tuple[ServerRisk | None, list[ServerRisk]]:
    """The server's risk in this forecast (None where nobody knows a threshold), and that of its other metrics."""
    try:
        answer = await services.risk.servers(question, Filters(server_id=(server_id,)), "runway", None, 1)
    except ThresholdRequired:
        return None, []
    judged = answer.servers[0]
    try:
        newest, _ = await services.risk.server(server_id, Limits())
    except HeadroomError:  # the forecast that is shown need not be the newest, and a newer one may be going on
        newest = []
    return judged, [other for other in newest if other.metric != judged.metric]


def _rows(matrix: ResultMatrix) -> list[tuple[str, list[float]]]:
    """The forecast in numbers: each time with its p10, p50 and p90."""
    columns = [matrix.levels.index(level) for level in (0.1, 0.5, 0.9)]
    values: Array = matrix.values[0][:, columns].astype(np.float64)
    times = [matrix.frequency.show(time) for time in matrix.times()[0]]
    return list(zip(times, values.tolist(), strict=True))


def _score(run: Run, name: str) -> float | None:
    return (run.scores or {}).get(name)


def forecast_id_of(text: str) -> UUID | None:
    """Of a form's field, which is empty where nothing was chosen. What cannot be an id is an id of nothing."""
    try:
        return UUID(text) if text else None
    except ValueError:
        raise NotFound(f"There is no forecast {text}.") from None


def number_of(name: str, text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        detail = f"{text!r} is not a number."
        raise Invalid(detail, errors=[Complaint(f"?{name}", "float_parsing", detail)]) from None

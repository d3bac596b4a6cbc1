"""Forecasts over HTTP: submit, look, follow, cancel, delete, and read what came out."""

from collections.abc import AsyncIterator
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.responses import JSONResponse

from app.api.auth import Reader, Writer, scope
from app.api.exports import FORMATS, GUARD, stream, wanted
from app.api.forecast_models import (
    AccuracyState,
    Comparison,
    ComparisonByGroup,
    ComparisonByServer,
    EstimateState,
    ForecastBody,
    ForecastState,
    GroupComparison,
    ModelScores,
    QuantilePage,
    RunState,
    ServerComparison,
    ServerModelScores,
)
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.strict import Text, Time, check_order
from app.api.wired import Services
from app.domain import quantiles
from app.domain.forecast import Forecast
from app.domain.keys import Principal, Scope
from app.domain.run import Run
from app.errors import (
    AwsUnavailable,
    BadRequest,
    BudgetExceeded,
    Conflict,
    ForecastNotReady,
    IdempotencyKeyRequired,
    IdempotencyMismatch,
    InFlight,
    NoResults,
    NotFound,
    QueueFull,
    WorkLimit,
)
from app.services.answers import NOMINAL_COVERAGE, Selection, ServerScores
from app.services.comparisons import why

router = APIRouter(prefix="/forecasts", tags=["forecasts"])

ForecastId = Annotated[UUID, Path(description="The forecast.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="At most 255 visible characters; the same key and body make one forecast. Required for `canvas`.",
        examples=["monthly-review-2023-01"],
    ),
]
SSE = "text/event-stream"


@router.post(
    "",
    status_code=202,
    summary="Submit a forecast",
    responses=problems(
        BadRequest,
        IdempotencyKeyRequired,
        BudgetExceeded,
        NotFound,
        InFlight,
        IdempotencyMismatch,
        WorkLimit,
        QueueFull,
        AwsUnavailable,
    ),
)
async def submit(
    body: ForecastBody, response: Response, services: Services, caller: Writer, idempotency_key: IdempotencyKey = None
) -> ForecastState:
    """Accept a forecast and queue one run per model. Follow it at `Location` until its status is final."""
    _paid(body, caller, idempotency_key)
    made = await services.forecasts.submit(
        body.request(services.settings.max_cost_usd), caller.key_id, _visible(idempotency_key)
    )
    response.headers["Location"] = f"/forecasts/{made.forecast.id}"
    response.headers["Retry-After"] = "2"
    if made.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return ForecastState.of(made.forecast)


@router.post("/estimate", summary="Estimate a forecast", responses=problems(NotFound, WorkLimit))
async def estimate(body: ForecastBody, services: Services, caller: Reader) -> EstimateState:
    """What a forecast would do: its runs, its servers, its cost. Needs no Idempotency-Key and starts nothing."""
    return EstimateState.of(await services.forecasts.estimate(body.request(services.settings.max_cost_usd)))


@router.get("", dependencies=[scope("read")], summary="List forecasts")
async def listed(
    services: Services,
    paging: PagingParameters,
    status: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
        Query(description="Only forecasts in this status."),
    ] = None,
) -> Page[ForecastState]:
    """Newest first."""
    found = await services.forecasts.newest(status, paging.after(tuple[datetime, UUID]), paging.limit + 1)
    return paging.page([ForecastState.of(one) for one in found], [(one.created_at, one.id) for one in found])


@router.get("/{forecast_id}", dependencies=[scope("read")], summary="Show a forecast", responses=problems(NotFound))
async def show(forecast_id: ForecastId, services: Services) -> ForecastState:
    """Its status, its runs with their progress, its cost, and what was asked for."""
    return ForecastState.of(await services.forecasts.get(forecast_id))


@router.post(
    "/{forecast_id}/cancel",
    dependencies=[scope("write")],
    status_code=202,
    summary="Cancel a forecast",
    responses=problems(NotFound, Conflict),
)
async def cancel(forecast_id: ForecastId, services: Services) -> ForecastState:
    """Stop the runs that have not ended; results of those that have are kept."""
    return ForecastState.of(await services.forecasts.cancel(forecast_id))


@router.delete(
    "/{forecast_id}",
    dependencies=[scope("write")],
    status_code=204,
    summary="Delete a forecast",
    responses=problems(NotFound, Conflict),
)
async def delete(forecast_id: ForecastId, services: Services) -> None:
    """A forecast that has ended, with its runs and results."""
    await services.forecasts.delete(forecast_id)


@router.get(
    "/{forecast_id}/events",
    dependencies=[scope("read")],
    summary="Follow a forecast",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events `run`, `forecast` and at last `end`, with data as in the GET; a comment every 15 s.",
            "content": {
                SSE: {"schema": {"type": "string"}, "example": 'event: run\nid: 7\ndata: {"model": "auto"}\n\n'}
            },
        },
        204: {"description": "The forecast has ended and everything was sent before."},
        **problems(NotFound),
    },
)
async def events(
    forecast_id: ForecastId,
    services: Services,
    last_event_id: Annotated[int | None, Header(description="Resume behind this event.", examples=[7])] = None,
) -> Response:
    """Server-sent events, for pages and scripts that would rather not poll."""
    forecast = await services.forecasts.get(forecast_id)
    newest = max([forecast.revision, *(run.revision for run in forecast.runs)])
    if forecast.is_terminal and last_event_id is not None and last_event_id >= newest:
        return Response(status_code=204)
    changes = services.forecasts.follow(forecast_id, last_event_id)
    return StreamingResponse(_sent(changes), media_type=SSE, headers={"Cache-Control": "no-store"})


@router.get(
    "/{forecast_id}/quantiles",
    dependencies=[scope("read")],
    summary="Read the quantiles",
    response_model=QuantilePage,
    responses={
        200: {
            "description": "A page of rows; by another `Accept` the whole selection in that form, streamed. " + GUARD,
            "content": {media_type: {} for media_type in FORMATS},
        },
        **problems(NotFound, ForecastNotReady, NoResults),
    },
)
async def read_quantiles(
    forecast_id: ForecastId,
    request: Request,
    services: Services,
    paging: PagingParameters,
    server_id: Annotated[list[Text] | None, Query(description="Only these servers; repeats.")] = None,
    model: Annotated[list[Text] | None, Query(description="Of these models; repeats. The best one by default.")] = None,
    start: Annotated[Time | None, Query(description="First time, inclusive.", examples=["2023-01-01"])] = None,
    end: Annotated[Time | None, Query(description="Last time, inclusive.", examples=["2023-03-31"])] = None,
    raw: Annotated[
        bool,
        Query(description="CSV: no apostrophe before text that a spreadsheet takes for a formula.", examples=[True]),
    ] = False,
) -> Response:
    """Quantile forecasts by server, model and time. `Accept` picks JSON pages, or CSV, Parquet or Arrow whole."""
    check_order(start, end)
    selection = Selection(
        models=tuple(model or ()),
        server_ids=tuple(server_id or ()),
        start=_bound(start, last=False),
        end=_bound(end, last=True),
    )
    forecast, runs = await services.answers.chosen(forecast_id, selection)
    form = wanted(request.headers.get("accept", ""))
    if form is not None:
        tables = services.answers.tables(forecast, runs, selection)
        return await stream(tables, form, f"forecast-{forecast_id}", raw=raw)
    return await _quantile_page(services, forecast, runs, selection, paging)


@router.get(
    "/{forecast_id}/comparison",
    dependencies=[scope("read")],
    summary="Compare the models",
    responses=problems(NotFound, ForecastNotReady, NoResults),
)
async def comparison(
    forecast_id: ForecastId,
    services: Services,
    paging: PagingParameters,
    by: Annotated[
        Text | None,
        Query(
            description="`server_id`: per server, with an ensemble's weights. `month`: per 30 days of the horizon, of"
            " hourly data per day. Or an attribute of the dataset, such as `business_unit`: per group of servers.",
            examples=["server_id", "month", "region"],
        ),
    ] = None,
) -> Comparison | ComparisonByServer | ComparisonByGroup:
    """All models on the same windows by the same definitions, best first."""
    forecast, ranked = await services.answers.comparison(forecast_id)
    whole: dict[str, Any] = {
        "windows": _scored_windows(forecast, ranked),
        "horizon": forecast.request.horizon,
        "best_model": forecast.best_model,
    }
    if by is None:
        return Comparison(models=[_scores(run, place) for place, run in enumerate(ranked, 1)], **whole)
    if by == "server_id":
        last = paging.after(tuple[str])
        rows = await services.answers.comparison_by_server(ranked, last[0] if last else None, paging.limit + 1)
        page = paging.page([_of_server(row, ranked) for row in rows], [[row.server_id] for row in rows])
        return ComparisonByServer(items=page.items, next_cursor=page.next_cursor, **whole)
    after = paging.after(tuple[int])
    first = after[0] + 1 if after else 0
    groups = (await services.comparisons.by(by, forecast, ranked))[first:][: paging.limit + 1]
    shown = paging.page(
        [GroupComparison.of(group) for group in groups], [[first + number] for number in range(len(groups))]
    )
    return ComparisonByGroup(items=shown.items, next_cursor=shown.next_cursor, **whole)


@router.get(
    "/{forecast_id}/accuracy",
    dependencies=[scope("read")],
    summary="Compare with what came",
    responses=problems(NotFound, ForecastNotReady, NoResults),
)
async def accuracy(forecast_id: ForecastId, services: Services) -> AccuracyState:
    """The same figures against rows that came later, in the newest version of the dataset, and the live coverage."""
    return AccuracyState.of(await services.accuracy.of(forecast_id))


def _paid(body: ForecastBody, caller: Principal, key: str | None) -> None:
    """A paid run has an owner who may pay, and a key that keeps it from being paid twice."""
    if "canvas" not in body.models:
        return
    caller.require(Scope.PAID)
    if key is None:
        raise IdempotencyKeyRequired(
            "`canvas` costs money: send an Idempotency-Key, so that a repeat isn't paid again."
        )


def _visible(key: str | None) -> str | None:
    if key is not None and not (1 <= len(key) <= 255 and all("!" <= character <= "~" for character in key)):
        raise BadRequest("An Idempotency-Key is 1 to 255 visible ASCII characters.")
    return key


def _bound(time: date | datetime | None, *, last: bool) -> np.datetime64 | None:
    """An inclusive bound: a bare date as the end means all of that day."""
    if time is None:
        return None
    if not isinstance(time, datetime):
        day = np.datetime64(time, "s")
        return day + np.timedelta64(86_399, "s") if last else day
    return np.datetime64(time.replace(tzinfo=None), "s")


async def _quantile_page(
    services: Services, forecast: Forecast, runs: tuple[Run, ...], selection: Selection, paging: PagingParameters
) -> JSONResponse:
    rows = await services.answers.page(forecast, runs, selection, paging.after(tuple[str, int, int]), paging.limit + 1)
    names = [quantiles.name(level) for level in forecast.request.levels]
    shown = rows[: paging.limit]
    return JSONResponse(
        {
            "forecast_id": str(forecast.id),
            "metric": forecast.request.metric,
            "quantiles": list(forecast.request.levels),
            "items": [
                {
                    "server_id": row.server_id,
                    "model": row.model,
                    "timestamp": row.timestamp,
                    **dict(zip(names, row.values, strict=True)),
                }
                for row in shown
            ],
            "next_cursor": paging.next_cursor(shown[-1].position if len(rows) > paging.limit else None),
        },
        headers={"Vary": "Accept"},
    )


def _scored_windows(forecast: Forecast, ranked: list[Run]) -> int:
    """Windows that were really scored: a short history has fewer than were asked for."""
    made = [int(str(run.report["windows"])) for run in ranked if run.report and run.scores]
    return min(forecast.request.backtest_windows, max(made, default=0))


def _of_server(row: ServerScores, ranked: list[Run]) -> ServerComparison:
    return ServerComparison(
        server_id=row.server_id,
        models=[
            ServerModelScores(
                model=run.model,
                weights=row.weights.get(run.model),
                fallback=row.fallbacks.get(run.model),
                why=why(
                    run,
                    row.weights.get(run.model),
                    row.fallbacks.get(run.model),
                    tested=row.is_tested(run.model),
                ),
                **row.models[run.model],
            )
            for run in ranked
        ],
    )


def _scores(run: Run, place: int) -> ModelScores:
    figures = run.scores or {}
    return ModelScores(
        model=run.model,
        rank=place if figures.get("wql") is not None else None,
        smape=figures.get("smape"),
        mase=figures.get("mase"),
        mae=figures.get("mae"),
        rmse=figures.get("rmse"),
        wql=figures.get("wql"),
        coverage=figures.get("coverage"),
        nominal_coverage=NOMINAL_COVERAGE,
        servers=run.servers,
        seconds=run.seconds,
        cost_usd=run.actual_microusd / 1e6,
    )


async def _sent(changes: AsyncIterator[tuple[str, int, Forecast | Run] | None]) -> AsyncIterator[str]:
    async for change in changes:
        if change is None:
            yield ": still here\n\n"
            continue
        kind, revision, state = change
        shown = RunState.of(state) if isinstance(state, Run) else ForecastState.of(state)
        yield f"event: {kind}\nid: {revision}\ndata: {shown.model_dump_json()}\n\n"

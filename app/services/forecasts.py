"""Forecasts as their owners see them: estimated, submitted once, listed, followed, cancelled, deleted.

What becomes of a run is in runs; what comes out of it in answers.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from app import forecasters
from app.canvas.requests import quantile_limits
from app.domain.cost import dollars, microdollars
from app.domain.dataset import Dataset, Server
from app.domain.forecast import Forecast, ForecastRequest, status_of
from app.domain.panel import MIN_VALUES
from app.domain.run import Run, RunError
from app.errors import (
    AwsUnavailable,
    BudgetExceeded,
    Complaint,
    Conflict,
    HeadroomError,
    IdempotencyMismatch,
    InFlight,
    Invalid,
    NotFound,
    QueueFull,
    WorkLimit,
)
from app.failpoints import reach
from app.services.canvas import CANVAS, Canvas
from app.services.reuse import find, learned_anew
from app.storage import datasets as stored_datasets
from app.storage import forecasts as stored
from app.storage import runs as stored_runs
from app.storage.database import Connection, Database, LockTimeout
from app.storage.queue import Queue

TWIN_PATIENCE = 5.0
"""Seconds that a request waits for its twin with the same Idempotency-Key."""

WATCH = 0.5
"""Seconds between two looks of someone who follows a forecast."""

SILENCE = 15.0
"""Seconds after which someone who follows hears that nothing has changed."""

SECONDS = {
    "seasonal_naive": 0.001,
    "structural": 0.01,
    "gradient_boosting": 0.02,
    "statistical": 0.02,
    "auto": 0.04,
    "prophet": 0.3,
    "random_forest": 0.3,
    "autogluon": 0.8,
}
"""Rough seconds of work for one server with 1,000 rows and one back-test window."""


@dataclass(frozen=True)
class Limits:
    """`work`: servers × horizon × models × quantiles of one forecast. `queue`: runs that have not ended."""

    work: int
    queue: int


@dataclass(frozen=True)
class RunEstimate:
    model: str
    refusal: RunError | None
    seconds: float | None
    estimated_usd: float


@dataclass(frozen=True)
class Estimate:
    """What a request would do: its runs, the servers that count and those that don't with the reason."""

    runs: tuple[RunEstimate, ...]
    eligible: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...]

    @property
    def estimated_usd(self) -> float:
        return sum(run.estimated_usd for run in self.runs if run.refusal is None)


@dataclass(frozen=True)
class Submitted:
    forecast: Forecast
    replayed: bool


Change = tuple[str, int, Forecast | Run]
"""`run`, `forecast` or `end`, its revision, and the present state."""


class Forecasts:
    def __init__(self, database: Database, queue: Queue, canvas: Canvas, limits: Limits) -> None:
        self._database = database
        self._queue = queue
        self._canvas = canvas
        self._limits = limits

    async def estimate(self, request: ForecastRequest) -> Estimate:
        """What the request would do. Raises as `submit` would for a request that can't be met; starts nothing."""
        async with self._database.connect() as connection:
            dataset, servers = await self._checked(connection, request)
            return await self._estimate(connection, request, dataset, servers)

    async def submit(self, request: ForecastRequest, owner: str, key: str | None) -> Submitted:
        """Accept the request, once per (owner, key): its forecast, its runs and their ticks in one transaction."""
        digest = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode()).hexdigest()
        if key is not None and (earlier := await self._replay(owner, key, digest)):
            return earlier
        forecast_id = uuid4()
        try:
            async with self._database.begin() as connection:
                if key is not None and not await stored.reserve_key(connection, owner, key, digest, TWIN_PATIENCE):
                    twin = True
                else:
                    twin = False
                    await self._insert(connection, forecast_id, request, owner)
                    if key is not None:
                        await stored.bind_key(connection, owner, key, forecast_id)
                reach("in_submit")
            reach("after_submit")
        except LockTimeout:
            raise InFlight(
                "A request with this Idempotency-Key is still being answered. Send it again in a moment."
            ) from None
        if twin and key is not None:
            earlier = await self._replay(owner, key, digest)
            assert earlier is not None  # the row was there a moment ago, and keys are kept for 30 days
            return earlier
        return Submitted(await self.get(forecast_id), replayed=False)

    async def get(self, forecast_id: UUID) -> Forecast:
        async with self._database.connect() as connection:
            forecast = await stored.get(connection, forecast_id)
        if forecast is None:
            raise NotFound(f"There is no forecast {forecast_id}.")
        return forecast

    async def newest(self, status: str | None, after: tuple[datetime, UUID] | None, limit: int) -> list[Forecast]:
        async with self._database.connect() as connection:
            return await stored.newest(connection, status=status, before=after, limit=limit)

    async def cancel(self, forecast_id: UUID) -> Forecast:
        """Stop what has not ended. A worker that has a run of it notices at its next beat, and stores nothing."""
        async with self._database.begin() as connection:
            if await stored_runs.cancel_open(connection, forecast_id):
                await stored.settle(connection, forecast_id)
                return await self._got(connection, forecast_id)
        forecast = await self.get(forecast_id)
        raise Conflict(f"The forecast has ended ({forecast.status}); there is nothing left to cancel.")

    async def delete(self, forecast_id: UUID) -> None:
        async with self._database.begin() as connection:
            if await stored.delete(connection, forecast_id):
                return
        forecast = await self.get(forecast_id)
        raise Conflict(f"The forecast is {forecast.status}. Cancel it before you delete it.")

    async def follow(self, forecast_id: UUID, after: int | None) -> AsyncIterator[Change | None]:
        """Each change in order of the revisions, None in a long silence, and an `end` once the forecast has ended.

        `after` resumes behind that revision.
        """
        seen = -1 if after is None else after
        quiet = 0.0
        while True:
            forecast = await self.get(forecast_id)
            changed: list[tuple[int, str, Forecast | Run]] = [
                (run.revision, "run", run) for run in forecast.runs if run.revision > seen
            ]
            if forecast.revision > seen:
                changed.append((forecast.revision, "forecast", forecast))
            for revision, kind, state in sorted(changed, key=lambda change: change[0]):
                seen, quiet = revision, 0.0
                yield kind, revision, state
            if forecast.is_terminal:
                yield "end", seen, forecast
                return
            await asyncio.sleep(WATCH)
            quiet += WATCH
            if quiet >= SILENCE:
                quiet = 0.0
                yield None

    async def _got(self, connection: Connection, forecast_id: UUID) -> Forecast:
        forecast = await stored.get(connection, forecast_id)
        assert forecast is not None
        return forecast

    async def _replay(self, owner: str, key: str, digest: str) -> Submitted | None:
        """What the key stands for already, if anything."""
        async with self._database.connect() as connection:
            use = await stored.key_use(connection, owner, key)
        if use is None:
            return None
        known, forecast_id = use
        if known != digest:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used with another body. Send the same body again, or take a new key."
            )
        if forecast_id is None:
            raise Conflict("The forecast that this Idempotency-Key made has been deleted. Take a new key.")
        return Submitted(await self.get(forecast_id), replayed=True)

    async def _insert(self, connection: Connection, forecast_id: UUID, request: ForecastRequest, owner: str) -> None:
        dataset, servers = await self._checked(connection, request)
        if await stored.open_run_count(connection) + len(request.models) > self._limits.queue:
            raise QueueFull("The queue is full. Send the request again later; nothing was stored.")
        estimate = await self._estimate(connection, request, dataset, servers)
        now = datetime.now(UTC)
        runs: list[Run] = []
        for expected in estimate.runs:
            run = Run.queued(
                forecast_id, expected.model, len(runs), len(estimate.eligible), microdollars(expected.estimated_usd)
            )
            refusal = expected.refusal
            if refusal is None and run.model == CANVAS:
                refusal = await self._canvas.reserve(connection, run, owner, microdollars(request.max_cost_usd))
            if refusal is not None and not request.fallback:
                raise _refused(refusal)
            runs.append(run if refusal is None else run.skipped(refusal, now))
        if all(run.status.is_terminal for run in runs):
            runs.append(Run.queued(forecast_id, "auto", len(runs), len(estimate.eligible)))
        warnings = [
            *_excluded_warning(estimate),
            *_short_ahead_warning(request, dataset, servers),
            *(learned_anew([run.model for run in runs if run.model != CANVAS]) if request.reuse_models_of else ()),
            *(f"{run.model} skipped: {run.error.detail}" for run in runs if run.error),
        ]
        await stored.insert(connection, forecast_id, request, status_of([run.status for run in runs]), warnings)
        await stored_runs.insert(connection, runs)
        await self._queue.defer(connection, *(run.id for run in runs if not run.status.is_terminal))

    async def _estimate(
        self, connection: Connection, request: ForecastRequest, dataset: Dataset, servers: Sequence[Server]
    ) -> Estimate:
        reused = await find(connection, request) if CANVAS in request.models else None
        eligible = tuple(server.server_id for server in servers if _counts(server, request.metric))
        excluded = tuple(
            (
                server.server_id,
                f"{server.counts.get(request.metric, 0)} values of {request.metric}; {MIN_VALUES} are needed",
            )
            for server in servers
            if not _counts(server, request.metric)
        )
        thousands = sum(server.rows for server in servers) / 1_000
        windows = (1 + request.backtest_windows) / 2

        def of(model: str) -> RunEstimate:
            if model != CANVAS:
                return RunEstimate(model, None, round(SECONDS.get(model, 0.3) * thousands * windows, 1), 0.0)
            offer = self._canvas.offer(request, dataset, servers, reused)
            seconds = round(offer.estimate.seconds, 1) if offer.estimate else None
            return RunEstimate(model, offer.refusal, seconds, dollars(offer.estimate.total) if offer.estimate else 0.0)

        runs = [of(model) for model in request.models]
        if request.fallback and all(run.refusal for run in runs):
            runs.append(of("auto"))
        return Estimate(tuple(runs), eligible, excluded)

    async def _checked(self, connection: Connection, request: ForecastRequest) -> tuple[Dataset, list[Server]]:
        """The dataset and the servers asked for. Raises for whatever they can't give."""
        dataset = await stored_datasets.hold(connection, request.dataset_id)
        if dataset is None:
            raise NotFound(f"There is no dataset {request.dataset_id}.")
        metrics = dataset.contents.metrics
        if request.metric not in metrics:
            raise _invalid("/metric", f"The dataset has no metric {request.metric!r}; it has {', '.join(metrics)}.")
        if request.reuse_models_of is not None and await stored.get(connection, request.reuse_models_of) is None:
            raise NotFound(f"There is no forecast {request.reuse_models_of} whose models could be used again.")
        missing = [model for model in request.models if model != CANVAS and model not in forecasters.names()]
        if missing:
            hints = [f" {advice}." for model in missing if (advice := forecasters.advice(model))]
            raise _invalid(
                "/models",
                f"This installation does not have {', '.join(missing)}; it has {', '.join(forecasters.names())}."
                + "".join(hints),
            )
        if CANVAS in request.models and (odd := quantile_limits(request.levels)) is not None:
            raise _invalid("/quantiles", odd.detail)
        servers = await stored_datasets.servers(connection, request.dataset_id, request.server_ids)
        if request.server_ids is not None:
            unknown = sorted(set(request.server_ids) - {server.server_id for server in servers})
            if unknown:
                raise _invalid("/server_ids", f"The dataset has no server {', '.join(map(repr, unknown[:5]))}.")
        if not any(_counts(server, request.metric) for server in servers):
            raise _invalid(
                "/metric", f"No server has {MIN_VALUES} values of {request.metric!r}; a forecast needs that many."
            )
        work = len(servers) * request.horizon * len(request.models) * len(request.levels)
        if work > self._limits.work:
            raise WorkLimit(
                f"{len(servers)} servers × {request.horizon} steps × {len(request.models)} models × "
                f"{len(request.levels)} quantiles make {work:,} values; one forecast may ask for "
                f"{self._limits.work:,}. Ask for fewer servers or models, or split the forecast."
            )
        return dataset, servers


def _counts(server: Server, metric: str) -> bool:
    return server.counts.get(metric, 0) >= MIN_VALUES


def _invalid(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, errors=[Complaint(pointer, "invalid", detail)])


def _refused(refusal: RunError) -> HeadroomError:
    """What a caller who wants no fallback is told."""
    match refusal.code:
        case "budget-exceeded":
            return BudgetExceeded(refusal.detail)
        case "aws-unavailable":
            return AwsUnavailable(refusal.detail)
        case code:
            pointer = "/reuse_models_of" if code == "model-not-reusable" else "/models"
            return Invalid(refusal.detail, errors=[Complaint(pointer, code, refusal.detail)])


def _short_ahead_warning(request: ForecastRequest, dataset: Dataset, servers: Sequence[Server]) -> list[str]:
    """Servers whose known-ahead columns surely end before the horizon does.

    Rows behind the history are at most those that have no value of the best-filled metric.
    """
    if not dataset.contents.known_ahead:
        return []
    ahead = {server.server_id: server.rows - max(server.counts.values(), default=0) for server in servers}
    short = [server for server, rows in ahead.items() if rows < request.horizon]
    if not short:
        return []
    named = ", ".join(map(repr, short[:3])) + (", …" if len(short) > 3 else "")
    return [
        f"{', '.join(dataset.contents.known_ahead)}: the rows end before the horizon of {request.horizon} steps on "
        f"{len(short)} of {len(servers)} servers ({named}), the earliest {min(ahead.values())} steps ahead; "
        f"behind their end the last value stands."
    ]


def _excluded_warning(estimate: Estimate) -> list[str]:
    if not estimate.excluded:
        return []
    first = "; ".join(f"{server!r}: {reason}" for server, reason in estimate.excluded[:5])
    more = f"; and {len(estimate.excluded) - 5} more (see the estimate)" if len(estimate.excluded) > 5 else ""
    servers = "1 server is" if len(estimate.excluded) == 1 else f"{len(estimate.excluded)} servers are"
    return [f"{servers} left out: {first}{more}"]

"""The risk answer for clients: which forecast, which thresholds, which servers, in which order.

It holds the choices around the formulas of domain/risk.py, and keeps the last answers in memory: results of a run
never change, so a page of a list that was just computed costs no second computation. It leaves out the
formulas, and how an answer is written (api/risk.py).
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.domain import paths, risk
from app.domain.dataset import Contents, Server, Unit
from app.domain.forecast import Forecast
from app.domain.panel import Array, Frequency
from app.domain.paths import Template
from app.domain.risk import Levels, Outlook, Peak, Risk
from app.domain.run import Run, RunStatus
from app.errors import Complaint, ForecastNotReady, Invalid, NoResults, NotFound, ThresholdRequired
from app.storage import datasets, forecasts
from app.storage import risk as stored
from app.storage.database import Database
from app.storage.results import ResultMatrix, Results

Rows = NDArray[np.intp]
Sort = Literal["runway", "breach_probability", "max_p90", "server_id"]
Group = Literal["business_unit", "region", "criticality"]
Position = tuple[UUID, str]
"""Where a list goes on: the forecast that it is of, and the last server seen."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_RUNS_KEPT = 2
_ANSWERS_KEPT = 16

_SMALLEST, _LARGEST = 1e-30, 1e30
"""Thresholds that single precision can hold, with room for a share of them."""

SHORT_HISTORY_DAYS = 28
"""A history is short below this, and below two horizons."""

GAPS_SHARE = 0.05
"""A server has gaps when more than this share of its steps has no value."""

CONSTANT_SHARE = 0.001
"""A forecast is constant when all its quantiles lie within this share of its level."""


@dataclass(frozen=True)
class Question:
    """What is asked: of which forecast (None: the newest that succeeded, of `metric` if given), against what."""

    forecast_id: UUID | None = None
    metric: str | None = None
    model: str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Filters:
    """Servers that have one of the values of each; an empty tuple lets all pass."""

    level: tuple[str, ...] = ()
    business_unit: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    criticality: tuple[str, ...] = ()
    server_id: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ServerRisk:
    """One server's answer. Runways are in days, None when the horizon ends before; times are datetime64[s]."""

    server_id: str
    forecast_id: UUID
    metric: str
    model: str
    frequency: Frequency
    threshold: float
    as_of: np.datetime64
    level: str
    risk_high: bool
    max_p90: float
    mean_p50: float
    breach_probability: float
    expected_breach_days: float
    runway_conservative: float | None
    runway_expected: float | None
    first_breach_p10: np.datetime64 | None
    first_breach_p50: np.datetime64 | None
    headroom_pct: float
    severity: float | None
    peaks: tuple[Peak, ...]
    fallback: bool
    coverage: float | None
    history_days: int
    quality: tuple[str, ...]
    level_shift: np.datetime64 | None
    attributes: dict[str, str | float]


@dataclass(frozen=True, eq=False)
class Answer:
    """A page of servers. `threshold` is None where servers have different ones; `as_of` is the newest of all."""

    forecast_id: UUID
    metric: str
    frequency: Frequency
    threshold: float | None
    as_of: np.datetime64
    servers: list[ServerRisk]


@dataclass(frozen=True)
class GroupCount:
    """How many servers of a group (None: those that name none) are at each level, and have a runway."""

    group: str | None
    servers: int
    risk_high: int
    levels: dict[str, int]


@dataclass(frozen=True, eq=False)
class Summary:
    forecast_id: UUID
    metric: str
    frequency: Frequency
    threshold: float | None
    as_of: np.datetime64
    total: GroupCount
    groups: list[GroupCount]


@dataclass(frozen=True, eq=False)
class _Fleet:
    """A run's results beside what is known of its servers, in the order of the results."""

    forecast: Forecast
    run: Run
    contents: Contents
    matrix: ResultMatrix
    servers: tuple[Server, ...]
    template: Template

    @property
    def metric(self) -> str:
        return self.forecast.request.metric

    @property
    def unit(self) -> Unit:
        return self.contents.units[self.metric]

    def attribute(self, name: str) -> list[str | None]:
        """Of each server, as text; None where it has none."""
        found = (server.attributes.get(name) for server in self.servers)
        return [None if value is None else str(value) for value in found]


@dataclass(frozen=True, eq=False)
class _Judged:
    thresholds: Array
    risk: Risk

    @property
    def threshold(self) -> float | None:
        first = self.thresholds[0]
        return float(first) if (self.thresholds == first).all() else None


@dataclass(frozen=True, eq=False)
class Prospect:
    """What the judgement of a run starts from, for questions of another kind. `thresholds` (servers,): NaN where a server
    has none. Rows are in the order of `servers`, which is that of their ids."""

    forecast: Forecast
    run: Run
    contents: Contents
    servers: tuple[Server, ...]
    outlook: Outlook
    thresholds: Array
    template: Template


class RiskService:
    def __init__(self, database: Database, results: Results, *, levels: Levels, country: str) -> None:
        self._database = database
        self._results = results
        self._levels = levels
        self._country = country
        self._fleets: _Recent[UUID, _Fleet] = _Recent(_RUNS_KEPT)
        self._answers: _Recent[tuple[UUID, float | None], _Judged] = _Recent(_ANSWERS_KEPT)

    async def servers(
        self, question: Question, filters: Filters, sort: Sort, after: Position | None, limit: int
    ) -> Answer:
        """Up to `limit` servers from the one after `after` on.

        Raises NotFound, ForecastNotReady, NoResults, Invalid (a model or a metric that the forecast lacks, a
        threshold that cannot be one) and ThresholdRequired.
        """
        if after is not None:
            question = replace(question, forecast_id=after[0])
        fleet = await self._fleet(question)
        judged = await self._judged(fleet, question.threshold)
        chosen = partial(_chosen, fleet, judged.risk, filters, sort, after[1] if after else None, limit)
        rows = await asyncio.to_thread(chosen)
        return Answer(
            fleet.forecast.id,
            fleet.metric,
            fleet.contents.frequency,
            judged.threshold,
            fleet.matrix.as_of.max(),
            await asyncio.to_thread(_shown, fleet, judged, rows, self._country),
        )

    async def server(self, server_id: str, threshold: float | None) -> tuple[list[ServerRisk], list[str]]:
        """One server in the newest succeeded forecast of each metric; and metrics that have no threshold for it.

        Raises NotFound when there is none.
        """
        async with self._database.connect() as connection:
            newest = await stored.newest_of_server(connection, server_id)
        if not newest:
            raise NotFound(
                f"No succeeded forecast has a server {server_id!r}. GET /risk/servers lists those there are."
            )
        answers, without = [], []
        for found in newest:
            forecast = await self._forecast(Question(found.forecast_id))
            fleet = await self._load(forecast, _run_of(forecast, None), server_id)
            try:
                judged = await asyncio.to_thread(_judge, fleet, threshold, self._levels)
            except ThresholdRequired:
                without.append(found.metric)
                continue
            answers += await asyncio.to_thread(_shown, fleet, judged, np.arange(1), self._country)
        return answers, without

    async def summary(self, question: Question, by: Group) -> Summary:
        """How many servers are at each level, in all and per value of an attribute. Raises what `servers` raises."""
        fleet = await self._fleet(question)
        judged = await self._judged(fleet, question.threshold)
        rows: dict[str | None, list[int]] = {}
        for row, group in enumerate(fleet.attribute(by)):
            rows.setdefault(group, []).append(row)
        names = sorted(rows, key=lambda name: (name is None, name))
        return Summary(
            fleet.forecast.id,
            fleet.metric,
            fleet.contents.frequency,
            judged.threshold,
            fleet.matrix.as_of.max(),
            _count(None, judged.risk, np.arange(len(fleet.servers))),
            [_count(name, judged.risk, np.array(rows[name])) for name in names],
        )

    async def prospect(self, question: Question) -> Prospect:
        """A whole run, not judged yet. Raises what `servers` raises, but for ThresholdRequired."""
        fleet = await self._fleet(question)
        return Prospect(
            fleet.forecast,
            fleet.run,
            fleet.contents,
            fleet.servers,
            _outlook(fleet),
            _known_thresholds(fleet, question.threshold),
            fleet.template,
        )

    async def _fleet(self, question: Question) -> _Fleet:
        forecast = await self._forecast(question)
        run = _run_of(forecast, question.model)
        return await self._fleets.get(run.id, lambda: self._load(forecast, run))

    async def _judged(self, fleet: _Fleet, threshold: float | None) -> _Judged:
        return await self._answers.get(
            (fleet.run.id, threshold), lambda: asyncio.to_thread(_judge, fleet, threshold, self._levels)
        )

    async def _forecast(self, question: Question) -> Forecast:
        async with self._database.connect() as connection:
            wanted = question.forecast_id or await forecasts.newest_succeeded(connection, question.metric)
            if wanted is None:
                of = f" of metric {question.metric!r}" if question.metric else ""
                raise NotFound(f"No forecast{of} has succeeded yet. POST /forecasts submits one.")
            forecast = await forecasts.get(connection, wanted)
        if forecast is None:
            raise NotFound(f"There is no forecast {wanted}.")
        if question.metric not in (None, forecast.request.metric):
            detail = f"Forecast {forecast.id} is of metric {forecast.request.metric!r}, not {question.metric!r}."
            raise Invalid(detail, errors=[Complaint("?metric", "unknown-metric", detail)])
        return forecast

    async def _load(self, forecast: Forecast, run: Run, server_id: str | None = None) -> _Fleet:
        """All servers of a run, or one."""
        only = None if server_id is None else [server_id]
        try:
            found = await (
                self._results.matrix(run.id) if only is None else self._results.some(run.id, only=only, limit=1)
            )
        except LookupError:
            found = None
        if found is None:
            raise NoResults(f"The run of {run.model} in forecast {forecast.id} stored no results.")
        template = await self._results.template(run.id)
        async with self._database.connect() as connection:
            dataset = await datasets.get(connection, forecast.request.dataset_id)
            known = {s.server_id: s for s in await datasets.servers(connection, forecast.request.dataset_id, only)}
        assert dataset is not None, "a forecast keeps its dataset"
        horizon = found.values.shape[1]
        if template is None or template.horizon < horizon:
            template = paths.autoregressive(horizon)
        servers = tuple(known[name] for name in found.server_ids)
        return _Fleet(forecast, run, dataset.contents, found, servers, template)


def _run_of(forecast: Forecast, model: str | None) -> Run:
    """The run asked for, by default the best one. Raises Invalid, ForecastNotReady, NoResults."""
    if model is None and not forecast.is_terminal:
        raise ForecastNotReady(
            f"Forecast {forecast.id} is {forecast.status}; its best model is known when it has ended."
        )
    wanted = model or forecast.best_model
    if wanted is None:
        raise NoResults(f"Forecast {forecast.id} ended as {forecast.status}: none of its runs has results.")
    run = next((run for run in forecast.runs if run.model == wanted), None)
    if run is None:
        has = ", ".join(run.model for run in forecast.runs)
        detail = f"Forecast {forecast.id} has no run of model {wanted!r}; it has {has}."
        raise Invalid(detail, errors=[Complaint("?model", "unknown-model", detail)])
    if not run.status.is_terminal:
        raise ForecastNotReady(f"The run of {wanted} in forecast {forecast.id} is {run.status}.")
    if run.status is not RunStatus.SUCCEEDED:
        why = f": {run.error.detail}" if run.error else "."
        raise NoResults(f"The run of {wanted} in forecast {forecast.id} is {run.status}{why}")
    return run


def _judge(fleet: _Fleet, threshold: float | None, levels: Levels) -> _Judged:
    thresholds = _thresholds(fleet, threshold)
    return _Judged(thresholds, risk.assess(_outlook(fleet), thresholds, fleet.template, levels))


def _outlook(fleet: _Fleet) -> Outlook:
    matrix, unit = fleet.matrix, fleet.unit
    lower, upper = np.full(len(matrix), -np.inf), np.full(len(matrix), np.inf)
    if unit is not Unit.ABSOLUTE:
        full = 100.0 if unit is Unit.PERCENT else 1.0
        lower = np.zeros(len(matrix))
        upper = np.array([max(full, server.maxima.get(fleet.metric, full)) for server in fleet.servers])
    return Outlook(matrix.values, matrix.levels, matrix.as_of, fleet.contents.frequency, unit, lower, upper)


def _thresholds(fleet: _Fleet, threshold: float | None) -> Array:
    """Of each server; raises ThresholdRequired where one has none."""
    found = _known_thresholds(fleet, threshold)
    missing = np.flatnonzero(np.isnan(found))
    if missing.size:
        raise ThresholdRequired(
            f"Metric {fleet.metric} is {fleet.unit}: {missing.size} servers have neither `threshold` nor `capacity`, "
            f"the first is {fleet.servers[int(missing[0])].server_id!r}. Ask with `threshold=`, in the metric's unit, or "
            "upload such a column."
        )
    return found


def _known_thresholds(fleet: _Fleet, threshold: float | None) -> Array:
    """The one asked for; else each server's own `threshold`, an absolute metric's `capacity`, the unit's default; NaN
    where there is none of them."""
    if threshold is not None:
        if not abs(threshold) <= _LARGEST or (fleet.unit is Unit.ABSOLUTE and threshold < _SMALLEST):
            detail = (
                f"{threshold:g} cannot be a threshold of {fleet.metric}: give a number above 0, in the metric's unit."
            )
            raise Invalid(detail, errors=[Complaint("?threshold", "threshold", detail)])
        return np.full(len(fleet.servers), threshold)
    default = risk.default_threshold(fleet.unit)
    names = ("threshold", "capacity") if fleet.unit is Unit.ABSOLUTE else ("threshold",)
    found = [
        next((v for n in names if (v := _positive(s.attributes.get(n))) is not None), default) for s in fleet.servers
    ]
    return np.array(found, dtype=np.float64)


def _positive(value: str | float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and _SMALLEST <= value <= _LARGEST else None


def _chosen(fleet: _Fleet, found: Risk, filters: Filters, sort: Sort, after: str | None, limit: int) -> Rows:
    """Rows of the page: sorted, then filtered, then from behind `after` on. Ties go by server_id, byte by byte."""
    match sort:
        case "runway":
            order = np.lexsort((-found.breach_probability, np.nan_to_num(found.runway_conservative, nan=np.inf)))
        case "breach_probability":
            order = np.argsort(-found.breach_probability, kind="stable")
        case "max_p90":
            order = np.argsort(-found.max_p90, kind="stable")
        case "server_id":
            order = np.arange(len(fleet.servers))
    passes = np.ones(len(fleet.servers), dtype=np.bool_)
    if filters.level:
        passes &= np.isin(found.level, filters.level)
    for name in ("business_unit", "region", "criticality"):
        if wanted := getattr(filters, name):
            passes &= np.array([value in wanted for value in fleet.attribute(name)])
    if filters.server_id:
        passes &= np.array([name in filters.server_id for name in fleet.matrix.server_ids])
    if after is not None:
        seen = np.flatnonzero(np.array(fleet.matrix.server_ids, dtype=object)[order] == after)
        order = order[int(seen[0]) + 1 :] if seen.size else order[:0]
    return order[passes[order]][:limit]


def _shown(fleet: _Fleet, judged: _Judged, rows: Rows, country: str) -> list[ServerRisk]:
    found, matrix = judged.risk, fleet.matrix
    coverage = (fleet.run.scores or {}).get("coverage")
    its_peaks = _peaks(fleet, rows, country)
    return [
        ServerRisk(
            server_id=matrix.server_ids[row],
            forecast_id=fleet.forecast.id,
            metric=fleet.metric,
            model=fleet.run.model,
            frequency=fleet.contents.frequency,
            threshold=float(judged.thresholds[row]),
            as_of=matrix.as_of[row],
            level=str(found.level[row]),
            risk_high=bool(found.risk_high[row]),
            max_p90=float(found.max_p90[row]),
            mean_p50=float(found.mean_p50[row]),
            breach_probability=float(found.breach_probability[row]),
            expected_breach_days=float(found.expected_breach_days[row]),
            runway_conservative=_known(found.runway_conservative[row]),
            runway_expected=_known(found.runway_expected[row]),
            first_breach_p10=_date(found.first_breach_p10[row]),
            first_breach_p50=_date(found.first_breach_p50[row]),
            headroom_pct=float(found.headroom_pct[row]),
            severity=_known(found.severity[row]),
            peaks=its_peaks[row],
            fallback=matrix.fallback[row] is not None,
            coverage=_known(matrix.scores["coverage"][row], coverage),
            history_days=_history_days(fleet, row),
            quality=_quality(fleet, row),
            level_shift=_shift(fleet, row),
            attributes=fleet.servers[row].attributes,
        )
        for row in rows.tolist()
    ]


def _peaks(fleet: _Fleet, rows: Rows, country: str) -> dict[int, tuple[Peak, ...]]:
    """Servers that end on one day are looked at together."""
    median = fleet.matrix.values[..., fleet.matrix.levels.index(0.5)]
    found: dict[int, tuple[Peak, ...]] = {}
    for as_of in np.unique(fleet.matrix.as_of[rows]):
        alike = rows[fleet.matrix.as_of[rows] == as_of]
        its = risk.peaks(median[alike].astype(np.float64), as_of, fleet.contents.frequency, country)
        found |= dict(zip(alike.tolist(), its, strict=True))
    return found


def _history_days(fleet: _Fleet, row: int) -> int:
    """Days from the server's first row to its last, both counted."""
    first = np.datetime64(fleet.servers[row].first_at.replace(tzinfo=None), "D")
    return int((fleet.matrix.as_of[row].astype("datetime64[D]") - first).astype(int)) + 1


def _quality(fleet: _Fleet, row: int) -> tuple[str, ...]:
    """What makes a server's answer less sure; docs/risk.md says what each word means."""
    server, per_day, values = fleet.servers[row], fleet.contents.frequency.per_day, fleet.matrix.values[row]
    span = (server.last_at - server.first_at) / timedelta(days=1) * per_day + 1
    end = np.datetime64(fleet.contents.end.replace(tzinfo=None), "s")
    flags = {
        "short_history": span < max(2 * len(values), SHORT_HISTORY_DAYS * per_day),
        "gaps": server.counts.get(fleet.metric, 0) < (1.0 - GAPS_SHARE) * span,
        "constant": bool(np.ptp(values) <= CONSTANT_SHARE * max(1.0, float(np.abs(values).max()))),
        "stale": bool(fleet.matrix.as_of[row] < end),
        "level_shift": _shift(fleet, row) is not None,
    }
    return tuple(name for name, raised in flags.items() if raised)


def _shift(fleet: _Fleet, row: int) -> np.datetime64 | None:
    """When the server's level shifted, if it did lately."""
    shifted_at = fleet.matrix.shifted_at
    return None if shifted_at is None else _date(shifted_at[row])


def _count(group: str | None, found: Risk, rows: Rows) -> GroupCount:
    levels = Counter(found.level[rows].tolist())
    return GroupCount(
        group, len(rows), int(found.risk_high[rows].sum()), {level: levels.get(level, 0) for level in risk.LEVELS}
    )


def _known(value: float, default: float | None = None) -> float | None:
    return default if np.isnan(value) else float(value)


def _date(time: np.datetime64) -> np.datetime64 | None:
    return None if np.isnat(time) else time


class _Recent(Generic[K, V]):
    """The last few values made; whoever asks for one that is being made waits for it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: OrderedDict[K, asyncio.Task[V]] = OrderedDict()

    async def get(self, key: K, make: Callable[[], Coroutine[Any, Any, V]]) -> V:
        task = self._tasks.pop(key, None)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(make())
        self._tasks[key] = task
        while len(self._tasks) > self._size:
            self._tasks.popitem(last=False)
        return await asyncio.shield(task)  # a client that leaves does not take the answer from the others

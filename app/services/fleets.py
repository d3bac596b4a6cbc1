"""What every risk answer starts from: a run's results beside its servers, and their thresholds.

It holds which forecast and which run are meant, which thresholds and lead times count for which server, and the last
few fleets and answers in memory: results change only with their run's revision, so what was just computed costs no
second computation.
It leaves out the formulas (domain/risk.py) and what is made of the answers: pages of servers (risk.py), totals
(rollups.py), what-if (scenarios.py) and what changed (risk_diff.py).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.domain import paths, risk
from app.domain.dataset import Contents, Server, Unit, as_text, spellings
from app.domain.forecast import Forecast
from app.domain.panel import Array
from app.domain.paths import Template
from app.domain.risk import Levels, Outlook, Risk
from app.domain.run import Run, RunStatus
from app.errors import Complaint, ForecastNotReady, Invalid, NoResults, NotFound, ThresholdRequired
from app.storage import datasets, forecasts
from app.storage import fleets as stored_fleets
from app.storage.database import Connection, Database
from app.storage.results import ResultMatrix, Results

Rows = NDArray[np.intp]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_FLEETS_KEPT = 2
_ANSWERS_KEPT = 16
_SMALL_KEPT = 64


@dataclass(frozen=True)
class GroupThreshold:
    """A threshold for the servers whose attribute has this value."""

    attribute: str
    value: str
    threshold: float


@dataclass(frozen=True)
class Limits:
    """Thresholds asked for: one for all servers, and those of groups, which go before it; of several the lowest."""

    threshold: float | None = None
    groups: tuple[GroupThreshold, ...] = ()


@dataclass(frozen=True)
class Question:
    """What is asked: of which forecast (None: the newest that succeeded, of `metric` if given), against what.

    `lead_time_days` is None for each server's own, else the one set up.
    """

    forecast_id: UUID | None = None
    metric: str | None = None
    model: str | None = None
    threshold: float | None = None
    group_thresholds: tuple[GroupThreshold, ...] = ()
    lead_time_days: float | None = None

    @property
    def limits(self) -> Limits:
        return Limits(self.threshold, self.group_thresholds)


@dataclass(frozen=True)
class Planning:
    """What is set up for plans: days from an order to the room it brings, and points of headroom kept back."""

    lead_time_days: float = 30.0
    buffer_pct: float = 0.0


@dataclass(frozen=True, eq=False)
class Meant:
    """What a question is about."""

    forecast: Forecast
    run: Run
    contents: Contents

    @property
    def metric(self) -> str:
        return self.forecast.request.metric

    @property
    def unit(self) -> Unit:
        return self.contents.units[self.metric]


@dataclass(frozen=True, eq=False)
class Fleet(Meant):
    """The run's results beside what is known of its servers, in the order of the results."""

    matrix: ResultMatrix
    servers: tuple[Server, ...]
    template: Template

    def attribute(self, name: str) -> list[str | None]:
        """Of each server, as text; None where it has none."""
        return texts(self.servers, name)

    def having(self, name: str, value: str) -> NDArray[np.bool_]:
        """Servers, (servers,), whose attribute has this value, however a whole number is written."""
        written = spellings(value)
        return np.array([text in written for text in self.attribute(name)], dtype=np.bool_)

    def has_attribute(self, name: str) -> bool:
        return any(name in server.attributes for server in self.servers)

    def quantity(self, name: str) -> Array:
        """A numeric attribute of each server, (servers,); NaN where it has none above 0."""
        return quantities(self.servers, name)

    def outlook(self) -> Outlook:
        """The forecasts with the bounds of their metric."""
        lower, upper = bounds(self.servers, self.metric, self.unit)
        matrix = self.matrix
        return Outlook(matrix.values, matrix.levels, matrix.as_of, self.contents.frequency, self.unit, lower, upper)


@dataclass(frozen=True, eq=False)
class Judged:
    """A fleet against its thresholds."""

    thresholds: Array
    risk: Risk

    @property
    def threshold(self) -> float | None:
        """That of all servers; None where they differ, or there are none."""
        return shared(self.thresholds)


class Fleets:
    """Loads and judges them."""

    def __init__(self, database: Database, stored: Results, levels: Levels) -> None:
        self._database = database
        self._results = stored
        self.levels = levels
        self._fleets: Recent[tuple[UUID, int], Fleet] = Recent(_FLEETS_KEPT)
        self._answers: Recent[tuple[UUID, int, Limits], Judged] = Recent(_ANSWERS_KEPT)
        self._contents: Recent[UUID, Contents] = Recent(_SMALL_KEPT)
        self._templates: Recent[tuple[UUID, int], Template | None] = Recent(_SMALL_KEPT)

    async def of(self, question: Question) -> Fleet:
        """Raises what `meant` raises, and NoResults."""
        return await self.whole(await self.meant(question))

    async def meant(self, question: Question) -> Meant:
        """Raises NotFound, ForecastNotReady, NoResults, Invalid (a model or a metric that the forecast lacks)."""
        forecast = await self.forecast(question)
        return Meant(forecast, run_of(forecast, question.model), await self._contents_of(forecast))

    async def whole(self, meant: Meant) -> Fleet:
        """All servers of the run; the last few are kept. Raises NoResults."""
        run = meant.run
        return await self._fleets.get((run.id, run.revision), lambda: self.load(meant))

    async def judged(self, fleet: Fleet, limits: Limits) -> Judged:
        """Raises ThresholdRequired, Invalid (a threshold that cannot be one, of a group that there is not)."""
        for group in limits.groups:
            if not fleet.having(group.attribute, group.value).any():
                detail = f"No server of the forecast has {group.attribute} {group.value!r}."
                raise Invalid(detail, errors=[Complaint("?group_threshold", "unknown-group", detail)])
        return await self._answers.get(
            (fleet.run.id, fleet.run.revision, limits), lambda: asyncio.to_thread(judge, fleet, limits, self.levels)
        )

    async def forecast(self, question: Question) -> Forecast:
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

    async def load(self, meant: Meant, only: Sequence[str] | None = None) -> Fleet:
        """All servers of a run, or some."""
        async with self._database.connect() as connection:
            return await self.read(connection, meant, only)

    async def read(self, connection: Connection, meant: Meant, only: Sequence[str] | None = None) -> Fleet:
        """As `load`, by a connection that is there."""
        forecast, run = meant.forecast, meant.run
        found = await stored_fleets.read(connection, run.id, forecast.request.dataset_id, forecast.request.levels, only)
        if found is None:
            raise NoResults(f"The run of {run.model} in forecast {forecast.id} stored no results.")
        template = await self._templates.get((run.id, run.revision), lambda: self._results.template(run.id))
        matrix, servers = found
        horizon = matrix.values.shape[1]
        if template is None or template.horizon < horizon:
            template = paths.autoregressive(horizon)
        return Fleet(forecast, run, meant.contents, matrix, servers, template)

    async def _contents_of(self, forecast: Forecast) -> Contents:
        """What is known of the forecast's dataset as a whole, which never changes."""
        dataset_id = forecast.request.dataset_id

        async def read() -> Contents:
            async with self._database.connect() as connection:
                dataset = await datasets.get(connection, dataset_id)
            assert dataset is not None, "a forecast keeps its dataset"
            return dataset.contents

        return await self._contents.get(dataset_id, read)


def run_of(forecast: Forecast, model: str | None) -> Run:
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


def judge(fleet: Fleet, limits: Limits, levels: Levels) -> Judged:
    """Every server of a fleet against its threshold."""
    chosen = thresholds(fleet, limits)
    return Judged(chosen, risk.assess(fleet.outlook(), chosen, fleet.template, levels))


def thresholds(fleet: Fleet, limits: Limits) -> Array:
    """Of each server; raises ThresholdRequired where one has none."""
    found = known_thresholds(fleet, limits)
    missing = np.flatnonzero(np.isnan(found)).tolist()
    if missing:
        raise ThresholdRequired(
            f"Metric {fleet.metric} is {fleet.unit}: {len(missing)} servers have neither `threshold` nor `capacity`, "
            f"the first is {fleet.servers[missing[0]].server_id!r}. Ask with `threshold=`, in the metric's unit, or "
            "upload such a column."
        )
    return found


def known_thresholds(fleet: Fleet, limits: Limits) -> Array:
    """The one asked for a server's group, or for all; else its own `threshold`, an absolute metric's `capacity`, the
    unit's default; NaN where there is none of them."""
    for group in limits.groups:
        check_threshold(group.threshold, "?group_threshold")
    if limits.threshold is not None:
        check_threshold(limits.threshold, "?threshold")
        found = np.full(len(fleet.servers), limits.threshold)
    else:
        found = own_thresholds(fleet.servers, fleet.unit)
    grouped = np.full(len(fleet.servers), np.inf)
    for group in limits.groups:
        inside = fleet.having(group.attribute, group.value)
        grouped[inside] = np.minimum(grouped[inside], group.threshold)
    return np.where(np.isfinite(grouped), grouped, found)


def own_thresholds(servers: Sequence[Server], unit: Unit) -> Array:
    """Of each server where none is asked for; NaN where there is none."""
    default = risk.default_threshold(unit)
    found = np.full(len(servers), np.nan if default is None else default)
    for name in ("capacity", "threshold") if unit is Unit.ABSOLUTE else ("threshold",):
        own = quantities(servers, name)
        found = np.where(np.isnan(own), found, own)
    return found


def bounds(servers: Sequence[Server], metric: str, unit: Unit) -> tuple[Array, Array]:
    """What no quantile of each server is under or over."""
    if unit is Unit.ABSOLUTE:
        return np.full(len(servers), -np.inf), np.full(len(servers), np.inf)
    full = 100.0 if unit is Unit.PERCENT else 1.0
    return np.zeros(len(servers)), np.array([max(full, server.maxima.get(metric, full)) for server in servers])


def texts(servers: Sequence[Server], name: str) -> list[str | None]:
    """An attribute of each server; None where it has none."""
    found = (server.attributes.get(name) for server in servers)
    return [None if value is None else as_text(value) for value in found]


def quantities(servers: Sequence[Server], name: str) -> Array:
    """A numeric attribute of each server, (servers,); NaN where it has none above 0."""
    found = (_positive(server.attributes.get(name)) for server in servers)
    return np.array([np.nan if value is None else value for value in found])


def check_threshold(threshold: float, pointer: str) -> None:
    """Raises Invalid for one that no value of a metric could be measured against."""
    if not risk.can_be_threshold(threshold):
        detail = no_threshold(threshold)
        raise Invalid(detail, errors=[Complaint(pointer, "threshold", detail)])


def no_threshold(asked: float) -> str:
    """What is said of one that cannot be one."""
    return f"{asked:g} cannot be a threshold: give a number above 0, in the metric's unit."


def lead_times(fleet: Fleet, asked: float | None, planning: Planning) -> Array:
    """Days from an order to the room it brings, (servers,): the one asked for, else each server's own, else the set."""
    if asked is not None:
        return np.full(len(fleet.servers), asked)
    own = (server.attributes.get("lead_time_days") for server in fleet.servers)
    known = (days if isinstance(days, int | float) and 0 <= days <= _LONGEST_LEAD else None for days in own)
    return np.array([planning.lead_time_days if days is None else float(days) for days in known])


_LONGEST_LEAD = 36_500


def shared(values: Array) -> float | None:
    """The value of all; None where they differ, or there are none."""
    return float(values[0]) if len(values) and (values == values[0]).all() else None


def _positive(value: str | float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and risk.can_be_threshold(value) else None


class Recent(Generic[K, V]):
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

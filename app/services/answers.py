"""What a forecast answers: its quantiles page by page or whole, the comparison of its models, its accuracy since.

Rows come by server, then model in the order asked for, then time. Nothing is held open between two batches.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from app.domain import quantiles
from app.domain.forecast import Forecast, ForecastStatus, rank
from app.domain.panel import Frequency, Times
from app.domain.run import Run, RunStatus
from app.errors import Complaint, ForecastNotReady, Invalid, NoResults, NotFound
from app.services.forecasts import Forecasts
from app.storage.results import SCORES, ResultMatrix, Results

BATCH = 500
"""Most servers read at a time when all of them are wanted."""

VALUES = 100_000
"""Most values read at a time, but for a single server with more: what every slow reader keeps in memory."""

NOMINAL_COVERAGE = 0.8

_BEHIND = "\x01"
"""A server id with this behind it sorts before every later id: PostgreSQL's text has no smaller character."""

Position = tuple[str, int, int]
"""Where a page ended: server, position of the run, number of the step."""


@dataclass(frozen=True)
class Selection:
    """Which quantiles: of these models (none: the best), these servers (none: all), within these times, inclusive."""

    models: tuple[str, ...] = ()
    server_ids: tuple[str, ...] = ()
    start: np.datetime64 | None = None
    end: np.datetime64 | None = None


@dataclass(frozen=True)
class QuantileRow:
    server_id: str
    model: str
    timestamp: str
    values: tuple[float, ...]
    position: Position


@dataclass(frozen=True)
class ServerScores:
    """The figures of one server for each model, None where unscored; an ensemble's `weights` by member, and the model
    that stood in for one that could not be fitted."""

    server_id: str
    models: dict[str, dict[str, float | None]]
    weights: dict[str, dict[str, float]]
    fallbacks: dict[str, str]

    def is_tested(self, model: str) -> bool:
        """Whether a back-test of the server could be scored."""
        return self.models[model]["smape"] is not None


class Answers:
    def __init__(self, forecasts: Forecasts, results: Results) -> None:
        self._forecasts = forecasts
        self._results = results

    async def chosen(self, forecast_id: UUID, selection: Selection) -> tuple[Forecast, tuple[Run, ...]]:
        """The forecast, and the runs of the selection that have results.

        Raises ForecastNotReady while one of them goes on, NoResults when they ended without.
        """
        forecast = await self._forecasts.get(forecast_id)
        runs = _named(forecast, selection.models)
        if any(not run.status.is_terminal for run in runs):
            waits = ", ".join(run.model for run in runs if not run.status.is_terminal)
            raise ForecastNotReady(f"Still running: {waits}. Ask again when the forecast has ended, or follow /events.")
        ready = tuple(run for run in runs if run.status is RunStatus.SUCCEEDED)
        if not ready:
            reasons = "; ".join(f"{run.model} {run.status}: {run.error.detail}" for run in runs if run.error)
            raise NoResults(f"There are no results. {reasons}" if reasons else "There are no results.")
        return forecast, ready

    async def page(
        self, forecast: Forecast, runs: Sequence[Run], selection: Selection, after: Position | None, limit: int
    ) -> list[QuantileRow]:
        """Up to `limit` rows behind `after`."""
        rows: list[QuantileRow] = []
        first = after[0] if after else ""
        servers = 2 + limit // forecast.request.horizon
        while True:
            found = await self._aligned(runs, first, selection, servers)
            if not found:
                return rows
            times = found[0].times()
            inside = _inside(times, selection)
            for place, server_id in enumerate(found[0].server_ids):
                steps = np.flatnonzero(inside[place])
                for run, matrix in zip(runs, found, strict=True):
                    for step in steps:
                        position = (server_id, run.position, int(step))
                        if after is not None and position <= after:
                            continue
                        values = tuple(float(str(value)) for value in matrix.values[place, step])
                        shown = found[0].frequency.show(times[place, step])
                        rows.append(QuantileRow(server_id, run.model, shown, values, position))
                        if len(rows) == limit:
                            return rows
            if len(found[0]) < servers:
                return rows
            first = found[0].server_ids[-1] + _BEHIND

    async def tables(self, forecast: Forecast, runs: Sequence[Run], selection: Selection) -> AsyncIterator[pa.Table]:
        """The whole selection as Arrow tables (server_id, model, timestamp, p…), some servers at a time.

        A selection of nothing is one table without rows.
        """
        first = ""
        per_server = forecast.request.horizon * len(runs) * len(forecast.request.levels)
        servers = max(1, min(BATCH, VALUES // per_server))
        while found := await self._aligned(runs, first, selection, servers):
            yield await asyncio.to_thread(_table, runs, found, selection)
            if len(found[0]) < servers:
                return
            first = found[0].server_ids[-1] + _BEHIND
        if not first and (anybody := await self._aligned(runs, "", Selection(), 1)):
            yield _table(runs, anybody, selection).slice(0, 0)

    async def comparison(self, forecast_id: UUID) -> tuple[Forecast, list[Run]]:
        """The succeeded runs, best first. Raises ForecastNotReady before the end, NoResults when there are none."""
        forecast = await self._forecasts.get(forecast_id)
        if not forecast.is_terminal:
            raise ForecastNotReady("The comparison is made when all runs have ended. Ask again, or follow /events.")
        ranked = rank(forecast.runs)
        if not ranked:
            raise NoResults("No run succeeded, so there is nothing to compare; see the runs' errors.")
        return forecast, ranked

    async def server(self, run: Run, server_id: str) -> ResultMatrix:
        """The results of one server. Raises NotFound when the run has none of it."""
        found = await self._results.some(run.id, only=[server_id], limit=1)
        if found is None:
            raise NotFound(f"The run of {run.model} has no server {server_id!r}.")
        return found

    async def comparison_by_server(
        self, runs: Sequence[Run], after: str | None, limit: int, *, only: str | None = None
    ) -> list[ServerScores]:
        """Each server's figures per model, from the server behind `after` on; or of only one."""
        selection = Selection(server_ids=() if only is None else (only,))
        found = await self._aligned(runs, "" if after is None else after + _BEHIND, selection, limit)
        if not found:
            return []

        def weighed(run: Run, matrix: ResultMatrix, place: int) -> dict[str, float]:
            members = (run.report or {}).get("members")
            if not isinstance(members, list) or matrix.weights is None:
                return {}
            return dict(zip(members, (float(str(share)) for share in matrix.weights[place]), strict=True))

        def figure(matrix: ResultMatrix, name: str, place: int) -> float | None:
            value = matrix.scores[name][place]
            return None if np.isnan(value) else float(str(value))

        return [
            ServerScores(
                server_id,
                {
                    run.model: {name: figure(matrix, name, place) for name in SCORES}
                    for run, matrix in zip(runs, found, strict=True)
                },
                {
                    run.model: shares
                    for run, matrix in zip(runs, found, strict=True)
                    if (shares := weighed(run, matrix, place))
                },
                {
                    run.model: stood_in
                    for run, matrix in zip(runs, found, strict=True)
                    if (stood_in := matrix.fallback[place])
                },
            )
            for place, server_id in enumerate(found[0].server_ids)
        ]

    async def _aligned(self, runs: Sequence[Run], first: str, selection: Selection, limit: int) -> list[ResultMatrix]:
        """The same next servers of each run; nothing when there are no more. Runs of a forecast share their servers."""
        only = selection.server_ids or None
        found = [await self._results.some(run.id, first=first, only=only, limit=limit) for run in runs]
        return [matrix for matrix in found if matrix is not None]


def _named(forecast: Forecast, models: Sequence[str]) -> tuple[Run, ...]:
    """The runs of these models in the order asked for; without any, the best one's, or all while there is none."""
    unknown = sorted(set(models) - {run.model for run in forecast.runs})
    if unknown:
        detail = f"The forecast has no run of {', '.join(unknown)}; it has {', '.join(r.model for r in forecast.runs)}."
        raise Invalid(detail, errors=[Complaint("?model", "unknown-model", detail)])
    if models:
        return tuple(run for run in forecast.runs if run.model in models)
    if forecast.status not in ForecastStatus.TERMINAL or forecast.best_model is None:
        return forecast.runs
    return tuple(run for run in forecast.runs if run.model == forecast.best_model)


def _inside(times: Times, selection: Selection) -> np.ndarray[Any, np.dtype[np.bool_]]:
    inside = np.ones(times.shape, dtype=np.bool_)
    if selection.start is not None:
        inside &= times >= selection.start
    if selection.end is not None:
        inside &= times <= selection.end
    return inside


def _table(runs: Sequence[Run], found: Sequence[ResultMatrix], selection: Selection) -> pa.Table:
    servers, horizon, levels = found[0].values.shape
    times = np.broadcast_to(found[0].times()[:, None, :], (servers, len(runs), horizon))
    inside = np.broadcast_to(_inside(found[0].times(), selection)[:, None, :], times.shape).ravel()
    values = np.stack([matrix.values for matrix in found], axis=1).reshape(-1, levels)[inside]
    server = np.repeat(np.arange(servers, dtype=np.int32), len(runs) * horizon)[inside]
    model = np.tile(np.repeat(np.arange(len(runs), dtype=np.int32), horizon), servers)[inside]
    daily = found[0].frequency is Frequency.DAILY
    stamps = times.ravel()[inside]
    return pa.table(
        {
            "server_id": pa.DictionaryArray.from_arrays(server, pa.array(found[0].server_ids, pa.string())).cast(
                pa.string()
            ),
            "model": pa.DictionaryArray.from_arrays(model, pa.array([run.model for run in runs])).cast(pa.string()),
            "timestamp": pa.array(stamps.astype("datetime64[D]"))
            if daily
            else pa.array(stamps).cast(pa.timestamp("s", "UTC")),
            **{quantiles.name(level): values[:, place] for place, level in enumerate(found[0].levels)},
        }
    )

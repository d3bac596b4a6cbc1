"""How a forecast did: its quantiles against rows that came later, in a newer version of its dataset.

The figures are those of the comparison, of what was really served. Steps whose rows have not come are left out. Whether
they are worse than the back-test promised is domain/drift's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.compute import Compute
from app.domain.drift import NOTHING, Drift, drift
from app.domain.evaluation import Scores, pooled_scores, seasonal_scale, tallies
from app.domain.forecast import Forecast, rank
from app.domain.panel import Array, Panel, Times
from app.domain.quantiles import BASE
from app.domain.tally import period
from app.errors import ForecastNotReady, NoResults
from app.services.forecasts import Forecasts
from app.storage import datasets as stored_datasets
from app.storage.artifacts import Store
from app.storage.database import Database
from app.storage.panels import load_panel
from app.storage.results import Reals, ResultMatrix, Results

SECONDS = 300.0


@dataclass(frozen=True)
class ModelAccuracy:
    """`values`: how many values have come to compare with; `scores` is None while there are none.

    `worst` names the servers of `drift.worst`, in its order."""

    model: str
    values: int
    scores: Scores | None
    drift: Drift
    worst: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """`dataset_id`: the version that the later rows are from, None while there is none."""

    forecast: Forecast
    dataset_id: UUID | None
    models: tuple[ModelAccuracy, ...]


class Accuracies:
    def __init__(
        self, database: Database, forecasts: Forecasts, results: Results, store: Store, compute: Compute
    ) -> None:
        self._database, self._forecasts, self._results = database, forecasts, results
        self._store, self._compute = store, compute

    async def of(self, forecast_id: UUID) -> Accuracy:
        """Each succeeded run against the newest version. Raises NotFound, ForecastNotReady, NoResults."""
        forecast = await self._forecasts.get(forecast_id)
        if not forecast.is_terminal:
            raise ForecastNotReady("The forecast has not ended; there is nothing to compare yet.")
        runs = rank(forecast.runs)
        if not runs:
            raise NoResults("No run succeeded, so there is nothing to compare with what came.")
        async with self._database.connect() as connection:
            newer = await stored_datasets.newest_version(connection, forecast.request.dataset_id)
        if newer is None:
            return Accuracy(forecast, None, tuple(ModelAccuracy(run.model, 0, None, NOTHING, ()) for run in runs))
        path = await self._store.local(newer.location)
        found = [await self._results.matrix(run.id) for run in runs]
        promised = [its and its[1] for its in [await self._results.tally(run.id) for run in runs]]
        scored = await self._compute.run(_scored, path, forecast.request.metric, found, promised, seconds=SECONDS)
        return Accuracy(
            forecast,
            newer.id,
            tuple(ModelAccuracy(run.model, *its) for run, its in zip(runs, scored, strict=True)),
        )


def _scored(
    path: Path, metric: str, found: Sequence[ResultMatrix], promised: Sequence[Reals | None]
) -> list[tuple[int, Scores | None, Drift, tuple[str, ...]]]:
    """In a child: for each run, the values that have come, the scores against them, its drift and who drifts most."""
    panel = load_panel(path, metric, found[0].server_ids)
    answers = []
    season = panel.frequency.season
    for matrix, promise in zip(found, promised, strict=True):
        actual = came_after(panel, matrix.as_of, matrix.values.shape[1])
        base = matrix.values[..., [matrix.levels.index(level) for level in BASE]].astype(np.float64)
        compared = base[None], actual[None], seasonal_scale(_until(panel, matrix.as_of), season)[None]
        live = tallies(*compared, period(panel.frequency))
        its = NOTHING if promise is None else drift(live, promise, season)
        worst = tuple(matrix.server_ids[one.server] for one in its.worst)
        answers.append((int(np.isfinite(actual).sum()), pooled_scores(*compared), its, worst))
    return answers


def came_after(panel: Panel, as_of: Times, horizon: int) -> Array:
    """Each server's values of the `horizon` steps behind `as_of`: (servers, horizon), NaN where none has come."""
    columns = _column(panel, as_of)[:, None] + 1 + np.arange(horizon)
    inside = columns < panel.steps
    return np.where(inside, np.take_along_axis(panel.values, np.minimum(columns, panel.steps - 1), axis=1), np.nan)


def _until(panel: Panel, as_of: Times) -> Panel:
    """The history that the forecast knew."""
    steps = panel.last - _column(panel, as_of)
    return panel.before_each(np.maximum(steps, 0))


def _column(panel: Panel, times: Times) -> NDArray[np.int64]:
    columns: NDArray[np.int64] = ((times - panel.start) // panel.frequency.step).astype(np.int64)
    return columns

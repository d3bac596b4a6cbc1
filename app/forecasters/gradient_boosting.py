"""One LightGBM for the whole fleet: every step of every server forecast directly, one booster per quantile.

A training row is a (server, origin, step) of the past: what was known at the origin, the calendar of the target day,
and how far the target then lay from the mean of its last four weekdays (for hours, its last four hours of the day),
in units of the server's recent spread. Nothing is fed back: recursing quantile models over-cover. It leaves out
server identity, so that a young server is forecast from what the others went through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray

from app.domain import quantiles
from app.domain.panel import Array, Frequency, Index, Panel
from app.forecasters import _regressors

ROWS = 40_000
"""Most training rows: past this, more rows cost time and gain nothing that was measured."""

ROWS_PER_SERVER = 1_000

ROWS_PER_STEP = 4
"""So that a server of two weeks, with few different rows to give, does not drown the others."""

ROWS_AT_ONCE = 250_000
"""Rows predicted at once: bounds the memory of a long horizon of many servers."""

FAR = 50.0
"""Targets beyond so many deviations of the recent past count as that many: one server that rises by factors of a
thousand must not set the leaves of all."""

TREES = 75
SEED = 20_220_101
PARAMETERS = {
    "objective": "quantile",
    "learning_rate": 0.06,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True)
class FittedBoosters:
    """A booster per level of `quantiles.BASE`; `panel` is what the future's features are read from."""

    boosters: tuple[lightgbm.Booster, ...]
    panel: Panel

    def predict(self, horizon: int, levels: Sequence[float]) -> Array:
        history = _history(self.panel, horizon)
        forecast = np.empty((len(self.panel), horizon, len(levels)))
        for servers in _blocks(len(self.panel), horizon):
            rows = np.repeat(servers, horizon)
            steps = np.tile(np.arange(1, horizon + 1), len(servers))
            design = _design(history, rows, self.panel.last[rows], steps)
            known = np.column_stack([booster.predict(design.features) for booster in self.boosters])
            base = design.middle[:, None] + design.scale[:, None] * np.sort(known, axis=1)
            forecast[servers] = quantiles.interpolate(base, quantiles.BASE, levels).reshape(len(servers), horizon, -1)
        return forecast


@dataclass(frozen=True)
class GradientBoostingForecaster:
    name: str = "gradient_boosting"
    chunk: int = 0
    earlier_windows: int = 2

    def fit(self, panel: Panel, horizon: int) -> FittedBoosters:
        history = _history(panel, 0)
        rows, origins, steps = _pairs(panel, horizon)
        design = _design(history, rows, origins, steps)
        target = np.clip((panel.values[rows, origins + steps] - design.middle) / design.scale, -FAR, FAR)
        data = lightgbm.Dataset(design.features, target)
        boosters = tuple(
            lightgbm.train({**PARAMETERS, "alpha": level}, data, num_boost_round=TREES) for level in quantiles.BASE
        )
        return FittedBoosters(boosters, panel)


@dataclass(frozen=True)
class _Design:
    """`features` float32 (rows, K), NaN where the history does not reach; a target is `middle` + z `scale`."""

    features: NDArray[np.float32]
    middle: Array
    scale: Array


@dataclass(frozen=True)
class _History:
    """Running sums of a panel, from which the mean of any stretch of history is one subtraction.

    `sums` and `squares`: (servers, steps + 1); `calendar`: (steps + horizon, K);
    `known`, each: (servers, steps + horizon).
    """

    frequency: Frequency
    first: Index
    values: Array
    sums: Array
    squares: Array
    calendar: Array
    known: tuple[Array, ...]

    def mean(self, rows: Index, start: Index, stop: Index, of: Array | None = None) -> Array:
        """Mean of columns start … stop - 1 of each row's server, NaN where it has none of them."""
        sums = self.sums if of is None else of
        start = np.maximum(start, self.first[rows])
        count = stop - start
        total = sums[rows, np.maximum(stop, start)] - sums[rows, start]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def phase_means(self, rows: Index, origins: Index, steps: Index, season: int, counts: Sequence[int]) -> list[Array]:
        """Means of the last 1, 2, … values before the origin at the target's place in the season; NaN where none."""
        newest = origins + steps - season * -(-steps // season)
        total, found, means = np.zeros(len(rows)), np.zeros(len(rows)), []
        for back in range(max(counts)):
            column = newest - season * back
            inside = column >= self.first[rows]
            total += np.where(inside, self.values[rows, np.maximum(column, 0)], 0.0)
            found += inside
            if back + 1 in counts:
                means.append(np.where(found > 0, total / np.maximum(found, 1), np.nan))
        return means


def _history(panel: Panel, horizon: int) -> _History:
    values = np.nan_to_num(panel.values)
    columns, names = _regressors.calendar_columns(panel, horizon)
    longest = int((panel.last - panel.first).max()) + 1
    return _History(
        frequency=panel.frequency,
        first=panel.first,
        values=values,
        sums=_running(values),
        squares=_running(values**2),
        calendar=columns[:, _regressors.seen(names, longest / panel.frequency.per_day)],
        known=tuple(_regressors.known_ahead(panel, horizon).values()),
    )


def _running(values: Array) -> Array:
    return np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))


def _design(history: _History, rows: Index, origins: Index, steps: Index) -> _Design:
    """What a (server, origin, step) knows at its origin, levels relative to the recent level and spread."""
    season = history.frequency.season
    end, target = origins + 1, origins + steps

    def recent(seasons: int) -> Array:
        return history.mean(rows, end - seasons * season, end)

    level, quarter = recent(4), recent(13)
    variance = history.mean(rows, end - 13 * season, end, history.squares) - quarter**2
    scale = np.sqrt(np.maximum(variance, 0) + (0.05 * level) ** 2)
    scale = np.where(scale > 0, scale, 1.0)

    phases = history.phase_means(rows, origins, steps, season, (1, 2, 4, 8))
    middle = np.where(np.isfinite(phases[2]), phases[2], level)
    if history.frequency is Frequency.HOURLY:
        phases += history.phase_means(rows, origins, steps, 7 * season, (1, 4))

    year = 364 * history.frequency.per_day  # whole weeks, so that weekdays meet
    past_year = year * -(-(steps + season) // year)
    then, half = target - past_year, season // 2
    last_year = [
        history.mean(rows, then - half, then + half + 1),
        history.mean(rows, then, then + 1),
        history.mean(rows, end - past_year - 4 * season, end - past_year),
    ]
    levels = [
        history.values[rows, origins],
        recent(1),
        recent(2),
        quarter,
        recent(52),
        *phases,
        last_year[0],
        last_year[2],
    ]
    features = [
        steps,
        *((value - level) / scale for value in levels),
        (last_year[0] - last_year[2]) / scale,
        (last_year[1] - last_year[0]) / scale,
        scale / np.maximum(np.abs(level), 1e-9),
        level,
        *history.calendar[target].T,
        *(column[rows, target] for column in history.known),
    ]
    return _Design(np.column_stack(features).astype(np.float32), middle, scale)


def _pairs(panel: Panel, horizon: int) -> tuple[Index, Index, Index]:
    """Training rows, drawn at random: server, origin and step, each target inside the server's history.

    An origin has a third of the server's history before it, or thirteen seasons where there are more.
    """
    random = np.random.default_rng(SEED)
    length = panel.last - panel.first + 1
    before = np.minimum(length // 3, 13 * panel.frequency.season)
    each = np.minimum(min(ROWS_PER_SERVER, max(ROWS // len(panel), 1)), ROWS_PER_STEP * (length - before))
    rows = np.repeat(np.arange(len(panel)), each)
    longest = np.minimum(horizon, length - before)[rows]
    steps = random.integers(1, longest + 1)
    room = (length - before)[rows] - steps
    origins = panel.last[rows] - steps - random.integers(0, room + 1)
    return rows, origins, steps


def _blocks(servers: int, horizon: int) -> Iterator[Index]:
    size = max(1, ROWS_AT_ONCE // horizon)
    for start in range(0, servers, size):
        yield np.arange(start, min(start + size, servers))


FORECASTER = GradientBoostingForecaster()

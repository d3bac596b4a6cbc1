"""A random forest per server: calendar, time and known-ahead regressors, around a damped linear trend.

The forest learns what the trend leaves over, so that the forecast can go on growing where trees alone would stay at
the last level. Its quantiles are those of the training values that share leaves with a step (Meinshausen, Quantile
Regression Forests, JMLR 7, 2006). It leaves out lags: every step of the horizon is forecast alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from app.domain import calendar
from app.domain.panel import Array, Index, Panel
from app.forecasters import _regressors

TREES = 100
LEAF, LEAVES = 20, 14
"""Fewest history values of a leaf; less where the history has not room for so many leaves of them."""

FEATURES_TRIED = 0.5
SEED = 20_220_101

SHARE_OF_HISTORY = 0.1
"""The trend is followed for this share of the history's length, in the sense of an exponential damping."""


@dataclass(frozen=True)
class Trend:
    """A line through the history, flattening out after step `end`: value `level` + steps times `slope`."""

    level: float
    slope: float
    end: int
    reach: float

    def at(self, steps: Index) -> Array:
        ahead = np.maximum(steps - self.end, 0)
        damped: Array = np.minimum(steps, self.end) - self.reach * np.expm1(-ahead / self.reach)
        return self.level + self.slope * damped


@dataclass(frozen=True)
class Leaves:
    """One server's forest; `values` are its detrended history, ascending, `leaves` theirs: (values, trees)."""

    forest: RandomForestRegressor
    trend: Trend
    values: Array
    leaves: Index

    def quantiles(self, design: Array, levels: Sequence[float]) -> Array:
        """Quantiles around the trend at each row of the design: (rows, levels)."""
        weights = np.zeros((len(design), len(self.values)))
        for ahead, past in zip(self.forest.apply(design).T, self.leaves.T, strict=True):
            shared = ahead[:, None] == past
            weights += shared / shared.sum(axis=1, keepdims=True)
        below = np.cumsum(weights, axis=1) / len(self.forest.estimators_)
        at = [(below < level).sum(axis=1).clip(max=len(self.values) - 1) for level in levels]
        found: Array = self.values[np.column_stack(at)]
        return found


@dataclass(frozen=True)
class FittedForests:
    servers: tuple[Leaves, ...]
    panel: Panel

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        design = _design(self.panel, horizon)
        forecast = np.empty((len(self.servers), horizon, len(quantiles)))
        for row, (server, ahead) in enumerate(zip(self.servers, self.panel.future_columns(horizon), strict=True)):
            around = server.quantiles(design.rows(row, ahead), quantiles)
            forecast[row] = server.trend.at(ahead)[:, None] + around
        return forecast


@dataclass(frozen=True)
class RandomForestForecaster:
    name: str = "random_forest"
    chunk: int = 16
    earlier_windows: int = 1

    def fit(self, panel: Panel, horizon: int) -> FittedForests:
        design = _design(panel, 0)
        season = _season(panel)
        servers = []
        for row, (first, last) in enumerate(zip(panel.first, panel.last, strict=True)):
            steps = np.arange(first, last + 1)
            values = panel.values[row, steps]
            trend = _trend(values, steps, season[steps], 365 * panel.frequency.per_day)
            around = values - trend.at(steps)
            forest = RandomForestRegressor(
                TREES,
                min_samples_leaf=min(LEAF, len(steps) // LEAVES),
                max_features=FEATURES_TRIED,
                n_jobs=1,
                random_state=SEED,
            ).fit(design.rows(row, steps), around)
            order = np.argsort(around, kind="stable")
            servers.append(Leaves(forest, trend, around[order], forest.apply(design.rows(row, steps[order]))))
        return FittedForests(tuple(servers), panel)


@dataclass(frozen=True)
class _Design:
    """Features on a grid: `shared`, (steps, K), of which each server takes some, and `own`, (servers, steps, K')."""

    shared: Array
    own: Array
    columns: tuple[Index, ...]

    def rows(self, server: int, steps: Index) -> Array:
        shared = self.shared[steps][:, self.columns[server]]
        return np.hstack([steps[:, None], shared, self.own[server, steps]])


def _design(panel: Panel, horizon: int) -> _Design:
    shared, names = _regressors.calendar_columns(panel, horizon)
    known = list(_regressors.known_ahead(panel, horizon).values())
    days = (panel.last - panel.first + 1) / panel.frequency.per_day
    return _Design(
        shared=shared,
        own=np.stack(known, axis=-1) if known else np.empty((len(panel), len(shared), 0)),
        columns=tuple(_regressors.seen(names, span) for span in days),
    )


def _season(panel: Panel) -> Array:
    """Two harmonics of the year, that a trend is not mistaken for: (steps, 4)."""
    angle = 2 * np.pi * calendar.day_of_year(panel.times)[:, None] * [1, 2]
    return np.hstack([np.sin(angle), np.cos(angle)])


def _trend(values: Array, steps: Index, season: Array, year: int) -> Trend:
    """Least squares of the line, beside the yearly season where the history is long enough to tell the two apart."""
    line = np.column_stack([np.ones(len(steps)), steps])
    years = season[:, : 4 * (len(steps) >= 1.5 * year)]
    level, slope, *_ = np.linalg.lstsq(np.hstack([line, years]), values, rcond=None)[0]
    return Trend(float(level), float(slope), int(steps[-1]), SHARE_OF_HISTORY * len(steps))


FORECASTER = RandomForestForecaster()

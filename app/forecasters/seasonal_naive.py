"""The last season again: what every other model has to beat, and what stands in where one cannot fit a server.

It leaves out trend, holidays and known-ahead regressors. It answers for every server with 14 values or more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.domain.panel import Array, Index, Panel


@dataclass(frozen=True)
class SeasonalNaive:
    """`cycle` is the last season of each server, oldest first: (servers, season), its first `season[i]` used.

    `residuals` are the absolute seasonal differences of the history: (servers, steps), NaN where there is none.
    """

    cycle: Array
    season: Index
    residuals: Array

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        """The season repeated; k seasons ahead the spread has grown by √k, as for a seasonal random walk.

        The spread is symmetric: the level p lies the |2p-1| quantile of the absolute residuals away from the
        middle, which a few bursts do not widen as they would a standard deviation.
        """
        ahead = np.arange(horizon)
        middle = np.take_along_axis(self.cycle, ahead % self.season[:, None], axis=1)
        growth = np.sqrt(ahead // self.season[:, None] + 1)
        side = 2 * np.asarray(quantiles) - 1
        spread = np.sign(side) * np.nanquantile(self.residuals, np.abs(side), axis=1).T
        forecast: Array = middle[..., None] + growth[..., None] * np.maximum.accumulate(spread, axis=1)[:, None, :]
        return forecast


@dataclass(frozen=True)
class SeasonalNaiveForecaster:
    name: str = "seasonal_naive"
    chunk: int = 2_000
    earlier_windows: int = 4

    def fit(self, panel: Panel, horizon: int) -> SeasonalNaive:
        """A server with no two whole seasons repeats its last value instead (a season of one step)."""
        full = panel.frequency.season
        season = np.where(panel.last - panel.first + 1 >= 2 * full, full, 1)
        back = panel.last[:, None] + 1 - season[:, None] + np.minimum(np.arange(full), season[:, None] - 1)
        steps = np.arange(panel.steps)
        before = steps - season[:, None]
        lagged = np.take_along_axis(panel.values, np.maximum(before, 0), axis=1)
        inside = (before >= panel.first[:, None]) & (steps <= panel.last[:, None])
        return SeasonalNaive(
            cycle=np.take_along_axis(panel.values, back, axis=1),
            season=season,
            residuals=np.where(inside, np.abs(panel.values - lagged), np.nan),
        )


FORECASTER = SeasonalNaiveForecaster()

"""Classical statistics on calendar-adjusted series: the mean of simple exponential smoothing and an autoregression.

What the calendar explains is taken out first, by the regression that `structural` uses (_adjustment), and added back:
without it, methods of this kind hardly beat the last weeks' mean. What is left has no season. Smoothing follows its
level wherever it goes, the autoregression returns to its mean (Holt 1957; Box & Jenkins 1970), and the mean of the two
is safer than either (Bates & Granger 1969). It leaves out trend, which neither draws out, and calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsforecast.models import ARIMA, AutoETS

from app.domain.calibration import normal_scores_of
from app.domain.panel import Array, Panel
from app.forecasters import _adjustment
from app.forecasters._adjustment import Scale

RECENT = 365
"""The autoregression learns from so many last steps, so that its mean is not one of long ago."""

TRUST = 120.0
"""Steps of history at which the autoregression counts as much as smoothing: a mean takes time to show."""

LEVEL = 80
"""The interval, in percent, that a spread is read from."""

STILL = 1e-9
"""A range, in deviations of the server, that is none."""


@dataclass(frozen=True)
class FittedStatistics:
    """Normal quantiles around a centre, on the scale of the fit, and the way back to the metric's unit."""

    centre: Array  # (servers, horizon)
    spread: Array  # (servers, horizon)
    scale: Scale

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        at = normal_scores_of(tuple(quantiles))
        return self.scale.back(self.centre[:, :horizon, None] + self.spread[:, :horizon, None] * at)


@dataclass(frozen=True)
class Statistical:
    name: str = "statistical"
    chunk: int = 500
    earlier_windows: int = 3

    def fit(self, panel: Panel, horizon: int) -> FittedStatistics:
        known = _adjustment.adjust(panel, horizon)
        ahead = [
            _ahead(settled[first : last + 1], horizon)
            for settled, first, last in zip(known.settled, panel.first, panel.last, strict=True)
        ]
        centre, spread = (np.array(part) for part in zip(*ahead, strict=True))
        columns = panel.future_columns(horizon)
        spread *= known.optimism[:, None] * np.take_along_axis(known.season, columns, axis=1)
        return FittedStatistics(centre + np.take_along_axis(known.effect, columns, axis=1), spread, known.scale)


FORECASTER = Statistical()


def _ahead(settled: Array, horizon: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the next steps of one server's values without calendar: (horizon,) each."""
    if np.ptp(settled) < STILL:
        return np.full(horizon, settled[-1]), np.zeros(horizon)
    smooth = _moments(AutoETS(season_length=1, model="ANN"), settled, horizon)
    recent = settled[-RECENT:]
    try:
        regressive = _moments(ARIMA(order=(1, 0, 0), include_mean=True), recent, horizon)
    except ValueError:  # a random walk has no mean to return to
        return smooth
    share = len(recent) / (len(recent) + TRUST)
    mean, deviation = ((1 - share) * one + share * other for one, other in zip(smooth, regressive, strict=True))
    return mean, deviation


def _moments(model: ARIMA | AutoETS, settled: Array, horizon: int) -> tuple[Array, Array]:
    made = model.forecast(y=settled, h=horizon, level=[LEVEL])
    upper = normal_scores_of(((1 + LEVEL / 100) / 2,))[0]
    return made["mean"], (made[f"hi-{LEVEL}"] - made["mean"]) / upper

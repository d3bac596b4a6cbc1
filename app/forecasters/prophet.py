"""Prophet, one model per server: trend, yearly and weekly season (and daily, for hours), calendar events, regressors.

It leaves out calibration, and the search for settings but for the one that matters, whether the seasons grow with the
level: it is decided by a back-test within the history, together for the servers of a chunk.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from prophet import Prophet

from app.domain import calendar
from app.domain.calendar import Flags
from app.domain.panel import MIN_VALUES, Array, Frequency, Index, Panel, Times
from app.forecasters import _regressors

logging.getLogger("prophet").setLevel(logging.ERROR)
logging.getLogger("cmdstanpy").disabled = True  # it sets its own level when Prophet loads it

SAMPLES = 1_000
"""Predictive samples a quantile is read from."""

SEED = 20_220_101

TREND_CHANGE = 0.01
"""Prior scale of trend changes. Prophet's own 0.05 follows every turn of the past and draws it out over the horizon."""

HORIZONS_OF_TREND = 4

TRIED = 0.25
"""Share of a chunk's servers that the mode of the seasons is tried on, so that a fit costs less than half more."""

AWAY = 0.2
"""Seasons grow with the level only where no four of them have a mean below this share of the whole."""

YEAR = np.timedelta64(365, "D")
TWO_WEEKS = np.timedelta64(14, "D")


@dataclass(frozen=True)
class FittedProphet:
    """A fitted model per server, and what the future is built from: the panel's grid and known-ahead regressors."""

    models: tuple[Prophet, ...]
    events: tuple[str, ...]
    panel: Panel

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        """Quantiles of predictive samples: future trend changes as likely as past ones, and the fitted noise.

        Every server draws from the same seed, so that its forecast does not depend on its neighbours in the chunk.
        """
        design = _design(self.panel, horizon, self.events)
        columns = self.panel.future_columns(horizon)
        forecast = np.empty((len(self.models), horizon, len(quantiles)))
        for row, (model, ahead) in enumerate(zip(self.models, columns, strict=True)):
            np.random.seed(SEED)  # Prophet draws from numpy's global generator
            samples = model.predictive_samples(design.frame(row, ahead))["yhat"]
            forecast[row] = np.quantile(samples, quantiles, axis=1).T
        return forecast

    def centre(self, horizon: int) -> Array:
        """Without samples: (servers, horizon)."""
        design = _design(self.panel, horizon, self.events)
        columns = self.panel.future_columns(horizon)
        rows = enumerate(zip(self.models, columns, strict=True))
        return np.array([model.predict(design.frame(row, ahead))["yhat"] for row, (model, ahead) in rows])


@dataclass(frozen=True)
class ProphetForecaster:
    name: str = "prophet"
    chunk: int = 16
    earlier_windows: int = 1

    def fit(self, panel: Panel, horizon: int) -> FittedProphet:
        away = _away_from_zero(panel)
        return _fit(panel, horizon, away & _grows_with_level(panel, horizon, np.flatnonzero(away)))


def _fit(panel: Panel, horizon: int, growing: Flags, samples: int = SAMPLES) -> FittedProphet:
    """`growing` (servers,): whether a server's seasons grow with its level."""
    past = panel.times[: int(panel.last.max()) + 1]
    events = tuple(calendar.holidays(past, panel.country))
    design = _design(panel, 0, events)
    models = []
    for row, (first, last) in enumerate(zip(panel.first, panel.last, strict=True)):
        steps = np.arange(first, last + 1)
        model = _model(panel.times[steps], panel.frequency, horizon, bool(growing[row]), samples)
        for regressor in design.names:
            model.add_regressor(regressor)
        model.fit(design.frame(row, steps).assign(y=panel.values[row, steps]), seed=SEED)
        if model.stan_backend is not None:
            model.stan_backend.cleanup()  # Stan's files would else stay until the process ends
        models.append(model)
    return FittedProphet(tuple(models), events, panel)


@dataclass(frozen=True)
class _Design:
    """Regressors on a grid: `shared` by all servers, (steps,) each, and `own`, (servers, steps) each."""

    times: Times
    shared: dict[str, Array]
    own: dict[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.shared, *self.own)

    def frame(self, row: int, steps: Index) -> pd.DataFrame:
        """Prophet's input for one server at some steps."""
        shared = {name: column[steps] for name, column in self.shared.items()}
        own = {name: column[row, steps] for name, column in self.own.items()}
        return pd.DataFrame({"ds": self.times[steps], **shared, **own})


def _design(panel: Panel, horizon: int, events: Sequence[str]) -> _Design:
    """The named holidays, the end of the quarter, known-ahead regressors; under names that Prophet does not reserve."""
    times = panel.times_with_future(horizon)
    found = calendar.holidays(times, panel.country)
    never = np.zeros(len(times), dtype=np.bool_)
    flags = {f"holiday {name}": found.get(name, never) for name in events}
    flags["end of quarter"] = calendar.end_of_quarter(times)
    return _Design(
        times=times,
        shared={name: column.astype(np.float64) for name, column in flags.items()},
        own={f"known {name}": column for name, column in _regressors.known_ahead(panel, horizon).items()},
    )


def _model(times: Times, frequency: Frequency, horizon: int, growing: bool, samples: int) -> Prophet:
    """Prophet with what the history has room for: a year for a yearly season, two weeks for a weekly one.

    A line through less than a year may be a season in disguise: it is only followed over a short horizon.
    """
    span = times[-1] - times[0] + frequency.step
    years = bool(span >= YEAR)  # Prophet takes np.True_ for one harmonic
    return Prophet(
        growth="linear" if years or len(times) >= HORIZONS_OF_TREND * horizon else "flat",
        changepoint_prior_scale=TREND_CHANGE,
        yearly_seasonality=years,
        weekly_seasonality=bool(span >= TWO_WEEKS),
        daily_seasonality=frequency is Frequency.HOURLY,
        seasonality_mode="multiplicative" if growing else "additive",
        uncertainty_samples=samples,
    )


def _grows_with_level(panel: Panel, horizon: int, servers: Index) -> bool:
    """Whether seasons that grow with the level would have foretold the last `horizon` steps better.

    On a few of the servers, each error against that of seasons that do not grow, the mean of the logarithms; no, where
    none of the servers has twice the horizon before.
    """
    before = panel.before(horizon)
    able = servers[before.counts()[servers] >= max(MIN_VALUES, 2 * horizon)]
    if not able.size:
        return False
    tried = able[:: round(1 / TRIED)]
    actual = panel.take(tried).window(1, horizon)
    errors = [
        np.abs(_fit(before.take(tried), horizon, np.full(len(tried), growing), samples=0).centre(horizon) - actual)
        for growing in (True, False)
    ]
    growing, steady = (np.log(np.maximum(error.mean(axis=1), 1e-12)) for error in errors)
    return bool(growing.mean() < steady.mean())


def _away_from_zero(panel: Panel) -> Flags:
    """Servers whose level stays away from zero, in blocks of four seasons: (servers,)."""
    block = 4 * panel.frequency.season
    away = np.zeros(len(panel), dtype=np.bool_)
    for row, (first, last) in enumerate(zip(panel.first, panel.last, strict=True)):
        values = panel.values[row, first : last + 1]
        levels = values[len(values) % block :].reshape(-1, block).mean(axis=1)
        away[row] = len(levels) >= 4 and levels.min() > AWAY * levels.mean()
    return away


FORECASTER = ProphetForecaster()

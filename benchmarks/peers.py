"""What a planner could install instead, each as its makers show it: the same history, horizon, quantiles, processors.

Every function takes some servers and answers p10, p50 and p90, (servers, horizon, 3). None has Headroom's preparation,
back-tests or calibration; gaps are filled with a straight line where a library takes none. A server on which a library
fails gets last week (or day) again.
"""

import logging
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from app.domain import calendar
from app.domain.panel import Array, Panel
from app.domain.quantiles import BASE

LAGS_BEYOND = (0, 1, 7, 14)
"""A direct forest knows values this many steps before the newest that every step of the horizon may know."""
TREES = 100


def prophet(past: Panel, horizon: int) -> Array:
    """As in its quick start: trend, yearly and weekly season, additive."""
    return _each(past, horizon, lambda row: _prophet(past, horizon, row, planned=False))


def prophet_planned(past: Panel, horizon: int) -> Array:
    """As a planner would who knows the business: multiplicative, holidays of the country, the end of the quarter."""
    return _each(past, horizon, lambda row: _prophet(past, horizon, row, planned=True))


def _prophet(past: Panel, horizon: int, row: int, planned: bool) -> Array:
    from prophet import Prophet

    for name in ("prophet", "cmdstanpy"):
        logging.getLogger(name).disabled = True
    times = past.times_with_future(horizon)
    frame = pd.DataFrame({"ds": times, "end_of_quarter": calendar.end_of_quarter(times).astype(float)})
    model = Prophet(seasonality_mode="multiplicative" if planned else "additive")
    if planned:
        model.add_country_holidays(country_name=past.country)
        model.add_regressor("end_of_quarter")
    steps = np.arange(past.first[row], past.last[row] + 1)
    model.fit(frame.iloc[steps].assign(y=past.values[row, steps]), seed=1)
    np.random.seed(1)
    samples = model.predictive_samples(frame.iloc[past.future_columns(horizon)[row]])["yhat"]
    return np.asarray(np.quantile(samples, BASE, axis=1).T)


def auto_ets(past: Panel, horizon: int) -> Array:
    """statsforecast's exponential smoothing, its form chosen by AICc, with the season of a week (or day)."""
    from statsforecast.models import AutoETS

    def one(row: int) -> Array:
        found = AutoETS(season_length=past.frequency.season).forecast(_whole(past, row), horizon, level=[80])
        return np.column_stack([found["lo-80"], found["mean"], found["hi-80"]])

    return _each(past, horizon, one)


def random_forest(past: Panel, horizon: int) -> Array:
    """scikit-learn's forest on the calendar and on lags; quantiles of what its trees say."""
    from sklearn.ensemble import RandomForestRegressor

    features, _ = calendar.features(past.times_with_future(horizon), past.frequency, past.country)

    def one(row: int) -> Array:
        first, last = int(past.first[row]), int(past.last[row])
        values = pd.Series(np.concatenate([_whole(past, row), np.full(horizon, np.nan)]))
        lags = np.column_stack([values.shift(horizon + lag) for lag in LAGS_BEYOND])
        table = np.hstack([features[first : last + 1 + horizon], lags])
        known = np.flatnonzero(np.isfinite(table).all(axis=1) & np.isfinite(values))
        if len(known) < 2 * past.frequency.season:  # too short for lags: the calendar alone
            table, known = features[first : last + 1 + horizon], np.flatnonzero(np.isfinite(values))
        forest = RandomForestRegressor(TREES, random_state=1).fit(table[known], values.to_numpy()[known])
        trees = np.array([tree.predict(table[-horizon:]) for tree in forest.estimators_])
        return np.asarray(np.quantile(trees, BASE, axis=0).T)

    return _each(past, horizon, one)


def autogluon(past: Panel, horizon: int) -> Array:
    """AutoGluon's medium_quality without models of a hub, told nothing of the calendar; both processors are its own."""
    from app.forecasters.autogluon import PreparedAutoGluon

    return PreparedAutoGluon(past, horizon, threads=2, told=False).predict(horizon, BASE)


def _each(past: Panel, horizon: int, forecast: Callable[[int], Array]) -> Array:
    answers = np.empty((len(past), horizon, len(BASE)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in range(len(past)):
            try:
                answers[row] = forecast(row)
            except Exception:  # of any library, for any reason: the others are to be compared
                answers[row] = np.nan
            if not np.isfinite(answers[row]).all():
                season = past.frequency.season
                again = _whole(past, row)[-season:][np.arange(horizon) % season]
                answers[row] = np.repeat(again[:, None], len(BASE), axis=1)
    return np.sort(answers, axis=-1)


def _whole(past: Panel, row: int) -> Array:
    values = past.values[row, int(past.first[row]) : int(past.last[row]) + 1]
    return np.asarray(pd.Series(values).interpolate(limit_direction="both").to_numpy())


PER_SERVER: dict[str, tuple[Callable[[Panel, int], Array], str]] = {
    "Prophet+": (prophet_planned, "prophet"),
    "Prophet": (prophet, "prophet"),
    "AutoETS": (auto_ets, "statsforecast"),
    "random forest": (random_forest, "sklearn.ensemble"),
}
"""Name → the peer and the library that it loads; a few servers at a time."""

AUTOGLUON = "AutoGluon"

"""Headroom's models as a run of the service uses them, without the service: fitted, back-tested, weighed, calibrated.

The fits and the judging are the service's own functions (services/fitting, domain/evaluation), given what it gives
them; only files, claims and the database are left out. Work goes through `tasks`, which may spread it over processes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from app import forecasters
from app.domain.dataset import Unit, bounds
from app.domain.evaluation import Trial, judge, seasonal_scale
from app.domain.panel import MIN_VALUES, Array, Panel
from app.domain.preparation import OUTLIER_Z
from app.domain.quantiles import BASE
from app.services.fitting import Piece, Source, predicted

REPORTED = 1
STAND_IN = "seasonal_naive"


class Tasks(Protocol):
    def __call__(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """The answers of `function(*arguments)` for each, in order."""
        ...


def in_turn(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [function(*each) for each in arguments]


@dataclass(frozen=True)
class Fitted:
    """The raw quantiles of a model: (1 + windows, servers, horizon, 3)."""

    model: str
    raw: Array


def members(model: str, servers: int) -> tuple[str, ...]:
    """Who is fitted for that model and so many servers."""
    forecaster = forecasters.load(model)
    return forecaster.members(servers) if isinstance(forecaster, forecasters.Ensemble) else (model,)


def windows(past: Panel, horizon: int, model: str) -> int:
    """Back-tests of a run of that model which reports one, as many as the history has room for."""
    room = max(0, (int(past.counts().max()) - MIN_VALUES) // horizon)
    return min(REPORTED + forecasters.load(model).earlier_windows, room)


def forecast(past: Panel, horizon: int, model: str, tasks: Tasks = in_turn) -> Array:
    """What a run of that model would answer, p10, p50 and p90: (servers, horizon, 3)."""
    count = windows(past, horizon, model)
    fits = fit(past, horizon, count, members(model, len(past)), tasks)
    answer: Array = tasks(judged, [(model, past, horizon, fits)])[0]
    return answer


def fit(past: Panel, horizon: int, count: int, models: Sequence[str], tasks: Tasks = in_turn) -> list[Fitted]:
    """Each model's forecast and `count` back-tests of it; the pieces of all at once, as in a run."""
    raw = [np.full((1 + count, len(past), horizon, len(BASE)), np.nan) for _ in models]
    places = [
        (number, window, slice(start, start + size))
        for number, model in enumerate(models)
        for size in (forecasters.member(model).chunk or len(past),)
        for start in range(0, len(past), size)
        for window in range(count + 1)
    ]
    every = np.arange(len(past))
    arguments = (
        (models[number], past.take(every[some]).before(window * horizon), horizon) for number, window, some in places
    )  # made one by one: the first is at work while the others are cut, as in a run, where each piece reads its own
    for (number, window, some), values in zip(places, tasks(piece, arguments), strict=True):
        raw[number][window, some] = values
    return [Fitted(model, values) for model, values in zip(models, raw, strict=True)]


def piece(model: str, past: Panel, horizon: int) -> Array:
    """One fit. Where it fails, its halves; where a single server fails, the stand-in, as the service does."""
    task = Piece(model, 0, Source("", "", Unit.PERCENT, past.country), 0, past.servers, horizon, BASE, OUTLIER_Z, "")
    try:
        return np.asarray(predicted(task, past)[0])
    except Exception:
        if len(past) == 1:
            return np.asarray(predicted(replace(task, model=STAND_IN), past)[0])
    halves = np.array_split(np.arange(len(past)), 2)
    return np.concatenate([piece(model, past.take(rows), horizon) for rows in halves])


def judged(model: str, past: Panel, horizon: int, fits: list[Fitted]) -> Array:
    """The fits weighed and calibrated: (servers, horizon, 3)."""
    count = len(fits[0].raw) - 1
    before = [past.before(window * horizon) for window in range(count + 1)]
    lower, upper = zip(*(bounds(Unit.PERCENT, panel.values) for panel in before), strict=True)
    actual = [past.window(window, horizon) for window in range(1, count + 1)]
    scale = [seasonal_scale(panel, past.frequency.season) for panel in before]
    trials = {
        fitted.model: Trial(
            levels=BASE,
            raw=fitted.raw,
            actual=np.array(actual).reshape(count, len(past), horizon),
            scale=np.array(scale),
            lower=np.array(lower),
            upper=np.array(upper),
            reported=min(REPORTED, count),
        )
        for fitted in fits
    }
    forecaster = forecasters.load(model)
    whole = forecaster.combine(trials).trial if isinstance(forecaster, forecasters.Ensemble) else trials[model]
    return judge(whole).values

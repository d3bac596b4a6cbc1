"""What models may know of the future: the calendar, as far as the history tells, and known-ahead regressors."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from app.domain import calendar
from app.domain.panel import Array, Index, Panel

DAYS_NEEDED = {
    "hour": 3,
    "weekday": 14,
    "weekend": 14,
    "day_of_month": 62,
    "days_to_quarter_end": 184,
    "end_of_quarter": 184,
    "month": 400,
    "week_of_year": 400,
    "day_of_year": 400,
}
"""Days of history before a calendar column means what it says. Sooner, it tells one date from the other and no more:
trees take it for time, and the level of some past week for that of every week to come."""


def calendar_columns(panel: Panel, horizon: int) -> tuple[Array, tuple[str, ...]]:
    """`calendar.features` on the grid and `horizon` steps more: (steps + horizon, K), and the K names."""
    return calendar.features(panel.times_with_future(horizon), panel.frequency, panel.country)


def seen(names: Sequence[str], days: float) -> Index:
    """Which calendar columns `days` of history can tell about."""
    return np.array([number for number, name in enumerate(names) if days >= DAYS_NEEDED.get(name, 0)], dtype=np.int64)


def known_ahead(panel: Panel, horizon: int) -> dict[str, Array]:
    """Each known-ahead regressor: (servers, steps + horizon), no NaN.

    A hole holds the value before it, steps before the first value hold the first, and a regressor that nobody
    gave for a server is 0: none of these moves a fit, and a regressor that ends early stays at what it was.
    """
    width = panel.steps + horizon
    return {name: _hold(column[:, :width], width) for name, column in panel.known.items()}


def _hold(column: Array, width: int) -> Array:
    """The column, to `width` steps, every NaN replaced by its neighbour in time."""
    wide = np.full((len(column), width), np.nan)
    wide[:, : column.shape[1]] = column
    frame = pd.DataFrame(wide.T)
    held: Array = frame.ffill().bfill().fillna(0.0).to_numpy().T
    return held

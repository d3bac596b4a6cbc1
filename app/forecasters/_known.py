"""Known-ahead regressors as models want them: a number at every step of the past and of the horizon."""

import numpy as np
import pandas as pd

from app.domain.panel import Array, Panel


def filled(panel: Panel, horizon: int) -> dict[str, Array]:
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

"""How good a forecast is, and what its quantiles are once its own misses are known.

It holds the back-test windows, the metrics of the comparison and the rule of who may learn from what. It
leaves out how quantiles are corrected (calibration) and how models are fitted (forecasters, services).

Each server's history ends at its own last row; window w is the w-th last block of `horizon` steps:

    … ─┤ window 3 ├──────────┤ window 2 ├──────────┤ window 1 ├──────────┤ the forecast (0)
                  ▲                      ▲                      ▲ origin of window 1: its model sees all before it

    the forecast     is calibrated on windows 1 … W
    window w         is calibrated on windows w+1 … W      older ones only: never on a datum of its own
    window W         has none and stays raw

The newest `reported` windows are scored; the older ones are there to learn from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.domain import calibration, tally
from app.domain.panel import Array, Panel
from app.domain.quantiles import BASE, ROUNDING, single, uncross


@dataclass(frozen=True)
class Trial:
    """What the fits of one model gave.

    `levels` ascend and contain 0.1, 0.5 and 0.9. `raw` (1 + W, servers, horizon, levels): [0] is the forecast,
    [w] that of back-test window w; NaN where a server's history was too short. `actual` (W, servers, horizon):
    what happened, unprepared, NaN = missing. `scale` (1 + W, servers): `seasonal_scale` of the history before
    each origin. `lower`, `upper` bound every quantile: (servers,), or (1 + W, servers) as known at each origin.
    Windows 1 … `reported` are scored.

    An ensemble learns its weights anew at each origin, so that its past forecasts were mixed unlike the one to be
    calibrated: `rehearse`(w) gives `raw`, ascending, with every window older than w mixed as w itself is.
    """

    levels: tuple[float, ...]
    raw: Array
    actual: Array
    scale: Array
    lower: Array
    upper: Array
    reported: int
    rehearse: Callable[[int], Array] | None = None


@dataclass(frozen=True)
class Scores:
    """Pooled over servers and reported windows; None where the figure is not defined (all scales zero, all zero)."""

    smape: float
    mase: float | None
    mae: float
    rmse: float
    wql: float | None
    coverage: float


@dataclass(frozen=True)
class Verdict:
    """`values` (servers, horizon, levels): calibrated, bounded, never crossing. `crossed`: cells whose raw ones did.

    `scores` is None when nothing could be scored; `per_server` holds smape, mase, mae, rmse, wql and coverage as
    (servers,), NaN where unscored. `normal_scores` (W, servers, horizon) are Φ⁻¹ of where each window's actuals
    fell in its calibrated forecast, NaN where missing. `tally` (servers, periods, 5): see tally.
    """

    values: Array
    crossed: int
    scores: Scores | None
    per_server: dict[str, Array]
    normal_scores: Array
    tally: Array


def judge(trial: Trial, *, calibrate: bool = True, period: int = 30) -> Verdict:
    """Calibrate every forecast on the windows older than its own, and score the reported ones.

    A managed model is judged as it came: `calibrate=False`. `period`: steps of a stretch of the tally.
    """
    raw, crossed = uncross(trial.raw)
    forecasts = np.array([_calibrated(trial, raw, w) for w in range(len(raw))]) if calibrate else raw
    normal = np.empty_like(trial.actual)
    for w, actual in enumerate(trial.actual, start=1):
        normal[w - 1] = calibration.scores(actual, forecasts[w], trial.levels)

    forecasts = np.clip(single(forecasts), single(trial.lower)[..., None, None], single(trial.upper)[..., None, None])
    scored = slice(1, 1 + trial.reported)
    base = forecasts[scored][..., [trial.levels.index(level) for level in BASE]]
    compared = base, trial.actual[: trial.reported], trial.scale[scored]
    return Verdict(
        forecasts[0],
        crossed,
        pooled_scores(*compared),
        server_scores(*compared),
        normal,
        tallies(*compared, period),
    )


def _calibrated(trial: Trial, raw: Array, w: int) -> Array:
    """Forecast `w` of the ascending `raw`, corrected by the windows older than it alone."""
    windows = range(w + 1, len(raw))
    if not windows:
        return np.asarray(raw[w])
    made = raw if trial.rehearse is None else trial.rehearse(w)
    older = [
        calibration.scores(
            trial.actual[v - 1], calibration.floored(made[v], trial.levels, trial.scale[v]), trial.levels
        )
        for v in windows
    ]
    if not any(np.isfinite(observed).any() for observed in older):
        return np.asarray(raw[w])
    points = calibration.reading_points(np.array(older), trial.levels)
    return calibration.read(calibration.floored(raw[w], trial.levels, trial.scale[w]), trial.levels, points)


def seasonal_scale(panel: Panel, season: int) -> Array:
    """Mean |y_t - y_{t-season}| of each server's history, missing pairs left out: (servers,), NaN where none.

    The denominator of MASE (Hyndman & Koehler 2006). What rounding alone makes of a history that repeats itself is 0,
    the scale of a constant server: nothing can be measured in units of it.
    """
    if panel.steps <= season:
        return np.full(len(panel), np.nan)
    scale = _mean(np.abs(panel.values[:, season:] - panel.values[:, :-season]), axis=1)
    noise = ROUNDING * _mean(np.abs(panel.values), axis=1)
    return np.where(scale <= noise, 0.0, scale)


def pooled_scores(base: Array, actual: Array, scale: Array) -> Scores | None:
    """The comparison's figures of p10, p50, p90 (windows, servers, horizon, 3) against what happened.

    `actual` is (windows, servers, horizon), `scale` (windows, servers). None when no value meets a forecast.
    """
    cells = _cells(base, actual, scale)
    if not np.isfinite(cells.absolute).any():
        return None
    mase = _mean(cells.scaled)
    weight = np.nansum(cells.size)
    return Scores(
        smape=float(_mean(cells.smape)),
        mase=None if np.isnan(mase) else float(mase),
        mae=float(_mean(cells.absolute)),
        rmse=float(np.sqrt(_mean(cells.absolute**2))),
        wql=float(np.nansum(cells.pinball) / weight) if weight > 0 else None,
        coverage=float(_mean(cells.covered)),
    )


def server_scores(base: Array, actual: Array, scale: Array) -> dict[str, Array]:
    """The same per server: each (servers,), NaN where unscored."""
    cells = _cells(base, actual, scale)
    over = (0, 2)
    weight = np.nansum(cells.size, axis=over)
    wql = np.full(weight.shape, np.nan)
    np.divide(np.nansum(cells.pinball, axis=over), weight, out=wql, where=weight > 0)
    return {
        "smape": _mean(cells.smape, over),
        "mase": _mean(cells.scaled, over),
        "mae": _mean(cells.absolute, over),
        "rmse": np.sqrt(_mean(cells.absolute**2, over)),
        "wql": wql,
        "coverage": _mean(cells.covered, over),
    }


def tallies(base: Array, actual: Array, scale: Array, period: int) -> Array:
    """The sums that scores are made of, by server and stretch of `period` steps: (servers, periods, 5); see tally."""
    cells = _cells(base, actual, scale)
    known = np.isfinite(cells.absolute)
    sums = [known, *(np.where(known, part, 0.0) for part in (cells.smape, cells.pinball, cells.size, cells.covered))]
    starts = tally.starts(actual.shape[2], period)
    return np.stack([np.add.reduceat(part.sum(axis=0, dtype=np.float64), starts, axis=1) for part in sums], axis=-1)


@dataclass(frozen=True)
class _Cells:
    """Figures of each (window, server, step), NaN where it cannot be scored."""

    absolute: Array
    scaled: Array
    smape: Array
    size: Array
    pinball: Array
    covered: Array


def _cells(base: Array, actual: Array, scale: Array) -> _Cells:
    base, actual = single(base), single(actual)
    scored = np.isfinite(actual) & np.isfinite(base).all(axis=-1)
    actual = np.where(scored, actual, np.nan)
    error = actual[..., None] - base
    absolute = np.abs(error[..., 1])
    size = np.abs(actual)
    both = size + np.abs(base[..., 1])
    denominator = np.where(scale > 0, scale, np.nan)[..., None]
    levels = np.array(BASE)
    pinball = np.maximum(levels * error, (levels - 1) * error)
    covered = (base[..., 0] <= actual) & (actual <= base[..., 2])
    return _Cells(
        absolute=absolute,
        scaled=absolute / denominator,
        smape=np.where(both == 0, 0.0, 200 * absolute / np.where(both == 0, 1.0, both)),
        size=size,
        pinball=2 * pinball.mean(axis=-1),
        covered=np.where(scored, covered, np.nan),
    )


def _mean(values: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Of the finite values; NaN, without a warning, where there are none."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))

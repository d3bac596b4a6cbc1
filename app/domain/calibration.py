"""Calibration of quantile forecasts by what the back-tests missed: split-conformal, in normal scores.

It holds the quantile function that a row of quantiles stands for, and the correction learnt from earlier
windows. It leaves out which windows may be used for which forecast (evaluation).

A forecast's quantiles are read as a function of the normal score u = Φ⁻¹(level): straight lines between the
given levels, and beyond them the line from the median through the outermost one. An observed value has a
score u under it (its probability integral transform, as a normal score); were the forecast right, the scores
of many values would be standard normal. Where they are not, level l is read not at Φ⁻¹(l) but where the
observed scores have their l-quantile (Vovk et al. 2005, split-conformal; Kuleshov et al. 2018 for the form):

    calibrated quantile l of server i at step h = Q_ih( a_i · (shift + stretch_l(h) · Φ⁻¹(l)) )

`shift`, `stretch` are pooled over all servers, `a_i` is the server's own scale. The errors of a fleet are
strongly correlated, so that one window is hardly more than one observation of shift and stretch: each
estimate x with a noise variance ν²/windows is shrunk to x · x²/(x² + ν²/windows). A wildly wrong spread is
mended from one window, a slightly odd one is left alone. One server that jumps as no other does would be all there is
of a small fleet's outer quantiles: what is pooled is bounded by what it is without the server that stands out most.
"""

from itertools import pairwise
from statistics import NormalDist

import numpy as np

from app.domain.panel import Array
from app.domain.quantiles import ROUNDING

SHIFT_NOISE = 2.0
"""Standard deviation, between windows, of the fleet's median score in units of its spread: weather hits all at once."""
SPREAD_NOISE = 0.22
"""The same, of the logarithm of the fleet's spread."""
SKEW_NOISE = 3.0
"""The same, of the logarithm of upper or lower spread to the common spread."""
SHAPE_NOISE = 0.4
"""The same, of the logarithm of the spread in one part of the horizon to that of all."""
SERVER_NOISE = 1.2
"""The same, of the logarithm of one server's spread to the fleet's; worth two windows against what they show."""

FLOOR = 0.05
"""Least spread of a forecast that is corrected, as a share of the seasonal-naive scale; a zero has no ratio."""
PARTS = 4
"""Parts of the horizon whose spread is learnt apart, at least a week of steps each."""
OUTLYING = 10.0
"""Scores beyond so many medians count as that many in a server's scale."""
ALONE = 1.5
"""No single server widens a pooled quantile to more than so many times what it is without that server."""
CROWD = 200
"""In a fleet of more, one server has too small a share of the scores to make a quantile."""
LIMIT = 40.0
"""Scores are clipped here, so that one frozen sensor does not become infinite."""


def normal_scores_of(levels: tuple[float, ...]) -> Array:
    """Φ⁻¹ of each level: (levels,)."""
    return np.array([NormalDist().inv_cdf(level) for level in levels])


def floored(quantiles: Array, levels: tuple[float, ...], scale: Array) -> Array:
    """Quantiles (servers, horizon, levels), ascending, no nearer to their median than the `scale` (servers,) allows.

    A scale beyond all that is forecast is that of a glitch in the history, and counts as no more than that.
    """
    z = normal_scores_of(levels)
    median = quantiles[..., [levels.index(0.5)]]
    believed: Array = np.fmin(np.nan_to_num(scale), np.abs(quantiles).max(axis=(1, 2)))
    least = FLOOR * believed[:, None, None] * z
    offset = quantiles - median
    return np.asarray(median + np.where(z < 0, np.minimum(offset, least), np.maximum(offset, least)))


def scores(values: Array, quantiles: Array, levels: tuple[float, ...]) -> Array:
    """Normal score of each value (servers, horizon) under quantiles (servers, horizon, levels).

    NaN where the value or the forecast is missing, and where a forecast without any spread, or with none but that of
    rounding, was off: that error has no scale to be measured in.
    """
    z = normal_scores_of(levels)
    centre = levels.index(0.5)
    error = values - quantiles[..., centre]
    below = (quantiles[..., 0] - quantiles[..., centre]) / z[0]
    above = (quantiles[..., -1] - quantiles[..., centre]) / z[-1]
    slope = np.where(error < 0, below, above)
    slope = np.where(slope > ROUNDING * np.abs(quantiles[..., centre]), slope, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.where(error == 0, 0.0, error / slope)
        for k in _inner(levels):
            low, high = quantiles[..., k], quantiles[..., k + 1]
            inside = (values >= low) & (values <= high) & (high > low)
            result = np.where(inside, z[k] + (values - low) / (high - low) * (z[k + 1] - z[k]), result)
    result[~np.isfinite(result)] = np.nan
    return np.clip(result, -LIMIT, LIMIT)


def read(quantiles: Array, levels: tuple[float, ...], at: Array) -> Array:
    """The quantile functions read at normal scores: both (servers, horizon, levels) or broadcast to it."""
    z = normal_scores_of(levels)
    centre = levels.index(0.5)
    median = quantiles[..., [centre]]
    below = (quantiles[..., [0]] - median) / z[0]
    above = (quantiles[..., [-1]] - median) / z[-1]
    result = median + at * np.where(at < 0, below, above)
    for k in _inner(levels):
        low, high = quantiles[..., [k]], quantiles[..., [k + 1]]
        inside = (at >= z[k]) & (at <= z[k + 1])
        result = np.where(inside, low + (at - z[k]) / (z[k + 1] - z[k]) * (high - low), result)
    return np.asarray(result)


def _inner(levels: tuple[float, ...]) -> range:
    """Segments [k, k + 1] that the lines from the median to the outermost levels do not already draw."""
    return range(len(levels) - 1) if len(levels) > 3 else range(0)


def reading_points(observed: Array, levels: tuple[float, ...]) -> Array:
    """Where to read each level, learnt from the scores of earlier windows.

    `observed` is (windows, servers, horizon), NaN where nothing is known. Returns (servers, horizon, levels),
    ascending; Φ⁻¹(levels) itself when nothing was observed.
    """
    _, servers, horizon = observed.shape
    z = normal_scores_of(levels)
    known = np.isfinite(observed)
    windows = int(known.any(axis=(1, 2)).sum())
    if windows == 0:
        return np.broadcast_to(z, (servers, horizon, len(z))).copy()

    own = _server_scale(observed, known)
    standard = observed / own[:, None]
    p90 = float(normal_scores_of((0.9,))[0])
    typical = _pooled(np.abs(standard), 0.8, p90) / p90
    shift = typical * _shrunk(_quantile(standard, 0.5) / _positive(typical), SHIFT_NOISE, windows)
    deviation = standard - shift
    size = np.abs(deviation)

    stretch = np.ones((horizon, len(z)))
    for k, level in enumerate(levels):
        if level == 0.5:
            continue
        inner = abs(2 * level - 1)
        told, outwards = abs(z[k]), deviation if level > 0.5 else -deviation
        both = np.log(_positive(_pooled(size, inner, told)) / told)
        side = np.log(_positive(_pooled(outwards, max(level, 1 - level), told)) / told)
        pooled = _shrunk(both, SPREAD_NOISE, windows) + _shrunk(side - both, SKEW_NOISE, windows)
        stretch[:, k] = np.exp(pooled + _by_horizon(size, inner, told, both, windows))
    points = own[:, None, None] * (shift + stretch * z)
    return np.sort(points, axis=-1)


def _shrunk(estimate: float, noise: float, windows: float) -> float:
    """Towards zero by how little it stands out of its noise."""
    signal = estimate * estimate
    return estimate * signal / (signal + noise * noise / windows) if signal else 0.0


def _positive(value: float) -> float:
    return max(value, 0.02)


def _pooled(values: Array, level: float, told: float) -> float:
    """Quantile, at a level over 0.5, of (windows, servers, horizon), which no server makes alone (see `ALONE`).

    `told` is what it would be if the forecasts were right; servers that were never off have no voice.
    """
    found = _quantile(values, level)
    voices = np.flatnonzero((np.isfinite(values) & (values != 0)).any(axis=(0, 2)))
    if found <= told or not 2 < len(voices) <= CROWD:
        return found
    furthest = voices[(values[:, voices] > found).sum(axis=(0, 2)).argmax()]
    without = _quantile(np.delete(values, furthest, axis=1), level)
    return min(found, ALONE * max(without, told))


def _quantile(values: Array, level: float) -> float:
    """Of the finite values, with the split-conformal correction level · (1 + 1/n), away from the middle."""
    finite = values[np.isfinite(values)]
    if level > 0.5:
        level = min(1.0, level * (1 + 1 / finite.size))
    elif level < 0.5:
        level = max(0.0, 1 - (1 - level) * (1 + 1 / finite.size))
    return float(np.quantile(finite, level))


def _server_scale(observed: Array, known: Array) -> Array:
    """Each server's spread relative to the fleet's, shrunk to 1 as far as chance explains it: (servers,)."""
    servers = observed.shape[1]
    if not known.any():
        return np.ones(servers)
    size = np.abs(observed)
    size = np.sqrt(np.minimum(size, OUTLYING * np.nanmedian(size)))  # roots: one spike is not a scale
    count = known.sum(axis=2)
    total = np.where(known, size, 0.0).sum(axis=2)
    seen = (count > 0) & (total > 0)
    ratio = np.full(count.shape, np.nan)  # (windows, servers), logarithms
    ratio[seen] = 2 * np.log(total[seen] / count[seen])
    windows = seen.sum(axis=0)
    several, some = windows > 1, windows > 0
    if some.sum() < 2:
        return np.ones(servers)
    used = seen.any(axis=1)
    ratio[used] -= np.nanmedian(ratio[used], axis=1, keepdims=True)

    noise = SERVER_NOISE**2
    if several.any():
        repeats = windows[several].mean() - 1
        between = float(np.nanvar(ratio[:, several], axis=0, ddof=1).mean())
        noise = (2 * noise + repeats * between) / (2 + repeats)
    own = np.zeros(servers)
    own[some] = np.nanmean(ratio[:, some], axis=0)
    chance = np.full(servers, np.inf)
    chance[some] = noise / windows[some]
    signal = max(float(np.var(own[some]) - chance[some].mean()), 0.0)
    return np.asarray(np.exp(own * signal / (signal + chance)))


def _by_horizon(size: Array, inner: float, told: float, both: float, windows: int) -> Array:
    """How the logarithm of the spread departs from that of the whole horizon, `both`, along it: (horizon,)."""
    horizon = size.shape[2]
    parts = min(PARTS, horizon // 7)
    if parts < 2:
        return np.zeros(horizon)
    edges = np.linspace(0, horizon, parts + 1).round().astype(int)
    centres, departures = [], []
    for start, stop in pairwise(edges):
        block = size[:, :, start:stop]
        if np.isfinite(block).any():
            centres.append((start + stop - 1) / 2)
            departure = float(np.log(_positive(_pooled(block, inner, told)) / told)) - both
            departures.append(_shrunk(departure, SHAPE_NOISE, windows))
    return np.interp(np.arange(horizon), centres, departures)

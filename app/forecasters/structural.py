"""Structural regression: calendar, trend and level of a whole fleet, solved at once.

It holds the way from values without their calendar to quantiles, and the parts that a forecast adds up from. It
leaves out the calendar (_adjustment), the calibration of these quantiles (domain/calibration) and the choice between
models (auto).

1. **Calendar.** Taken out by regression, known ahead.
2. **Level.** What is left, the value without its calendar, is forecast from exponential averages of several
   lengths; how much each counts, by distance, is a regression over many past origins, per server shrunk to the
   fleet. A random walk ends at its recent level, noise at its long one: nothing is extrapolated that did not
   hold before.
3. **Spread.** The errors of 2 over these origins give the quantiles: their size by distance, by season and by
   server, their shape by server shrunk to the fleet's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from app.domain.calibration import normal_scores_of
from app.domain.explanation import PARTS, Parts, additive
from app.domain.panel import Array, Index, Panel
from app.forecasters import _adjustment
from app.forecasters._adjustment import Mask, Scale, average

MEMORIES = (1, 4, 16, 64)
"""Half-lives of the level's averages, in steps."""
FLEET_WEIGHTS, OWN_WEIGHTS = 0.3, 3.0
"""Ridge of the level's regression: the fleet's towards the long mean, a server's towards the fleet's."""
BLOCKS = 6
"""Distances at which the level is learnt; steps between share a block."""
ORIGINS = 40
"""Past origins that the level and its errors are learnt from."""
OWN_SHAPE = 100.0
"""Steps of history at which a server's own shape of errors counts as much as the fleet's."""

CONTINUOUS = ("year", "weekday", "hour", "known_ahead")
"""Causes that are no events."""

GRID = tuple(np.round(np.concatenate([[0.005, 0.01, 0.025], np.arange(0.05, 0.96, 0.05), [0.975, 0.99, 0.995]]), 3))
"""Levels at which the errors' quantiles are kept."""


@dataclass(frozen=True)
class StructuralPredictor:
    """Centre and spread on the scale of the fit, and the way back to the metric's unit."""

    centre: Array  # (servers, horizon)
    spread: Array  # (servers, horizon)
    shape: Array  # (servers, levels of GRID): quantiles of errors in units of the spread
    scale: Scale

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        at = _between(self.shape, quantiles)
        scaled = self.centre[:, :horizon, None] + self.spread[:, :horizon, None] * at[:, None, :]
        return self.scale.back(scaled)


@dataclass(frozen=True)
class Structural:
    name: str = "structural"
    chunk: int = 2500
    earlier_windows: int = 3

    def fit(self, panel: Panel, horizon: int) -> StructuralPredictor:
        known = _adjustment.adjust(panel, horizon)
        level, origins, expected = _level(known.settled, known.alive, panel, horizon)
        spread, shape = _errors(known.actual, known.season, origins, expected, panel, horizon)
        ahead = panel.future_columns(horizon)
        spread *= known.optimism[:, None] * np.take_along_axis(known.season, ahead, axis=1)
        centre = level + np.take_along_axis(known.effect, ahead, axis=1)
        return StructuralPredictor(centre, spread, shape, known.scale)

    def explain(self, panel: Panel, horizon: int, server: int) -> Parts:
        """What the centre of one server's forecast adds up from, before the shape of its errors shifts the median."""
        known = _adjustment.adjust(panel, horizon)
        level, _, _ = _level(known.settled, known.alive, panel, horizon)
        ahead = panel.future_columns(horizon)[server]
        causes = {name: effect[ahead] for name, effect in known.causes.of(panel, server).items()}
        falling = {name: known.causes.falls(name)[ahead] for name in causes if name not in CONTINUOUS}
        scale = known.scale.of(server)
        causes = {"trend": level[server] - level[server, 0]} | causes
        base, effects = additive(
            float(level[server, 0]),
            np.array(list(causes.values())),
            lambda scaled: scale.back(scaled[None, :, None])[0, :, 0],
        )
        told = dict(zip(causes, effects, strict=True))
        events = {name: np.where(on, told[name], np.nan) for name, on in falling.items() if on.any()}
        told["calendar"] = sum((told[name] for name in falling), np.zeros(horizon))
        return Parts(base, {name: told[name] for name in PARTS if name in told}, events)


FORECASTER = Structural()


def _level(settled: Array, alive: Mask, panel: Panel, horizon: int) -> tuple[Array, Index, Array]:
    """The level ahead (servers, horizon); and for past origins (servers, ORIGINS) what it was expected to be
    (servers, ORIGINS, blocks of the horizon)."""
    age = alive.cumsum(axis=1, dtype=np.int64)
    sums = np.pad(np.cumsum(settled, axis=1), ((0, 0), (1, 0)))
    long = sums[:, 1:] / np.maximum(age, 1)
    averages = {half_life: average(settled, age, half_life) for half_life in MEMORIES}
    departure = np.where(alive, settled - averages[16], 0.0)
    noise = np.maximum(np.sqrt((departure**2).sum(axis=1) / alive.sum(axis=1)), 1e-6)[:, None]

    servers = np.arange(len(panel))[:, None]
    length = panel.last - panel.first + 1
    reach = np.maximum((length - 1) * 0.65, 1)
    origins = (panel.last[:, None] - 1 - (np.arange(ORIGINS) + 0.5) / ORIGINS * reach[:, None]).astype(np.int64)
    origins = np.maximum(origins, panel.first[:, None])
    known = np.concatenate([origins, panel.last[:, None]], axis=1)
    longs = long[servers, known]
    features = np.stack([recent[servers, known] - longs for recent in averages.values()], axis=-1)
    at_origin, long_at_origin = features[:, :-1], longs[:, :-1]
    now, long_now = features[:, -1], longs[:, -1]

    eye = np.eye(len(MEMORIES))
    level = np.empty((len(panel), horizon))
    blocks = _blocks(horizon)
    expected = np.empty((len(panel), ORIGINS, len(blocks)))
    fleet_weights = np.zeros(len(MEMORIES))
    x = at_origin / noise[..., None]
    for block, (start, stop) in enumerate(blocks):
        end = np.minimum(origins + stop, panel.last[:, None])
        covered = end - origins - start
        weight = np.clip(covered / (stop - start), 0.0, 1.0)
        target = (sums[servers, end + 1] - sums[servers, np.minimum(origins + start, end) + 1]) / np.maximum(covered, 1)
        y = (target - long_at_origin) / noise
        seen = np.maximum(weight.sum(axis=1), 1e-9)
        gram = np.einsum("nt,ntk,ntl->nkl", weight, x, x) / seen[:, None, None]
        right = np.einsum("nt,ntk,nt->nk", weight, x, y) / seen[:, None]
        trust = (np.minimum(seen, 5.0) / 5.0)[:, None]
        if trust.mean() > 0.02:
            fleet_gram, fleet_right = (trust[..., None] * gram).mean(axis=0), (trust * right).mean(axis=0)
            fleet_weights = np.linalg.solve(
                fleet_gram + FLEET_WEIGHTS * trust.mean() * eye,
                fleet_right,
            )
        rest = trust * (right - gram @ fleet_weights)
        own = np.linalg.solve(trust[..., None] * gram + OWN_WEIGHTS * eye, rest[..., None])[..., 0]
        weights = fleet_weights + own
        level[:, start:stop] = (long_now + (now * weights).sum(axis=1))[:, None]
        expected[:, :, block] = long_at_origin + np.einsum("ntk,nk->nt", at_origin, weights)
    return level, origins, expected


def _blocks(horizon: int) -> list[tuple[int, int]]:
    """Near steps in short blocks, far ones in long blocks: (start, stop) of each."""
    edges = np.unique((horizon * np.linspace(0, 1, BLOCKS + 1) ** 1.5).round().astype(int))
    return list(pairwise(edges.tolist()))


def _errors(
    actual: Array, season: Array, origins: Index, expected: Array, panel: Panel, horizon: int
) -> tuple[Array, Array]:
    """Spread of errors by distance (servers, horizon), and their quantiles in it (servers, levels of GRID)."""
    steps = np.unique(np.linspace(0, horizon - 1, min(horizon, 24)).round().astype(int))
    columns = np.minimum(origins[:, :, None] + 1 + steps, panel.last[:, None, None])
    inside = origins[:, :, None] + 1 + steps <= panel.last[:, None, None]
    servers = np.arange(len(panel))[:, None, None]
    block = np.searchsorted([stop for _, stop in _blocks(horizon)], steps, side="right")
    error = (actual[servers, columns] - expected[:, :, block]) / season[servers, columns]
    error[~inside] = np.nan

    size = np.abs(error)
    near = size[:, :, : max(1, len(steps) // 3)].reshape(len(panel), -1)
    own = np.maximum(np.nanmean(near, axis=1), 1e-9)
    relative = np.minimum(size / own[:, None, None], 20.0)
    count = inside.sum(axis=(0, 1))
    growth = np.where(inside, relative, 0.0).sum(axis=(0, 1)) / np.maximum(count, 1)
    reliable = (count > 0.02 * len(panel) * ORIGINS) | (np.arange(len(steps)) == 0)
    growth = np.interp(steps, steps[reliable], np.maximum.accumulate(np.maximum(growth[reliable], 1e-9)))

    standard = np.sort((error / (own[:, None, None] * growth)).reshape(len(panel), -1), axis=1)
    shape = _quantiles(standard)
    live = shape[:, -1] - shape[:, 0] > 1e-6
    known = standard[live]
    fleet = np.quantile(known[np.isfinite(known)], GRID) if live.any() else np.zeros(len(GRID))
    mine = ((panel.last - panel.first + 1) / (panel.last - panel.first + 1 + OWN_SHAPE))[:, None]
    shape = np.where(live[:, None], mine * shape + (1 - mine) * fleet, 0.0)
    return own[:, None] * np.interp(np.arange(horizon), steps, growth), shape


def _quantiles(ordered: Array) -> Array:
    """Of each row, ascending with its NaN last, at the levels of GRID: (servers, levels of GRID)."""
    place = np.array(GRID) * (np.isfinite(ordered).sum(axis=1, keepdims=True) - 1)
    left = np.floor(place).astype(np.int64)
    low = np.take_along_axis(ordered, left, axis=1)
    high = np.take_along_axis(ordered, np.ceil(place).astype(np.int64), axis=1)
    return np.asarray(low + (place - left) * (high - low))


def _between(shape: Array, quantiles: Sequence[float]) -> Array:
    """`shape` (servers, levels of GRID) at other levels, along normal scores: (servers, quantiles)."""
    grid, wanted = normal_scores_of(GRID), normal_scores_of(tuple(quantiles))
    right = np.clip(np.searchsorted(grid, wanted), 1, len(grid) - 1)
    share = (wanted - grid[right - 1]) / (grid[right] - grid[right - 1])
    return shape[:, right - 1] + share * (shape[:, right] - shape[:, right - 1])

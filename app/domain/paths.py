"""Joint sample paths: how the steps of a forecast go up and down together.

A template holds, for each of M paths and each step, the rank of that path among the M. Every rank occurs once
per step, so every step keeps its own marginal exactly, and only the order, hence the dependence between steps,
comes from the template (the Schaake shuffle: Clark et al., J. Hydrometeorology 5, 2004). The order is that of
whole residual trajectories of back-tested forecasts. Values are never sampled here: a path breaches at a step
when its rank lies above the share of the marginal below the threshold, and sets of paths are bit masks.

It leaves out the marginals (quantiles.py) and what follows from a breach (risk.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Array, Times

Ranks = NDArray[np.uint16]
Masks = NDArray[np.uint64]

PATHS = 256
"""Paths of a template: probabilities come in steps of 1/256."""

FEWEST = 20
"""With fewer residual trajectories than this the order is autoregressive."""

FILLED = 2 / 3
"""A trajectory counts when at least this share of its steps is known; the rest is interpolated within it."""

CORRELATION = 0.9
"""Correlation of neighbouring steps where there are no residuals to estimate it from."""

_WORD = 64


@dataclass(frozen=True, eq=False)
class Template:
    """`ranks` is uint16 (paths, horizon), a permutation of 0 … paths - 1 in every column; `source` says whence.

    `between` is the correlation of the normal scores of two servers on one date; None where it is not known.
    """

    ranks: Ranks
    source: str
    between: float | None = None

    @property
    def horizon(self) -> int:
        return int(self.ranks.shape[1])

    def __len__(self) -> int:
        return len(self.ranks)

    def to_bytes(self) -> bytes:
        """Little-endian uint16, path after path."""
        return self.ranks.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, ranks: bytes, paths: int, source: str, between: float | None = None) -> "Template":
        """Raises ValueError when the bytes are not `paths` whole paths."""
        return cls(np.frombuffer(ranks, dtype="<u2").reshape(paths, -1).astype(np.uint16), source, between)

    @cached_property
    def _at_or_above(self) -> Masks:
        """The set of paths whose rank is at least k, as bits: uint64 (horizon, paths + 1, words), k = 0 … paths."""
        paths, horizon = self.ranks.shape
        path = np.arange(paths)
        alone = np.zeros((paths, -(-paths // _WORD)), dtype=np.uint64)
        alone[path, path // _WORD] = np.uint64(1) << (path % _WORD).astype(np.uint64)
        masks = np.zeros((horizon, paths + 1, alone.shape[1]), dtype=np.uint64)
        masks[:, :-1] = alone[np.argsort(self.ranks, axis=0).T]
        np.bitwise_or.accumulate(masks[:, ::-1], axis=1, out=masks[:, ::-1])
        return masks

    def breached_by(self, below: Array) -> Array:
        """P(some step up to this one breaches): (servers, horizon), from each step's P(no breach) of that shape.

        Path m breaches at step t when (rank + ½) / M > below[t]. Rounding to whole paths is held within what
        any joint law allows (Fréchet): at least the largest marginal so far, at most their sum.
        """
        paths = len(self)
        steps = np.arange(below.shape[1])
        first = np.clip(np.floor(paths * below + 0.5), 0, paths).astype(np.intp)
        reached = np.bitwise_or.accumulate(self._at_or_above[steps, first], axis=1)
        share = np.bitwise_count(reached).sum(axis=2, dtype=np.int64) / paths
        marginal = 1.0 - below
        most = np.minimum(np.cumsum(marginal, axis=1), 1.0)
        return np.asarray(np.clip(share, np.maximum.accumulate(marginal, axis=1), most))


def template(
    normal_scores: Array, horizon: int, paths: int = PATHS, seed: int = 0, as_of: Times | None = None
) -> Template:
    """The order of `paths` paths, learnt from normal scores (windows, servers, horizon), NaN where missing.

    A normal score is Φ⁻¹ of the level at which a past value fell in its calibrated out-of-sample forecast.
    Each trajectory is one (window, server). All are used equally often, as far as the numbers allow; where
    trajectories tie, the seed orders them, the same way at each step. Below `FEWEST` trajectories the order is
    that of a Gaussian AR(1), its correlation estimated from the scores where they hold enough neighbours. Servers are
    compared with those of the same `as_of` (servers,) only, whose steps are the same dates.
    """
    random = np.random.default_rng(seed)
    between = _between(normal_scores, as_of)
    scores = normal_scores.reshape(-1, normal_scores.shape[-1])[:, :horizon]
    known = np.isfinite(scores)
    whole = known.mean(axis=1) >= FILLED if scores.shape[1] == horizon else np.zeros(len(scores), dtype=np.bool_)
    if whole.sum() < FEWEST:
        return replace(autoregressive(horizon, _correlation(scores), paths, seed), between=between)
    trajectories = scores[whole]
    chosen = np.concatenate([random.permutation(len(trajectories)) for _ in range(-(-paths // len(trajectories)))])
    return Template(_ranks(_filled(trajectories[chosen[:paths]]), random), "residuals", between)


def autoregressive(horizon: int, correlation: float = CORRELATION, paths: int = PATHS, seed: int = 0) -> Template:
    """The order of a stationary Gaussian AR(1): neighbouring steps correlate by `correlation`, in [0, 1]."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((paths, horizon))
    path = np.empty_like(noise)
    path[:, :1] = noise[:, :1]
    fresh = np.sqrt(1.0 - correlation**2)
    for step in range(1, horizon):
        path[:, step] = correlation * path[:, step - 1] + fresh * noise[:, step]
    return Template(_ranks(path, random), f"autoregressive, correlation {correlation:.2f}")


def _ranks(trajectories: Array, random: np.random.Generator) -> Ranks:
    """Rank of each path at each step, 0 the lowest; a tie goes by the path's place in a random order."""
    shuffled = trajectories[random.permutation(len(trajectories))]
    order = np.argsort(shuffled, axis=0, kind="stable")
    ranks = np.empty(order.shape, dtype=np.uint16)
    np.put_along_axis(ranks, order, np.arange(len(order), dtype=np.uint16)[:, None], axis=0)
    return ranks


def _filled(trajectories: Array) -> Array:
    """Missing steps on the straight line between their neighbours; at an end, as the nearest known step."""
    filled = trajectories.copy()
    steps = np.arange(trajectories.shape[1])
    for row in np.flatnonzero(np.isnan(trajectories).any(axis=1)):
        known = np.isfinite(trajectories[row])
        filled[row] = np.interp(steps, steps[known], trajectories[row, known])
    return filled


def _correlation(scores: Array) -> float:
    """Lag-one autocorrelation of the scores, pooled over trajectories; `CORRELATION` below 50 neighbouring pairs."""
    tame = np.clip(scores, -4.0, 4.0)
    before, after = tame[:, :-1].ravel(), tame[:, 1:].ravel()
    both = np.isfinite(before) & np.isfinite(after)
    if both.sum() < 50 or before[both].std() == 0 or after[both].std() == 0:
        return CORRELATION
    return float(np.clip(np.corrcoef(before[both], after[both])[0, 1], 0.0, 0.99))


def _between(normal_scores: Array, as_of: Times | None) -> float | None:
    """Mean correlation of two servers at one step, out of (windows, servers, horizon); None below 50 steps shared.

    A cell of c servers holds c(c - 1)/2 products; their sum is that of the squares taken from the square of the sum.
    """
    tame = np.clip(normal_scores, -4.0, 4.0)
    groups = [slice(None)] if as_of is None else [as_of == day for day in np.unique(as_of)]
    products = squares = cells = 0.0
    for group in groups:
        some = tame[:, group]
        count = np.isfinite(some).sum(axis=1)
        total, square = np.nansum(some, axis=1), np.nansum(some**2, axis=1)
        products += float((total**2 - square).sum())
        squares += float(((count - 1) * square)[count > 1].sum())
        cells += int((count > 1).sum())
    if cells < 50 or squares <= 0:
        return None
    return float(np.clip(products / squares, 0.0, 0.99))

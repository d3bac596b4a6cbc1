"""Joint sample paths: how the steps of a forecast go up and down together.

A template holds, for each of M paths and each step, the rank of that path among the M. Every rank occurs once
per step, so every step keeps its own marginal exactly, and only the order, hence the dependence between steps,
comes from the template (a Gaussian copula, in the form of the Schaake shuffle: Clark et al., J. Hydrometeorology 5,
2004). The order is that of a Gaussian AR(1), as persistent as the errors of the back-tests show, shrunk towards
strong persistence where they are few. Values are never sampled here: a path breaches at a step when its rank lies
above the share of the marginal below the threshold, and sets of paths are bit masks.

It leaves out the marginals (quantiles.py) and what follows from a breach (risk.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.special import ndtri

from app.domain.panel import Array, Times

Ranks = NDArray[np.uint16]
Masks = NDArray[np.uint64]

PATHS = 256
"""Paths of a template: probabilities come in steps of 1/256."""

FILLED = 2 / 3
"""A trajectory of scores counts when at least this share of its steps is known."""

MEMORY = 0.5
"""Without back-tests, the correlation of two steps falls to 1/e over this share of the horizon."""

PRIOR_WINDOWS = 4.0
"""Back-test windows that `MEMORY` counts as: the usual number of a run. The errors of a fleet go together, so that a
window is hardly more than one observation of how they persist, and a persistence that is taken too low promises a
breach to almost everyone."""

COMPONENTS = 24
"""Principal components of the paths that are spread evenly; the others are left to chance."""

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
    """The order of `paths` paths, learnt from normal scores (windows, servers, steps), NaN where missing.

    A normal score is Φ⁻¹ of the level at which a past value fell in its out-of-sample forecast. How they persist is
    told by the share of their size that is common to a whole trajectory (`persistence`), which has been measured to
    be nearer to what breaches depend on than the correlation of neighbours; the order is that of the AR(1) with the
    same share. Servers are compared with those of the same `as_of` (servers,) only, whose steps are the same dates.
    """
    steps = normal_scores.shape[-1]
    shares = persistence(normal_scores)
    prior = _share(np.array([_usual(horizon)]), steps)[0]
    share = (shares.sum() + PRIOR_WINDOWS * prior) / (len(shares) + PRIOR_WINDOWS)
    between = _between(normal_scores, as_of)
    return replace(autoregressive(horizon, _correlation(share, steps), paths, seed), between=between)


def autoregressive(horizon: int, correlation: float | None = None, paths: int = PATHS, seed: int = 0) -> Template:
    """The order of a stationary Gaussian AR(1): neighbouring steps correlate by `correlation`, in [0, 1].

    The principal components that carry most of it are taken from a Sobol' sequence instead of at random, so that
    another seed moves a breach probability by a fraction of what it would with as many random paths.
    """
    if correlation is None:
        correlation = _usual(horizon)
    random = np.random.default_rng(seed)
    noise = random.standard_normal((paths, horizon))
    path = np.empty_like(noise)
    path[:, :1] = noise[:, :1]
    fresh = np.sqrt(1.0 - correlation**2)
    for step in range(1, horizon):
        path[:, step] = correlation * path[:, step - 1] + fresh * noise[:, step]
    size, component = _components(correlation, horizon)
    even = _even_scores(paths, len(size), seed) * np.sqrt(size)
    path += (even - path @ component) @ component.T
    return Template(_ranks(path, random), f"autoregressive, correlation {correlation:.3f}")


def _components(correlation: float, horizon: int) -> tuple[Array, Array]:
    """The first principal components of an AR(1): variances (components,) and directions (horizon, components).

    Its inverse covariance is tridiagonal, so that they are found in no time however long the horizon is.
    """
    held = min(correlation, 1.0 - 1e-6)
    if horizon == 1:
        return np.ones(1), np.ones((1, 1))
    diagonal = np.full(horizon, 1.0 + held**2)
    diagonal[[0, -1]] = 1.0
    beside = np.full(horizon - 1, -held)
    last = min(COMPONENTS, horizon) - 1
    inverse, direction = eigh_tridiagonal(diagonal, beside, select="i", select_range=(0, last))
    size = (1.0 - held**2) / np.maximum(inverse, 1e-300)
    return size, direction * np.where(direction[0] < 0, -1.0, 1.0)


def _even_scores(paths: int, dimensions: int, seed: int) -> Array:
    """Standard normal, spread more evenly than at random: (paths, dimensions)."""
    from scipy.stats.qmc import Sobol  # a third of a second at the start of each process, most of which draw nothing

    points = Sobol(dimensions, scramble=True, rng=seed).random_base2(max(paths - 1, 1).bit_length())[:paths]
    return np.asarray(ndtri(np.clip(points, 1e-9, 1 - 1e-9)))


def persistence(normal_scores: Array) -> Array:
    """Of each window that has scores, Σ (mean score of a server)² / Σ mean of its scores squared: (windows,), 0 … 1.

    1 when errors stay what they are from the first step to the last, 1/steps when each is drawn anew.
    """
    tame = np.clip(normal_scores, -4.0, 4.0)
    known = np.isfinite(tame)
    count = known.sum(axis=2)
    used = (count > 0) & (count >= FILLED * tame.shape[2])
    steps = np.maximum(count, 1)
    common = np.where(used, (np.where(known, tame, 0.0).sum(axis=2) / steps) ** 2, 0.0).sum(axis=1)
    size = np.where(used, np.where(known, tame**2, 0.0).sum(axis=2) / steps, 0.0).sum(axis=1)
    return np.asarray(common[size > 0] / size[size > 0])


def _usual(horizon: int) -> float:
    return float(np.exp(-1.0 / (MEMORY * horizon)))


def _share(correlation: Array, steps: int) -> Array:
    """The `persistence` of an AR(1): the variance of the mean of so many steps, in units of that of one step."""
    lags = np.arange(1, steps)
    together = ((1 - lags / steps) * correlation[:, None] ** lags).sum(axis=1)
    return np.asarray((1 + 2 * together) / steps)


def _correlation(share: float, steps: int) -> float:
    """The AR(1) of that persistence; the usual one where a single step tells nothing."""
    memories = np.geomspace(0.1, 100.0 * max(steps, 1), 400)
    correlations = np.exp(-1.0 / memories)
    return float(np.interp(share, _share(correlations, steps), correlations)) if steps > 1 else _usual(steps)


def _ranks(trajectories: Array, random: np.random.Generator) -> Ranks:
    """Rank of each path at each step, 0 the lowest; a tie goes by the path's place in a random order."""
    shuffled = trajectories[random.permutation(len(trajectories))]
    order = np.argsort(shuffled, axis=0, kind="stable")
    ranks = np.empty(order.shape, dtype=np.uint16)
    np.put_along_axis(ranks, order, np.arange(len(order), dtype=np.uint16)[:, None], axis=0)
    return ranks


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

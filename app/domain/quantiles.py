"""Quantile levels, their names (0.9 ↔ "p90", spelled only here), and the marginal that a few of them stand for."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
Float = TypeVar("Float", np.float32, np.float64)

BASE = (0.1, 0.5, 0.9)

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Share of a value that tells nothing, being what a few operations in single precision, in which metrics are often
measured and quantiles stored, may leave of it: 5e-7."""


def name(level: float) -> str:
    """0.05 → `p5`, 0.5 → `p50`, 0.975 → `p97.5`."""
    percent = (Decimal(str(level)) * 100).normalize()
    return f"p{percent:f}"


def level(label: str) -> float:
    """`p97.5` → 0.975. Raises ValueError for anything else."""
    if not label.startswith("p"):
        raise ValueError(f"{label!r} does not name a quantile")
    return float(Decimal(label[1:]) / 100)


def with_base(levels: Iterable[float]) -> tuple[float, ...]:
    """The levels asked for, and always 0.1, 0.5 and 0.9, ascending."""
    return tuple(sorted({*levels, *BASE}))


def uncross(values: NDArray[Float]) -> tuple[NDArray[Float], int]:
    """Sort the last axis (quantiles); also how many (server, step) cells had crossed."""
    crossed = int((np.diff(values, axis=-1) < 0).any(axis=-1).sum())
    return (np.sort(values, axis=-1) if crossed else values), crossed


def single(values: NDArray[np.floating[Any]]) -> Array:
    """Rounded to single precision, in which quantiles are stored and served, and given back in double.

    What is compared with a quantile is rounded alike: else 42.2 would be over a threshold of 42.2.
    """
    return values.astype(np.float32).astype(np.float64)


def normal_scores(levels: Iterable[float]) -> Array:
    """z = Φ⁻¹(level) of each level in (0, 1)."""
    return np.array([NormalDist().inv_cdf(level) for level in levels])


def interpolate(values: Array, levels: Sequence[float], wanted: Sequence[float]) -> Array:
    """Quantiles at `wanted` levels out of those at `levels`: (…, levels) → (…, wanted).

    Both ascend and lie in (0, 1); `levels` are at least two. Between two levels a quantile is linear in the normal
    score z = Φ⁻¹(level). Beyond the outer levels the tails are Gaussian: linear in z, with the slope of the outer
    segment, so that a normal marginal is reproduced exactly at every level, and a flat segment has a flat tail.
    """
    known, at = normal_scores(levels), normal_scores(wanted)
    left = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
    share = (at - known[left]) / (known[left + 1] - known[left])
    between = values[..., left] + share * (values[..., left + 1] - values[..., left])
    return np.maximum.accumulate(between, axis=-1)


def mixing(levels: Sequence[float], wanted: Sequence[float] | Array) -> Array:
    """`interpolate` as a matrix (levels, wanted): for ascending values, values @ mixing are those quantiles."""
    known, at = normal_scores(levels), normal_scores(wanted)
    left = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
    share = (at - known[left]) / (known[left + 1] - known[left])
    column = np.arange(len(at))
    found = np.zeros((len(known), len(at)))
    found[left, column] = 1.0 - share
    found[left + 1, column] = share
    return found


def cdf(values: Array, levels: Sequence[float], x: Array, lower: Array | float, upper: Array | float) -> Array:
    """P(Y ≤ x), the inverse of `interpolate`: quantiles (…, levels) and x (…) → (…), broadcast against each other.

    What the marginal has below `lower` sits at `lower`, what it has above `upper` at `upper`. Of a flat stretch of
    quantiles all of its mass counts as ≤ x at its value.
    """
    inside = ndtr(_score(values, levels, x))
    return np.where(x >= upper, 1.0, np.where(x < lower, 0.0, inside))


def mean_excess(values: Array, levels: Sequence[float], x: Array, lower: Array | float, upper: Array | float) -> Array:
    """E[max(Y - x, 0)] under the same marginal, in the unit of the values: (…).

    In each segment Y = a + bz, so that its part is the integral of (a + bz - x) φ(z), (a - x) ΔΦ - b Δφ.
    """
    held = np.maximum(x, lower)
    top = np.maximum(held, upper)
    bounded = np.isfinite(top)
    beyond = np.where(bounded, _unbounded_excess(values, levels, np.where(bounded, top, held)), 0.0)
    return np.maximum(lower - x, 0.0) + np.maximum(_unbounded_excess(values, levels, held) - beyond, 0.0)


def _score(values: Array, levels: Sequence[float], x: Array) -> Array:
    """The normal score at which the quantile function passes x; where it is flat at x, the upper end."""
    z = normal_scores(levels)
    reached = (values <= x[..., None]).sum(axis=-1)
    left = np.clip(reached - 1, 0, len(z) - 2)
    low = np.take_along_axis(values, left[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(values, left[..., None] + 1, axis=-1)[..., 0]
    flat = high <= low
    slope = (z[left + 1] - z[left]) / np.where(flat, 1.0, high - low)
    return np.where(flat, np.where(x >= low, np.inf, -np.inf), z[left] + (x - low) * slope)


def _unbounded_excess(values: Array, levels: Sequence[float], x: Array) -> Array:
    z = normal_scores(levels)
    ends = np.concatenate([[-np.inf], z[1:-1], [np.inf]])
    start = _score(values, levels, x)
    total = np.zeros(start.shape)
    for k in range(len(z) - 1):
        slope = (values[..., k + 1] - values[..., k]) / (z[k + 1] - z[k])
        above = np.clip(start, ends[k], ends[k + 1])
        mass = ndtr(ends[k + 1]) - ndtr(above)
        total += (values[..., k] - slope * z[k] - x) * mass + slope * (_density(above) - _density(ends[k + 1]))
    return total


def _density(z: Array | float) -> Array:
    return np.asarray(np.exp(-0.5 * np.square(z)) / np.sqrt(2 * np.pi))

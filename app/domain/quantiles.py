"""Quantile levels, their names (0.9 ↔ "p90", spelled only here), and the marginal that a few of them stand for."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BASE = (0.1, 0.5, 0.9)


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


def uncross(values: Array) -> tuple[Array, int]:
    """Sort the last axis (quantiles); also how many (server, step) cells had crossed."""
    crossed = int((np.diff(values, axis=-1) < 0).any(axis=-1).sum())
    return (np.sort(values, axis=-1) if crossed else values), crossed


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
    between = values[..., left] * (1 - share) + values[..., left + 1] * share
    return np.maximum.accumulate(between, axis=-1)

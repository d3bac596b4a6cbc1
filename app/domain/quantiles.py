"""Quantile levels and their names: 0.9 ↔ "p90". The only place that spells them."""

from collections.abc import Iterable
from decimal import Decimal

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

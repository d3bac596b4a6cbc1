"""How far servers depart from the calendar of their fleet, told by the fleet itself.

    departure of a server in column j  ~  N(0, σ² / (stiffness of j's kind × penalty of j))
    residual                           ~  AR(1), the same correlation for all servers

Empirical Bayes: the stiffness of each kind of column is the one that the fleet's servers make most likely, by
expectation and maximisation (Dempster, Laird & Rubin 1977) on values whose AR(1) has been taken out (Prais & Winsten
1954). Where servers differ much, in their quarter-ends say, each is believed more; where they do not, hardly at all.
It leaves out the columns and the regression that uses what is learnt (_adjustment).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Array, median

HUBER = 2.0
"""Residuals beyond so many robust deviations are pulled in."""
ROUNDS = 5
FIRST = 10.0
"""Stiffness before anything is learnt: how many times stiffer a departure is than the fleet's calendar itself."""
FIRST_COUNTS = 100.0
"""Effects (servers times columns of a kind) that it counts as."""


@dataclass(frozen=True)
class Shrinkage:
    """`stiffness` (K,) multiplies the penalty of each column; `correlation` is the AR(1)'s of what is left."""

    stiffness: Array
    correlation: float

    def white(self, values: Array) -> Array:
        """Along the last axis: what each step adds to what the one before left over, in deviations as before."""
        r = self.correlation
        added = (values[..., 1:] - r * values[..., :-1]) / np.sqrt(1 - r * r)
        return np.concatenate([values[..., :1], added], axis=-1)


def learn(rows: Array, penalty: Array, kinds: NDArray[np.str_], left: Array, fixed: NDArray[np.bool_]) -> Shrinkage:
    """From the columns `rows` (steps, K), their `penalty` and `kinds` (K,), and what the fleet's calendar leaves of
    some servers, `left` (servers, steps). Columns that are `fixed` (K,) keep their penalty as it is.
    """
    stiffness = np.where(fixed, 1.0, FIRST)
    fit = left @ rows @ np.linalg.inv(rows.T @ rows + np.diag(stiffness * penalty)) @ rows.T
    left = tamed(left, fit)
    known = Shrinkage(stiffness, float(np.median(persistence(left - fit))))
    columns, values = known.white(rows.T), known.white(left)
    gram, right = columns @ columns.T, columns @ values.T
    for _ in range(ROUNDS):
        variance = np.linalg.inv(gram + np.diag(stiffness * penalty))
        departure = variance @ right
        freedom = max(1.0, len(rows) - float((variance * gram).sum()))
        noise = ((values - departure.T @ columns) ** 2).sum(axis=1) / freedom
        seen = noise > 1e-9
        size = (departure[:, seen] ** 2 / noise[seen]).sum(axis=1) + seen.sum() * np.diag(variance)
        stiffness = stiffness.copy()
        for kind in np.unique(kinds[~fixed]):
            its = kinds == kind
            total = (penalty[its] * size[its]).sum() + FIRST_COUNTS / FIRST
            stiffness[its] = (seen.sum() * its.sum() + FIRST_COUNTS) / total
    return Shrinkage(stiffness, known.correlation)


def tamed(values: Array, fit: Array) -> Array:
    """Values with those beyond HUBER robust deviations from the fit pulled in to there: (servers, steps)."""
    limit = HUBER * 1.4826 * median(np.abs(values - fit))[:, None] + 1e-6
    return np.asarray(fit + np.clip(values - fit, -limit, limit))


def persistence(residual: Array) -> Array:
    """Correlation of each row with itself a step later, within [0, 0.85]: (servers,)."""
    square = (residual**2).sum(axis=1)
    product = (residual[:, 1:] * residual[:, :-1]).sum(axis=1)
    return np.asarray(np.clip(product / np.where(square > 0, square, 1.0), 0.0, 0.85))

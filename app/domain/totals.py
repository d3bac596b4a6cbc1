"""Totals of groups: how much all servers of a group need together, as joint paths over servers and dates.

A p90 of a sum is not the sum of the p90s: servers do not all run hot on the same day, nor each by itself. The law is
a Gaussian copula with one factor. At date j the normal score of path m of server i is

    z = √ρ · C[m, j] + √(1 - ρ) · E[i, m, j]

with C the run's template, the same for all servers, and E[i] the same template with its paths in an order of the
server's own; ρ is the correlation between servers that the back-tests showed. z is replaced by its rank among the
paths, so every server keeps its own marginal exactly on every date, and how errors persist is that of the template.
Columns are dates, not steps: on one date all servers read one column, wherever their histories end.

It leaves out the marginals (quantiles.py), the template (paths.py), and who belongs to a group.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from app.domain import quantiles
from app.domain.panel import Array
from app.domain.paths import Template
from app.domain.risk import Outlook

Ranks = NDArray[np.uint16]
Rows = NDArray[np.intp]

BETWEEN = 0.3
"""Correlation of two servers where no back-test tells it; a structural model leaves .20 to .39 on real daily data."""

ORDERS = 64
"""Orders of its own that a server may have; those that share one by chance are allowed for."""

REACH = 0.5
"""A server counts when its forecast reaches over at least this share of the horizon behind the newest `as_of`."""

_CELLS = 4_000_000
"""Servers are taken in blocks of about this many (server, date, path) cells, to bound memory."""


def orders(template: Template, horizon: int, between: float | None = None, seed: int = 0) -> Ranks:
    """Rank of each path at each date in each of `ORDERS` orders: uint16 (orders, horizon, paths).

    Two servers share an order once in `ORDERS`, and go together then: what ρ that adds is taken off the factor's, and a
    ρ below 1 / `ORDERS` counts as that.
    """
    correlation = between if between is not None else template.between if template.between is not None else BETWEEN
    common = max(0.0, (correlation - 1 / ORDERS) / (1 - 1 / ORDERS))
    paths = len(template)
    scores = quantiles.normal_scores((np.arange(paths) + 0.5) / paths)
    shared = scores[template.ranks[:, :horizon].T]
    random = np.random.default_rng(seed)
    found = np.empty((ORDERS, horizon, paths), dtype=np.uint16)
    ascending = np.broadcast_to(np.arange(paths, dtype=np.uint16), shared.shape)
    for ranks in found:
        mixed = np.sqrt(common) * shared + np.sqrt(1.0 - common) * shared[:, random.permutation(paths)]
        np.put_along_axis(ranks, np.argsort(mixed, axis=1, kind="stable"), ascending, axis=1)
    return found


def order_of(server_ids: Sequence[str]) -> NDArray[np.intp]:
    """Which order each server has: always the same one, whoever it is added up with."""
    return np.array([crc32(server_id.encode()) % ORDERS for server_id in server_ids], dtype=np.intp)


def reaching(outlook: Outlook, rows: Rows, newest: np.datetime64) -> NDArray[np.bool_]:
    """Which rows count: whose forecast goes on far enough behind `newest`, the last `as_of` of the run."""
    return np.asarray(_behind(outlook, rows, newest) <= (1.0 - REACH) * outlook.horizon)


def total(
    outlook: Outlook, rows: Rows, weights: Array, ranks: Ranks, order: NDArray[np.intp], newest: np.datetime64
) -> tuple[Array, Array]:
    """Σ weight · value over rows that count, as (dates, paths); and Σ weight · p90, (dates,), which it is not.

    `weights` and `order` are of these rows, (rows,). Date j, from 0, is `newest` plus 1 + j steps; they end with the
    forecast that ends first. Weighted values are summed in single precision within a block of servers.
    """
    behind = _behind(outlook, rows, newest)
    dates, paths = outlook.horizon - int(behind.max()), ranks.shape[2]
    summed, p90s = np.zeros((dates, paths)), np.zeros(dates)
    mixing = quantiles.mixing(outlook.levels, (np.arange(paths) + 0.5) / paths).astype(np.float32)
    p90 = outlook.levels.index(0.9)
    sequence = np.argsort(order, kind="stable")
    block = max(1, _CELLS // (dates * paths))
    for first in range(0, len(sequence), block):
        chosen = sequence[first : first + block]
        some, weight = rows[chosen], weights[chosen]
        values = outlook.values[some[:, None], behind[chosen, None] + np.arange(dates)].astype(np.float32)
        curves = values @ mixing  # (servers, dates, paths), ascending
        lower, upper = (bound[some, None, None].astype(np.float32) for bound in (outlook.lower, outlook.upper))
        np.clip(curves, lower, upper, out=curves)
        curves *= weight[:, None, None].astype(np.float32)
        kinds, starts = np.unique(order[chosen], return_index=True)
        for kind, alike in zip(kinds.tolist(), np.add.reduceat(curves, starts, axis=0), strict=True):
            summed += np.take_along_axis(alike, ranks[kind, :dates].astype(np.intp), axis=1)
        p90s += weight @ values[:, :, p90].astype(np.float64)
    return summed, p90s


def quantiles_of(paths: Array, levels: Sequence[float]) -> Array:
    """Quantiles along the last axis, (…, paths) → (…, levels): path k of M in order stands at level (k + ½)/M."""
    return np.moveaxis(np.quantile(paths, levels, axis=-1, method="hazen"), 0, -1)


def passed_by(paths: Array, limit: float) -> Array:
    """P(the total has passed the limit by this date), (dates,): the share of the paths that did."""
    return np.asarray(np.logical_or.accumulate(paths > limit, axis=0).mean(axis=1))


def _behind(outlook: Outlook, rows: Rows, newest: np.datetime64) -> Rows:
    """How many steps before the newest each row's history ends: its first steps lie before the first date."""
    return np.asarray((newest - outlook.as_of[rows]) // outlook.frequency.step, dtype=np.intp)

"""Rightsizing: which servers could be smaller, or gone, without running out of room, and what that saves.

A server of a smaller size has the same work and less capacity: at half the size a threshold of 90 % is 45 % of today's.
So the risk of the new size is that of today's forecast against a lower threshold, by the same quantiles and joint paths
as every other answer, and nothing is sampled or clipped anew. Several servers on one are judged by the sum of
their quantiles at each date, as if they all rose and fell together: no other dependence makes the sum's tail as heavy
where marginals are near normal, so this is on the safe side.

It leaves out where forecasts, prices and groups come from (services/recommendations.py) and how servers are packed
(packing.py). Formulas with an example: docs/risk.md.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import quantiles, risk
from app.domain.cost import Microdollars
from app.domain.packing import Group, pack
from app.domain.panel import Array, Index
from app.domain.paths import Template
from app.domain.risk import Flags, Levels, Outlook

STRETCHES = 6
"""A horizon is packed as this many stretches, each with its highest load: more would fit little more."""

IDLE_SHARE = 0.5
"""The peaks of a server count as low when its highest p90 is below this share of its threshold."""

_CELLS = 1_000_000
"""Servers are taken in blocks of about this many (server, step) cells, to bound memory."""


@dataclass(frozen=True, eq=False)
class Prospect:
    """One metric of some servers: forecasts, thresholds (servers,) finite, and the joint order of their steps.

    `highest` (servers,) is the highest value of each in its history: what was needed once may be needed again, however
    small a forecast thinks the chance. Rows mean the same servers in every metric that is judged together.
    """

    outlook: Outlook
    thresholds: Array
    template: Template
    highest: Array

    def __len__(self) -> int:
        return len(self.outlook)


@dataclass(frozen=True)
class Rules:
    """`epsilon` is the highest breach probability of a metric that is put up with, in (0, 1); `halvings` how often a
    server may be halved at most; `underutilized` the mean p50, in percent, below which one may be emptied."""

    epsilon: float = 0.05
    halvings: int = 2
    underutilized: float = Levels().underutilized


@dataclass(frozen=True, eq=False)
class Downsizes:
    """`halvings` int (servers,): 0 where no smaller size will do. `breach` (servers, metrics): P(some step of the
    horizon breaches) at the size found; where there is none, at half the size."""

    halvings: Index
    breach: Array


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do with each server, rows as in the prospects. No server is in two of the three.

    `halvings` as in Downsizes, 0 for a server that is emptied or a host; `host` int (servers,) is the row of the server
    that one is emptied onto, -1 where it stays; `method` (servers,) who packed it, "" where it stays. `breach`
    (servers, metrics) is that of the new size, or of the host with all that it takes in. `saving` is a month's.
    """

    halvings: Index
    host: Index
    method: tuple[str, ...]
    breach: Array
    saving: tuple[Microdollars, ...]


def breach_probability(prospect: Prospect, share: Array | float = 1.0) -> Array:
    """P(some step of the horizon breaches) at a share of today's size: (servers,).

    value / share > threshold is value > threshold × share. No upper bound is laid on the values, so that one at
    100 % of today's size is no excuse.
    """
    outlook = prospect.outlook
    limits = np.broadcast_to(prospect.thresholds * share, (len(outlook),))
    block = max(1, _CELLS // max(outlook.horizon, 1))
    parts = []
    for start in range(0, len(outlook), block):
        rows = slice(start, start + block)
        values = quantiles.single(outlook.values[rows])
        limit = np.broadcast_to(quantiles.single(limits[rows])[:, None], values.shape[:2])
        lower = quantiles.single(outlook.lower[rows, None])
        below = quantiles.cdf(values, outlook.levels, limit, lower, np.inf)
        parts.append(prospect.template.breached_by(below)[:, -1])
    return np.concatenate(parts) if parts else np.zeros(0)


def downsizes(prospects: Sequence[Prospect], epsilon: float, halvings: int) -> Downsizes:
    """Which servers could have half the size, a quarter, …, down to `halvings` times: the smallest at which the breach
    probability of every metric is at most `epsilon`, and no value of the history is over the threshold.

    The metrics must be all that are measured of these servers. A replay scores this against what came after.
    """
    servers = len(prospects[0])
    found = np.zeros(servers, dtype=np.int64)
    breach = np.zeros((servers, len(prospects)))
    for step in range(1, halvings + 1):
        its = np.stack([breach_probability(prospect, 0.5**step) for prospect in prospects], axis=1)
        had_room = [prospect.highest <= prospect.thresholds * 0.5**step for prospect in prospects]
        will_do = (found == step - 1) & (its <= epsilon).all(axis=1) & np.all(had_room, axis=0)
        found[will_do] = step
        breach = np.where((will_do | (step == 1))[:, None], its, breach)
    return Downsizes(found, breach)


def idle(prospects: Sequence[Prospect], underutilized: float) -> Flags:
    """Servers whose every metric has a low mean p50, and low peaks: (servers,)."""
    low = np.ones(len(prospects[0]), dtype=np.bool_)
    for prospect in prospects:
        outlook = prospect.outlook
        p50, p90 = (quantiles.single(outlook.values[..., outlook.levels.index(level)]) for level in (0.5, 0.9))
        usual = risk.percent(p50.mean(axis=1), prospect.thresholds, outlook.unit)
        low &= (usual < underutilized) & (p90.max(axis=1) < IDLE_SHARE * prospect.thresholds)
    return low


def plan(
    prospects: Sequence[Prospect],
    groups: Sequence[Hashable],
    sizes: Array,
    prices: Sequence[Microdollars],
    rules: Rules,
) -> Plan:
    """The downsizes and moves that save most, never two for one server.

    `groups` (servers,): only servers of the same group take one another in. `sizes` (servers,) is what the values of a
    percent metric are percent of, in any unit that a group shares. `prices` (servers,) are a month's.
    """
    smaller = downsizes(prospects, rules.epsilon, rules.halvings)
    price = np.array(prices, dtype=np.float64)
    shrunk = np.array([saved(p, n) for p, n in zip(prices, smaller.halvings.tolist(), strict=True)], dtype=np.float64)
    host, method = _moves(prospects, groups, sizes, price - shrunk, shrunk, rules)
    moved = host >= 0
    hosts = np.unique(host[moved])
    halvings = np.where(moved, 0, smaller.halvings)
    halvings[hosts] = 0
    breach = smaller.breach.copy()
    breach[moved] = merged(prospects, sizes, host)[host[moved]]
    saving = tuple(
        price if gone else saved(price, times)
        for price, gone, times in zip(prices, moved.tolist(), halvings.tolist(), strict=True)
    )
    return Plan(halvings, host, method, breach, saving)


def saved(price: Microdollars, halvings: int) -> Microdollars:
    """price × (1 - 1/2ⁿ), what is left to pay rounded up."""
    left = -(-price // (1 << halvings))
    return price - left


def merged(prospects: Sequence[Prospect], sizes: Array, host: Index) -> Array:
    """Breach probability of each host with all that is emptied onto it: (servers, metrics), NaN of other servers.

    The sum of quantiles at one level is the quantile of a sum whose parts rise and fall together.
    """
    moved = np.flatnonzero(host >= 0)
    hosts = np.unique(host[moved])
    found = np.full((len(host), len(prospects)), np.nan)
    for metric, prospect in enumerate(prospects):
        size = _sizes(prospect.outlook, sizes)
        total = _work(prospect) * size[:, None, None]
        np.add.at(total, host[moved], total[moved])
        limits = (quantiles.single(prospect.thresholds) * size)[hosts, None]
        limits = np.broadcast_to(limits, (len(hosts), prospect.outlook.horizon))
        below = quantiles.cdf(total[hosts], prospect.outlook.levels, limits, 0.0, np.inf)
        found[hosts, metric] = prospect.template.breached_by(below)[:, -1]
    return found


def safe_level(template: Template, horizon: int, epsilon: float) -> float:
    """The level at which quantiles, all under the threshold, keep P(some step breaches) at `epsilon` or less.

    A path whose ranks all lie below k breaches nowhere when the threshold is above level k / paths at every step; k is
    the lowest that at most `epsilon` of the paths ever reach. A few are added for what a marginal alone may breach.
    """
    paths = len(template)
    highest = np.sort(template.ranks[:, :horizon].max(axis=1).astype(np.int64))
    spared = int(np.floor(epsilon * paths + 1e-9))
    rank = int(highest[paths - 1 - spared]) + 1
    return max(min(rank, paths - 0.25) / paths, 1.0 - epsilon)


def _moves(
    prospects: Sequence[Prospect], groups: Sequence[Hashable], sizes: Array, gains: Array, forgone: Array, rules: Rules
) -> tuple[Index, tuple[str, ...]]:
    loads, rooms = _loads(prospects, sizes, rules.epsilon)
    movable = idle(prospects, rules.underutilized)
    host, method = np.full(len(sizes), -1, dtype=np.int64), [""] * len(sizes)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    together = [np.array(its, dtype=np.int64) for its in members.values() if len(its) > 1 and movable[its].any()]
    packed = pack(
        [Group(loads[its], rooms[its], movable[its], gains[its] / 1e6, forgone[its] / 1e6) for its in together]
    )
    for its, (hosts, by) in zip(together, packed, strict=True):
        for row in np.flatnonzero(hosts >= 0).tolist():
            host[its[row]], method[its[row]] = its[hosts[row]], by
    return host, tuple(method)


def _loads(prospects: Sequence[Prospect], sizes: Array, epsilon: float) -> tuple[Array, Array]:
    """What each server brings, and has room for, at the safe level or as its history had it, whichever is more:
    (servers, stretches of all metrics)."""
    loads, rooms = [], []
    for prospect in prospects:
        outlook = prospect.outlook
        level = safe_level(prospect.template, outlook.horizon, epsilon)
        size = _sizes(outlook, sizes)[:, None]
        high = quantiles.interpolate(_work(prospect), outlook.levels, [level])[..., 0] * size
        starts = np.unique(np.linspace(0, outlook.horizon, STRETCHES, endpoint=False).astype(np.int64))
        peak = np.maximum(np.maximum.reduceat(high, starts, axis=1), prospect.highest[:, None] * size)
        loads.append(peak)
        rooms.append(quantiles.single(prospect.thresholds)[:, None] * size - peak)
    return np.concatenate(loads, axis=1), np.concatenate(rooms, axis=1)


def _work(prospect: Prospect) -> Array:
    """Quantiles of what a server has to do, which is never less than nothing."""
    return np.maximum(quantiles.single(prospect.outlook.values), 0.0)


def _sizes(outlook: Outlook, sizes: Array) -> Array:
    """An absolute metric is in its own unit on every server."""
    return np.ones(len(sizes)) if outlook.unit == "absolute" else sizes

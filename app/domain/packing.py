"""Vector bin-packing: which servers can be emptied, and onto which others, so that the most is saved.

Every server is a bin, and some may also be an item. A server that is emptied saves its price, less what shrinking it
would have saved anyway; one that takes others in cannot be shrunk, and loses that. Sizes and room come in as plain
numbers over any dimensions: what they mean, and how sure they are, is rightsizing's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from app.domain.panel import Array, Index

Method = Literal["milp", "first_fit_decreasing"]

PART = 40
"""Most servers that the solver sees at once: a larger group is cut into parts alike, each solved on its own."""

SOLVED = 320
"""Most servers that the solver sees in all of a plan; larger groups are packed first-fit decreasing only."""

NODES = 50
"""Most nodes of the solver's search tree: a limit that, unlike a time, gives the same answer on every machine."""

GAP = 0.01
"""The solver stops when it has come this near to the most that could be saved."""

SECONDS = 3.0
"""A stop for the solver where nodes take long; then first-fit decreasing counts, for what a time cuts off is not
the same twice."""

_TOLERANCE = 1e-5
"""The solver takes a constraint as kept up to a tenth of this; room is made smaller by it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Servers that may take one another in. A row is a server; `loads`, `rooms` (servers, dimensions).

    `loads` are at least 0; `rooms` is what a server can take in beside its own load, below 0 where it has too much
    already. `gains` (servers,) is what emptying saves, `forgone` what being a host loses, both at least 0.
    """

    loads: Array
    rooms: Array
    movable: NDArray[np.bool_]
    gains: Array
    forgone: Array

    def __len__(self) -> int:
        return len(self.loads)

    def saving(self, hosts: Index) -> float:
        """What a packing saves; `hosts` (servers,) is the row that each is emptied onto, -1 where it stays."""
        used = np.unique(hosts[hosts >= 0])
        return float(self.gains[hosts >= 0].sum() - self.forgone[used].sum())

    def holds(self, hosts: Index) -> bool:
        """Whether it is a packing: only what may moves, onto servers that stay and have the room."""
        moved = np.flatnonzero(hosts >= 0)
        if not self.movable[moved].all() or (hosts[hosts[moved]] >= 0).any():
            return False
        taken = np.zeros_like(self.loads)
        np.add.at(taken, hosts[moved], self.loads[moved])
        used = np.unique(hosts[moved])
        return bool((taken[used] <= self.rooms[used]).all())

    def take(self, rows: Index) -> "Group":
        return Group(self.loads[rows], self.rooms[rows], self.movable[rows], self.gains[rows], self.forgone[rows])


def pack(groups: Sequence[Group]) -> list[tuple[Index, Method]]:
    """Each group by itself, the smaller ones by the solver as well: whichever packing saves more, and whose it is."""
    found: dict[int, tuple[Index, Method]] = {}
    seen = 0
    for place in sorted(range(len(groups)), key=lambda place: len(groups[place])):
        seen += len(groups[place])
        found[place] = _pack(groups[place], seen <= SOLVED)
    return [found[place] for place in range(len(groups))]


def first_fit(group: Group) -> Index:
    """First-fit decreasing: the largest first, each onto the first server in use that has room; else it is one in use.

    Servers that may not move are in use from the start, those first that lose least as hosts, then those with the least
    room. What was put onto a host that loses more than they save stays where it is.
    """
    scale = np.maximum(group.loads.max(axis=0, initial=0.0), 1e-12)
    size = (group.loads / scale).max(axis=1, initial=0.0)
    rooms = group.rooms.copy()
    hosts = np.full(len(group), -1, dtype=np.int64)
    stays = np.flatnonzero(~group.movable)
    in_use = stays[np.lexsort(((rooms[stays] / scale).min(axis=1), group.forgone[stays]))].tolist()
    for row in np.argsort(-size, kind="stable"):
        if not group.movable[row]:
            continue
        bins = np.array(in_use, dtype=np.int64)
        fits = (group.loads[row] <= rooms[bins]).all(axis=1)
        if group.gains[row] > 0 and fits.any():
            host = bins[fits.argmax()]
            hosts[row] = host
            rooms[host] -= group.loads[row]
        else:
            in_use.append(int(row))
    moved = hosts >= 0
    saved = np.bincount(hosts[moved], weights=group.gains[moved], minlength=len(group))
    return np.where(moved & (saved[hosts] > group.forgone[hosts]), hosts, -1)


def solved(group: Group) -> Index | None:
    """By mixed-integer programming (HiGHS); None where that takes too long.

    x[i, j]: server i is emptied onto j. y[j]: j takes some in.

        maximise  Σ gains[i] x[i, j] - Σ forgone[j] y[j]
        Σ_i loads[i] x[i, j] ≤ rooms[j] y[j]     in every dimension
        Σ_j x[i, j] + y[i] ≤ 1                   emptied once at most, and never a host
        Σ_i x[i, j] ≤ servers · y[j]             also a load of nothing needs a host
    """
    item, host = _pairs(group)
    pairs, servers, dimensions = len(item), len(group), group.loads.shape[1]
    if not pairs:
        return np.full(servers, -1, dtype=np.int64)
    scale = np.maximum(np.abs(group.rooms).max(axis=0), 1e-12)
    loads, rooms = group.loads / scale, np.maximum(group.rooms / scale - _TOLERANCE, 0.0)
    pair, server, dimension = np.arange(pairs), np.arange(servers), np.arange(dimensions)
    room = sparse.hstack(
        [
            sparse.coo_array(
                (loads[item].ravel(), ((host[:, None] * dimensions + dimension).ravel(), np.repeat(pair, dimensions))),
                shape=(servers * dimensions, pairs),
            ),
            sparse.coo_array(
                (-rooms.ravel(), (np.arange(servers * dimensions), np.repeat(server, dimensions))),
                shape=(servers * dimensions, servers),
            ),
        ]
    )
    once = sparse.hstack(
        [sparse.coo_array((np.ones(pairs), (item, pair)), shape=(servers, pairs)), sparse.eye_array(servers)]
    )
    opened = sparse.hstack(
        [sparse.coo_array((np.ones(pairs), (host, pair)), shape=(servers, pairs)), -servers * sparse.eye_array(servers)]
    )
    found = milp(
        np.concatenate([-group.gains[item], group.forgone]),
        integrality=np.ones(pairs + servers),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(room.tocsr(), ub=0.0),
            LinearConstraint(once.tocsr(), ub=1.0),
            LinearConstraint(opened.tocsr(), ub=0.0),
        ],
        options={"node_limit": NODES, "time_limit": SECONDS, "mip_rel_gap": GAP},
    )
    if found.x is None or "time limit" in found.message.lower():
        return None
    hosts = np.full(servers, -1, dtype=np.int64)
    chosen = found.x[:pairs] > 0.5
    hosts[item[chosen]] = host[chosen]
    return hosts if group.holds(hosts) else None


def _pack(group: Group, with_solver: bool) -> tuple[Index, Method]:
    simple = first_fit(group)
    if not with_solver:
        return simple, "first_fit_decreasing"
    best, by_solver = np.full(len(group), -1, dtype=np.int64), False
    for rows in _parts(group):
        part = group.take(rows)
        found = solved(part)
        by_solver |= found is not None
        hosts = first_fit(part) if found is None else found
        best[rows] = np.where(hosts >= 0, rows[hosts], -1)
    if not by_solver or group.saving(best) < group.saving(simple):
        return simple, "first_fit_decreasing"
    return best, "milp"


def _pairs(group: Group) -> tuple[Index, Index]:
    """Who could be emptied onto whom: each fits there alone, and that pays."""
    items = np.flatnonzero(group.movable & (group.gains > 0))
    fits = np.ones((len(items), len(group)), dtype=np.bool_)
    for load, room in zip(group.loads[items].T, group.rooms.T, strict=True):
        fits &= load[:, None] <= room
    fits[np.arange(len(items)), items] = False
    item, host = np.nonzero(fits)
    return items[item], host.astype(np.int64)


def _parts(group: Group) -> list[Index]:
    """Rows in as few parts as it takes, each with its share of the movable and of the loaded."""
    count = -(-len(group) // PART)
    order = np.lexsort((group.loads.max(axis=1, initial=0.0), group.movable))
    return [np.sort(order[start::count]).astype(np.int64) for start in range(count)]

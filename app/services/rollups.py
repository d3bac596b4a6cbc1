"""Roll-ups: what whole groups of servers need together, against what they have together.

It holds who belongs to a group, what weighs a server, and a group's limit; the law of the sum is domain/totals.py.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from uuid import UUID

import numpy as np

from app.domain import risk, totals
from app.domain.dataset import TEXT_ATTRIBUTES, Unit, spellings
from app.domain.panel import Array, Frequency, Times
from app.errors import CapacityRequired, Complaint, Invalid
from app.services.fleets import Fleet, Fleets, Limits, Question, Recent, Rows, check_threshold, known_thresholds

Sort = Literal["group", "runway", "breach_probability"]

LEVELS = (0.1, 0.5, 0.9)

MOST_GROUPS = 1_000
"""More would be no roll-up, and cost more than an answer may."""

_KEPT = 8


@dataclass(frozen=True, eq=False)
class Passing:
    """When a total passes its limit. Runways are in days; None where the time ends before."""

    limit: float
    probability: float
    runway_conservative: float | None
    runway_expected: float | None
    first_p10: np.datetime64 | None
    first_p50: np.datetime64 | None
    headroom_pct: float


@dataclass(frozen=True, eq=False)
class Rollup:
    """One group (None: the servers that name none): its total at `times`, as quantiles (times, 3) at LEVELS.

    `servers` count; those `left_out` end too early. `capacity` is None where it is not known of each of them.
    `peak` are quantiles of the highest total of the whole time, `summed_p90` the highest sum of the servers' own p90.
    """

    group: str | None
    servers: int
    left_out: tuple[str, ...]
    capacity: float | None
    times: Times
    quantiles: Array
    peak: Array
    summed_p90: float
    passing: Passing | None


@dataclass(frozen=True, eq=False)
class Rollups:
    """`between` is the correlation of two servers on one date, as reckoned with; of `ended` groups no server counts."""

    forecast_id: UUID
    metric: str
    model: str
    unit: Unit
    frequency: Frequency
    as_of: np.datetime64
    between: float
    groups: list[Rollup]
    ended: tuple[str | None, ...]


class RollupService:
    def __init__(self, fleets: Fleets) -> None:
        self._fleets = fleets
        self._found: Recent[tuple[UUID, str, Limits], Rollups] = Recent(_KEPT)

    async def rollups(self, question: Question, by: str, sort: Sort, groups: Sequence[str] = ()) -> Rollups:
        """All groups, or those named.

        Raises what a list of servers raises, CapacityRequired, and Invalid where nobody has the attribute.
        """
        fleet = await self._fleets.of(question)
        found = await self._found.get(
            (fleet.run.id, by, question.limits), lambda: asyncio.to_thread(_rolled_up, fleet, question.limits, by)
        )
        wanted = {text for group in groups for text in spellings(group)}
        chosen = [rollup for rollup in found.groups if not groups or rollup.group in wanted]
        return replace(found, groups=sorted(chosen, key=partial(_key, sort)))


def _key(sort: Sort, rollup: Rollup) -> tuple[float, float, bool, str]:
    """The most urgent first, those without an answer last; ties go by name, and the nameless group comes last."""
    passing = rollup.passing
    probability = passing.probability if passing else -1.0
    runway = passing.runway_conservative if passing and passing.runway_conservative is not None else np.inf
    name = (rollup.group is None, rollup.group or "")
    match sort:
        case "runway":
            return (runway, -probability, *name)
        case "breach_probability":
            return (-probability, 0.0, *name)
        case "group":
            return (0.0, 0.0, *name)


def _rolled_up(fleet: Fleet, limits: Limits, by: str) -> Rollups:
    members = _members(fleet, by)
    capacity = fleet.quantity("capacity")
    if fleet.unit is not Unit.ABSOLUTE:
        _check_capacities(fleet, by, members, capacity)
    _check_limits(fleet, limits, by, members)
    outlook, newest = fleet.outlook(), fleet.matrix.as_of.max()
    between = totals.BETWEEN if fleet.template.between is None else fleet.template.between
    ranks = totals.orders(fleet.template, outlook.horizon, between)
    order = totals.order_of(fleet.matrix.server_ids)
    own = known_thresholds(fleet, limits)
    found, ended = [], []
    for group, rows in members.items():
        counts = totals.reaching(outlook, rows, newest)
        if not counts.any():
            ended.append(group)
            continue
        rows, late = rows[counts], rows[~counts]
        held = float(capacity[rows].sum())
        weights = np.ones(len(rows)) if fleet.unit is Unit.ABSOLUTE else capacity[rows] / held
        paths, summed = totals.total(outlook, rows, weights, ranks, order[rows], newest)
        limit = _limit_of_sum(limits, by, group, held) if fleet.unit is Unit.ABSOLUTE else float(weights @ own[rows])
        times = newest.astype("datetime64[s]") + np.arange(1, len(paths) + 1) * outlook.frequency.step
        steps = totals.quantiles_of(paths, LEVELS)
        found.append(
            Rollup(
                group,
                servers=len(rows),
                left_out=tuple(fleet.matrix.server_ids[row] for row in late.tolist()),
                capacity=None if np.isnan(held) else held,
                times=times,
                quantiles=steps,
                peak=totals.quantiles_of(paths.max(axis=0), LEVELS),
                summed_p90=float(summed.max()),
                passing=None if np.isnan(limit) else _passing(fleet, times, steps, paths, limit),
            )
        )
    frequency = fleet.contents.frequency
    return Rollups(
        fleet.forecast.id,
        fleet.metric,
        fleet.run.model,
        fleet.unit,
        frequency,
        newest,
        between,
        found,
        tuple(ended),
    )


def _members(fleet: Fleet, by: str) -> dict[str | None, Rows]:
    """Rows of each group."""
    if by not in TEXT_ATTRIBUTES and not fleet.has_attribute(by):
        known = sorted({name for server in fleet.servers for name in server.attributes})
        detail = f"No server of the forecast has an attribute {by!r}; there are: {', '.join(known) or 'none'}."
        raise Invalid(detail, errors=[Complaint("?by", "unknown-attribute", detail)])
    rows: dict[str | None, list[int]] = {}
    for row, group in enumerate(fleet.attribute(by)):
        rows.setdefault(group, []).append(row)
    if len(rows) > MOST_GROUPS:
        detail = f"{by} makes {len(rows)} groups; at most {MOST_GROUPS} are rolled up. GET /risk/servers tells of each."
        raise Invalid(detail, errors=[Complaint("?by", "too-many-groups", detail)])
    return {group: np.array(its, dtype=np.intp) for group, its in rows.items()}


def _check_capacities(fleet: Fleet, by: str, members: dict[str | None, Rows], capacity: Array) -> None:
    """A mean of percentages means nothing unless each is weighted by what it is a share of."""
    lacking = {group: rows[np.isnan(capacity[rows])] for group, rows in members.items()}
    lacking = {group: rows for group, rows in lacking.items() if rows.size}
    if lacking:
        group, rows = next(iter(lacking.items()))
        name = f"of {by} {group!r}" if group is not None else f"without {by}"
        first = ", ".join(repr(fleet.matrix.server_ids[row]) for row in rows[:3].tolist())
        raise CapacityRequired(
            f"Metric {fleet.metric} is {fleet.unit}: its total is the mean weighted by `capacity`, which "
            f"{sum(len(rows) for rows in lacking.values())} servers in {len(lacking)} groups have not; the first are "
            f"{first}, {name}. Upload the column `capacity`, or roll up an absolute metric."
        )


def _check_limits(fleet: Fleet, limits: Limits, by: str, members: dict[str | None, Rows]) -> None:
    if limits.threshold is not None:
        check_threshold(limits.threshold, "?threshold")
    for group in limits.groups:
        check_threshold(group.threshold, "?group_threshold")
        detail = None
        if fleet.unit is Unit.ABSOLUTE and group.attribute != by:
            detail = f"A total of {fleet.metric} is by {by}: a threshold by {group.attribute} says nothing of it."
        elif not fleet.having(group.attribute, group.value).any():
            detail = f"No server of the forecast has {group.attribute} {group.value!r}."
        if detail:
            raise Invalid(detail, errors=[Complaint("?group_threshold", "unknown-group", detail)])


def _limit_of_sum(limits: Limits, by: str, group: str | None, held: float) -> float:
    """The threshold asked for this group, or for each group; else what its servers hold; NaN where that is unknown."""
    asked = [one.threshold for one in limits.groups if one.attribute == by and group in spellings(one.value)]
    return min(asked, default=held if limits.threshold is None else limits.threshold)


def _passing(fleet: Fleet, times: Times, steps: Array, paths: Array, limit: float) -> Passing:
    frequency, unit = fleet.contents.frequency, fleet.unit
    by = totals.passed_by(paths, limit)

    def days(level: float) -> float | None:
        over = np.flatnonzero(steps[:, LEVELS.index(level)] > limit)
        return float(over[0] + 1) / frequency.per_day if over.size else None

    def date(probability: float) -> np.datetime64 | None:
        reached = np.flatnonzero(by >= probability)
        return times[reached[0]] if reached.size else None

    whole, highest = (risk.percent(np.array([v]), np.array([limit]), unit)[0] for v in (limit, steps[:, -1].max()))
    return Passing(limit, float(by[-1]), days(0.9), days(0.5), date(0.1), date(0.5), float(max(whole - highest, 0.0)))

"""What if: the risk answer of a fleet that grew, was given room, or lost servers, beside that of the fleet as it is.

It holds how a change acts on what is stored: quantiles are multiplied, thresholds moved, servers left out. Nothing is
fitted again, and how steps hang together stays as it was. Changes act in the order given, each on what those before
have left. It leaves out the formulas of an answer (domain/risk.py), which are the same on both sides.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.domain import risk
from app.domain.dataset import Unit
from app.domain.panel import Array, Frequency, Times
from app.domain.risk import Levels, Risk
from app.errors import CapacityRequired, Complaint, Invalid
from app.services.fleets import (
    Fleet,
    Fleets,
    Judged,
    Limits,
    Planning,
    Question,
    Recent,
    Rows,
    check_threshold,
    lead_times,
    shared,
)
from app.services.risk import Filters, GroupCount, Position, Sort, chosen, count

Flags = NDArray[np.bool_]

_KEPT = 4


@dataclass(frozen=True)
class Where:
    """Servers named, and of those (or of all) the ones that have one of the values of each attribute."""

    server_ids: tuple[str, ...] | None = None
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Growth:
    """All values from a time on (None: from the start) are so many percent higher."""

    percent: float
    since: np.datetime64 | None
    where: Where


@dataclass(frozen=True)
class NewThreshold:
    value: float
    where: Where


@dataclass(frozen=True)
class Capacity:
    """Room is multiplied by `factor`, or `add` is added to it, in the unit of the attribute `capacity`."""

    factor: float | None
    add: float | None
    where: Where


@dataclass(frozen=True)
class Retire:
    """The servers leave; what they carried goes with them."""

    where: Where


Change = Growth | NewThreshold | Capacity | Retire

Moved = Literal["entered", "left", "stayed"]
"""Whose answer differs: at risk (`risk_high`) in the scenario alone; in the base alone, retired ones included; in both
or in neither."""


@dataclass(frozen=True, eq=False)
class Side:
    """A server's answer in one of the two worlds."""

    threshold: float
    level: str
    risk_high: bool
    runway_conservative: float | None
    runway_expected: float | None
    breach_probability: float
    max_p90: float
    headroom_pct: float
    order_by: np.datetime64 | None
    overdue: bool


@dataclass(frozen=True, eq=False)
class Compared:
    """`scenario` is None of a server that was retired."""

    server_id: str
    base: Side
    scenario: Side | None
    changed: bool
    attributes: dict[str, str | float]


@dataclass(frozen=True, eq=False)
class World:
    """All servers of one of the two worlds: `breaches` of them are to be expected."""

    threshold: float | None
    counts: GroupCount
    breaches: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """`selected` servers of each change, in the order of the changes.

    `moves` counts all servers by their level in the base and in the scenario (None: retired), `moved` those whose
    answer differs; `servers` are the page that was asked for.
    """

    forecast_id: UUID
    metric: str
    model: str
    frequency: Frequency
    as_of: np.datetime64
    selected: list[int]
    base: World
    scenario: World
    moves: dict[tuple[str, str | None], int]
    moved: dict[Moved, int]
    servers: list[Compared]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The scenario in full: rows as in the fleet; those that are not `kept` hold what they had."""

    thresholds: Array
    risk: Risk
    kept: Flags
    changed: Flags
    moved: dict[Moved, Flags]
    selected: list[int]


class ScenarioService:
    def __init__(self, fleets: Fleets, planning: Planning) -> None:
        self._fleets = fleets
        self._planning = planning
        self._outcomes: Recent[tuple[UUID, Limits, tuple[Change, ...]], Outcome] = Recent(_KEPT)

    async def compare(
        self,
        question: Question,
        changes: Sequence[Change],
        filters: Filters,
        sort: Sort,
        after: Position | None,
        limit: int,
        *,
        changed_only: bool = False,
        moved: Moved | None = None,
    ) -> Comparison:
        """Both worlds, and up to `limit` servers from the one after `after` on; filters and sort go by the scenario.

        Raises what a list of servers raises, Invalid for a change that selects nobody or cannot be, and
        CapacityRequired where room is added to servers of unknown capacity.
        """
        if after is not None:
            question = replace(question, forecast_id=after[0])
        fleet = await self._fleets.of(question)
        base = await self._fleets.judged(fleet, question.limits)
        outcome = await self._outcomes.get(
            (fleet.run.id, question.limits, tuple(changes)),
            lambda: asyncio.to_thread(outcome_of, fleet, base, changes, self._fleets.levels),
        )
        among = outcome.changed if changed_only else np.ones(len(fleet.servers), dtype=np.bool_)
        among = among if moved is None else outcome.moved[moved]
        rows = await asyncio.to_thread(
            chosen, fleet, outcome.risk, filters, sort, after[1] if after else None, limit, among
        )
        return Comparison(
            fleet.forecast.id,
            fleet.metric,
            fleet.run.model,
            fleet.contents.frequency,
            fleet.matrix.as_of.max(),
            outcome.selected,
            _world(base.thresholds, base.risk, np.ones(len(fleet.servers), dtype=np.bool_)),
            _world(outcome.thresholds, outcome.risk, outcome.kept),
            _moves(base.risk, outcome),
            {name: int(those.sum()) for name, those in outcome.moved.items()},
            _compared(fleet, base, outcome, rows, lead_times(fleet, question.lead_time_days, self._planning)),
        )


@dataclass(eq=False)
class _Draft:
    """What the changes work on: copies of a fleet's figures. `room` is the capacity as a multiple of what it was."""

    values: NDArray[np.floating]
    thresholds: Array
    room: Array
    kept: Flags
    touched: Flags


def outcome_of(fleet: Fleet, base: Judged, changes: Sequence[Change], levels: Levels) -> Outcome:
    servers = len(fleet.servers)
    draft = _Draft(
        fleet.matrix.values.copy(),
        base.thresholds.copy(),
        np.ones(servers),
        np.ones(servers, dtype=np.bool_),
        np.zeros(servers, dtype=np.bool_),
    )
    selected = []
    for number, change in enumerate(changes):
        rows = _selected(fleet, change.where, draft.kept, f"/changes/{number}/where")
        selected.append(len(rows))
        draft.touched[rows] = True
        match change:
            case Growth():
                _grow(fleet, draft, rows, change, f"/changes/{number}/from")
            case NewThreshold():
                check_threshold(change.value, f"/changes/{number}/value")
                draft.thresholds[rows] = change.value
            case Capacity():
                _extend(fleet, draft, rows, change, f"/changes/{number}/add")
            case Retire():
                draft.kept[rows] = False
    anew = np.flatnonzero(draft.touched & draft.kept)
    found = _spliced(base.risk, anew, _judged_anew(fleet, draft, anew, levels))
    changed = ~draft.kept | (draft.thresholds != base.thresholds)
    for one in fields(Risk):
        before, after = getattr(base.risk, one.name), getattr(found, one.name)
        same = (before == after) | (_absent(before) & _absent(after))
        changed |= ~same
    moved = _moved(base.risk.risk_high, found.risk_high & draft.kept, changed)
    return Outcome(draft.thresholds, found, draft.kept, changed, moved, selected)


def _moved(before: Flags, after: Flags, changed: Flags) -> dict[Moved, Flags]:
    return {"entered": after & ~before, "left": before & ~after, "stayed": changed & (before == after)}


def _moves(base: Risk, outcome: Outcome) -> dict[tuple[str, str | None], int]:
    levels = zip(base.level.tolist(), outcome.risk.level.tolist(), outcome.kept.tolist(), strict=True)
    return dict(Counter((before, after if is_kept else None) for before, after, is_kept in levels))


def _selected(fleet: Fleet, where: Where, kept: Flags, pointer: str) -> Rows:
    """Rows of the servers meant, but for those retired before. Raises Invalid when there are none."""
    inside = kept.copy()
    if where.server_ids is not None:
        unknown = sorted(set(where.server_ids) - set(fleet.matrix.server_ids))
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            detail = f"The forecast has no server {', '.join(map(repr, unknown[:3]))}{more}."
            raise Invalid(detail, errors=[Complaint(f"{pointer}/server_ids", "unknown-server", detail)])
        named = set(where.server_ids)
        inside &= np.array([name in named for name in fleet.matrix.server_ids], dtype=np.bool_)
    for attribute, values in where.attributes:
        inside &= np.logical_or.reduce([fleet.having(attribute, value) for value in values], initial=False)
    rows = np.flatnonzero(inside)
    if not rows.size:
        detail = "This change selects no server that is left: nobody has all of these attributes."
        raise Invalid(detail, errors=[Complaint(pointer, "nothing-selected", detail)])
    return rows


def _grow(fleet: Fleet, draft: _Draft, rows: Rows, change: Growth, pointer: str) -> None:
    grown = np.ones((len(rows), fleet.matrix.values.shape[1]), dtype=np.bool_)
    if change.since is not None:
        steps = np.arange(1, grown.shape[1] + 1) * fleet.contents.frequency.step
        grown = fleet.matrix.as_of[rows, None] + steps >= change.since
        if not grown.any():
            detail = f"The forecasts of these servers end before {fleet.contents.frequency.show(change.since)}."
            raise Invalid(detail, errors=[Complaint(pointer, "beyond-horizon", detail)])
    draft.values[rows] *= np.where(grown, 1.0 + change.percent / 100.0, 1.0)[..., None]


def _extend(fleet: Fleet, draft: _Draft, rows: Rows, change: Capacity, pointer: str) -> None:
    """Of a share of capacity there is less of the same load; the threshold of an absolute metric moves with it."""
    factor = np.full(len(rows), change.factor if change.factor is not None else 1.0)
    if change.add is not None:
        capacity = (fleet.quantity("capacity") * draft.room)[rows]
        lacking = rows[np.isnan(capacity)]
        if lacking.size:
            raise CapacityRequired(
                f"{lacking.size} of the servers to which room is added have no `capacity`, the first is "
                f"{fleet.matrix.server_ids[int(lacking[0])]!r}. Say it as a `factor`, or upload the column `capacity`."
            )
        factor = (capacity + change.add) / capacity
        if not (factor > 0).all():
            detail = (
                f"{change.add:g} takes all room from {fleet.matrix.server_ids[rows[int((factor <= 0).argmax())]]!r}."
            )
            raise Invalid(detail, errors=[Complaint(pointer, "no-capacity-left", detail)])
    draft.room[rows] *= factor
    if fleet.unit is Unit.ABSOLUTE:
        draft.thresholds[rows] *= factor
    else:
        draft.values[rows] /= factor[:, None, None]


def _judged_anew(fleet: Fleet, draft: _Draft, rows: Rows, levels: Levels) -> Risk:
    """Some rows of the draft, its values within the bounds of the metric: a maximum shrinks as utilisation does."""
    outlook = replace(fleet.outlook().at(rows), values=draft.values[rows])
    if fleet.unit is not Unit.ABSOLUTE:
        full = 100.0 if fleet.unit is Unit.PERCENT else 1.0
        upper = np.maximum(full, outlook.upper / draft.room[rows])
        outlook = replace(outlook, values=np.clip(outlook.values, 0.0, upper[:, None, None]), upper=upper)
    return risk.assess(outlook, draft.thresholds[rows], fleet.template, levels)


def _spliced(base: Risk, rows: Rows, anew: Risk) -> Risk:
    found = {}
    for one in fields(Risk):
        found[one.name] = getattr(base, one.name).copy()
        found[one.name][rows] = getattr(anew, one.name)
    return Risk(**found)


def _absent(values: Array | Times) -> Flags:
    """Where nothing happens within the horizon: NaN, NaT."""
    return np.asarray(values != values)


def _world(thresholds: Array, found: Risk, kept: Flags) -> World:
    rows = np.flatnonzero(kept)
    return World(shared(thresholds[rows]), count(None, found, rows), float(found.breach_probability[rows].sum()))


def _compared(fleet: Fleet, base: Judged, outcome: Outcome, rows: Rows, lead: Array) -> list[Compared]:
    before = _sides(fleet, base.thresholds, base.risk, rows, lead)
    after = _sides(fleet, outcome.thresholds, outcome.risk, rows, lead)
    return [
        Compared(
            fleet.matrix.server_ids[row],
            its,
            anew if outcome.kept[row] else None,
            bool(outcome.changed[row]),
            fleet.servers[row].attributes,
        )
        for row, its, anew in zip(rows.tolist(), before, after, strict=True)
    ]


def _sides(fleet: Fleet, thresholds: Array, found: Risk, rows: Rows, lead: Array) -> list[Side]:
    as_of = fleet.matrix.as_of
    order_by = risk.order_by(as_of, found.runway_conservative, lead)
    return [
        Side(
            threshold=float(thresholds[row]),
            level=str(found.level[row]),
            risk_high=bool(found.risk_high[row]),
            runway_conservative=_known(found.runway_conservative[row]),
            runway_expected=_known(found.runway_expected[row]),
            breach_probability=float(found.breach_probability[row]),
            max_p90=float(found.max_p90[row]),
            headroom_pct=float(found.headroom_pct[row]),
            order_by=None if np.isnat(order_by[row]) else order_by[row],
            overdue=bool(order_by[row] < as_of[row]),
        )
        for row in rows.tolist()
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

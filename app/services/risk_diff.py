"""What changed between two forecasts: who came to be at risk, and how far each breach date moved, and why.

A move is that of the date of the conservative breach, so that mere passing of time moves nothing. What happens after
the last date that both forecasts see counts as the step behind it, censored. The move is the sum of three parts:

    threshold   the old forecast at the new threshold, against itself at the old one
    model       the new model against the old one, both in one of the two forecasts
    data        the rest: the new forecast against what the old one said with threshold and model as they are now

It leaves out the runways themselves, which are those of domain/risk.py.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal
from uuid import UUID

import numpy as np

from app.domain import risk
from app.domain.panel import Array, Frequency, Times
from app.domain.run import RunStatus
from app.errors import Complaint, Invalid
from app.services.fleets import Fleet, Fleets, Judged, Limits, Question, Recent, Rows
from app.services.risk import Filters

Status = Literal["entered", "left", "at_risk", "clear", "added", "removed"]
ModelPart = Literal["same_model", "in_from", "in_to", "not_separable"]
Sort = Literal["moved", "runway", "server_id"]

_KEPT = 4


@dataclass(frozen=True)
class Parts:
    """Days by which a breach moved; negative is sooner. They add up to `total`, to the last digit."""

    threshold: float
    model: float
    data: float

    @property
    def total(self) -> float:
        return self.threshold + self.model + self.data


@dataclass(frozen=True, eq=False)
class End:
    """A server in one of the two forecasts."""

    as_of: np.datetime64
    threshold: float
    level: str
    risk_high: bool
    max_p90: float
    breach_probability: float
    runway_days: float | None
    breach: np.datetime64 | None


@dataclass(frozen=True, eq=False)
class Moved:
    """One server. `parts` is None where it is in one forecast only, or the forecasts share no date.

    `censored`: whether each breach lies behind the last date that both forecasts see. `newly_in_view`: the new breach
    lies behind the horizon of the old forecast, which could not tell of it.
    """

    server_id: str
    status: Status
    before: End | None
    after: End | None
    parts: Parts | None
    censored: tuple[bool, bool] | None
    newly_in_view: bool
    attributes: dict[str, str | float]


@dataclass(frozen=True, eq=False)
class Difference:
    """`parts` are sums over the servers that were compared, `moved` of them at all."""

    metric: str
    frequency: Frequency
    forecasts: tuple[UUID, UUID]
    models: tuple[str, str]
    as_of: tuple[np.datetime64, np.datetime64]
    thresholds: tuple[float | None, float | None]
    model_part: ModelPart
    statuses: dict[Status, int]
    compared: int
    moved: int
    parts: Parts
    servers: list[Moved]


class DiffService:
    def __init__(self, fleets: Fleets) -> None:
        self._fleets = fleets
        self._found: Recent[tuple[UUID, Limits, UUID, Limits], Difference] = Recent(_KEPT)

    async def difference(
        self, before: Question, after: Question, statuses: Sequence[Status], filters: Filters, sort: Sort
    ) -> Difference:
        """All servers that pass, the most urgent first. The counts and sums are those of all servers.

        Raises what a list of servers raises, and Invalid where the two cannot be compared.
        """
        old, new = await self._fleets.of(before), await self._fleets.of(after)
        _check(old, new)
        found = await self._found.get(
            (old.run.id, before.limits, new.run.id, after.limits), lambda: self._between(old, before, new, after)
        )
        servers = [one for one in found.servers if _passes(one, statuses, filters)]
        return replace(found, servers=sorted(servers, key=partial(_key, sort)))

    async def _between(self, old: Fleet, before: Question, new: Fleet, after: Question) -> Difference:
        was = await self._fleets.judged(old, before.limits)
        now = await self._fleets.judged(new, after.limits)
        model_part, other = await self._other_model(old, new)
        return await asyncio.to_thread(difference_of, old, was, new, now, model_part, other)

    async def _other_model(self, old: Fleet, new: Fleet) -> tuple[ModelPart, Fleet | None]:
        """The other model on the same data, in whichever forecast has run both."""
        if old.run.model == new.run.model:
            return "same_model", None
        choices: tuple[tuple[ModelPart, Fleet, str], ...] = (
            ("in_from", old, new.run.model),
            ("in_to", new, old.run.model),
        )
        for part, fleet, model in choices:
            if any(run.model == model and run.status is RunStatus.SUCCEEDED for run in fleet.forecast.runs):
                return part, await self._fleets.of(Question(fleet.forecast.id, model=model))
        return "not_separable", None


def _check(old: Fleet, new: Fleet) -> None:
    """Raises Invalid for forecasts of different things."""
    for what, one, other in (
        ("metric", old.metric, new.metric),
        ("unit", old.unit.value, new.unit.value),
        ("frequency", old.contents.frequency.value, new.contents.frequency.value),
    ):
        if one != other:
            detail = f"The two forecasts differ in their {what}: {one!r} and {other!r}; they cannot be compared."
            raise Invalid(detail, errors=[Complaint("?to", f"other-{what}", detail)])


def difference_of(
    old: Fleet, was: Judged, new: Fleet, now: Judged, model_part: ModelPart, other: Fleet | None
) -> Difference:
    places = {name: row for row, name in enumerate(old.matrix.server_ids)}
    its_old = np.array([places.get(name, -1) for name in new.matrix.server_ids], dtype=np.intp)
    rows = np.flatnonzero(its_old >= 0)
    old_rows = its_old[rows]
    end = np.minimum(_last(old)[old_rows], _last(new)[rows])
    comparable = end > np.maximum(old.matrix.as_of[old_rows], new.matrix.as_of[rows])

    first = _moments(old, old_rows, was.thresholds[old_rows], end)
    moved = _moments(old, old_rows, now.thresholds[rows], end)
    last = _moments(new, rows, now.thresholds[rows], end)
    changed = moved
    if other is not None:
        theirs = {name: row for row, name in enumerate(other.matrix.server_ids)}
        at = np.array([theirs.get(new.matrix.server_ids[row], -1) for row in rows.tolist()], dtype=np.intp)
        alone = np.where(at < 0, np.nan, _moments(other, np.maximum(at, 0), now.thresholds[rows], end))
        changed = moved + np.nan_to_num(alone - moved if model_part == "in_from" else last - alone)
    per_day = new.contents.frequency.per_day
    threshold, model, data = ((b - a) / per_day for a, b in pairwise((first, moved, changed, last)))

    before, after = _ends(old, was), _ends(new, now)
    seen = _last(old)
    servers = [
        Moved(
            new.matrix.server_ids[row],
            _status(before[source], after[row]),
            before[source],
            after[row],
            Parts(float(threshold[k]), float(model[k]), float(data[k])) if comparable[k] else None,
            (bool(first[k] > 0), bool(last[k] > 0)) if comparable[k] else None,
            _later(after[row], seen[source]),
            new.servers[row].attributes,
        )
        for k, (source, row) in enumerate(zip(old_rows.tolist(), rows.tolist(), strict=True))
    ]
    servers += [
        Moved(name, "added", None, after[row], None, None, False, new.servers[row].attributes)
        for row, name in enumerate(new.matrix.server_ids)
        if its_old[row] < 0
    ]
    stayed = set(new.matrix.server_ids)
    servers += [
        Moved(name, "removed", before[row], None, None, None, False, old.servers[row].attributes)
        for row, name in enumerate(old.matrix.server_ids)
        if name not in stayed
    ]
    return Difference(
        new.metric,
        new.contents.frequency,
        (old.forecast.id, new.forecast.id),
        (old.run.model, new.run.model),
        (old.matrix.as_of.max(), new.matrix.as_of.max()),
        (was.threshold, now.threshold),
        model_part,
        dict(Counter(one.status for one in servers)),
        int(comparable.sum()),
        int((comparable & (first != last)).sum()),
        Parts(*(float(part[comparable].sum()) for part in (threshold, model, data))),
        servers,
    )


def _last(fleet: Fleet) -> Times:
    """The last date of each server's forecast."""
    return np.asarray(fleet.matrix.as_of + fleet.matrix.values.shape[1] * fleet.contents.frequency.step)


def _moments(fleet: Fleet, rows: Rows, thresholds: Array, end: Times) -> Array:
    """When each conservative breach is, in whole steps from `end` on; 1 for whatever comes later, or not at all."""
    outlook = fleet.outlook().at(rows)
    breach = (outlook.as_of - end) // outlook.frequency.step + risk.runway_steps(outlook, thresholds, 0.9)
    return np.minimum(np.nan_to_num(breach, nan=1.0), 1.0)


def _ends(fleet: Fleet, judged: Judged) -> list[End]:
    found, as_of = judged.risk, fleet.matrix.as_of
    breach = as_of + np.nan_to_num(found.runway_conservative * 86_400).astype("timedelta64[s]")
    return [
        End(
            as_of=as_of[row],
            threshold=float(judged.thresholds[row]),
            level=str(found.level[row]),
            risk_high=bool(found.risk_high[row]),
            max_p90=float(found.max_p90[row]),
            breach_probability=float(found.breach_probability[row]),
            runway_days=float(found.runway_conservative[row]) if found.risk_high[row] else None,
            breach=breach[row] if found.risk_high[row] else None,
        )
        for row in range(len(as_of))
    ]


def _status(before: End, after: End) -> Status:
    match before.risk_high, after.risk_high:
        case False, True:
            return "entered"
        case True, False:
            return "left"
        case True, True:
            return "at_risk"
        case _:
            return "clear"


def _later(after: End, seen: np.datetime64) -> bool:
    return after.breach is not None and bool(after.breach > seen)


def _passes(server: Moved, statuses: Sequence[Status], filters: Filters) -> bool:
    wanted = {name: getattr(filters, name) for name in ("business_unit", "region", "criticality")}
    return (not statuses or server.status in statuses) and all(
        not values or str(server.attributes.get(name)) in values for name, values in wanted.items()
    )


def _key(sort: Sort, server: Moved) -> tuple[float, float, str]:
    """The most urgent first; those of which it cannot be told last; ties go by name."""
    moved = server.parts.total if server.parts else np.inf
    runway = server.after.runway_days if server.after and server.after.runway_days is not None else np.inf
    match sort:
        case "moved":
            return (moved, runway, server.server_id)
        case "runway":
            return (runway, moved, server.server_id)
        case "server_id":
            return (0.0, 0.0, server.server_id)

"""The risk answer for clients: which servers, in which order, with what a planner does about each.

It holds the choices around the formulas of domain/risk.py. It leaves out the formulas, where a fleet and its
thresholds come from (fleets.py), and how an answer is written (api/risk.py).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import compress, repeat
from math import isnan
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.domain import risk
from app.domain.dataset import Server, Unit
from app.domain.panel import Frequency, Times, instants
from app.domain.risk import Peak, Risk
from app.errors import NotFound, ThresholdRequired
from app.services.fleets import (
    Fleet,
    Fleets,
    Judged,
    Limits,
    Meant,
    Planning,
    Question,
    Rows,
    judge,
    lead_times,
    quantities,
)
from app.storage import risk as newest_forecasts
from app.storage import risk_rows
from app.storage.database import Connection, Database
from app.storage.risk_rows import Count, Found, Standing

Read = TypeVar("Read")
Shown = tuple[Fleet, Judged, Rows]
"""A fleet, its risk, and those of its rows that a page shows."""

Sort = risk.Sort
Group = Literal["business_unit", "region", "criticality"]
Position = tuple[UUID, str]
"""Where a list goes on: the forecast that it is of, and the last server seen."""

SHORT_HISTORY_DAYS = 28
"""A history is short below this, and below two horizons."""

NEVER = np.datetime64("NaT", "s")

GAPS_SHARE = 0.05
"""A server has gaps when more than this share of its steps has no value."""

CONSTANT_SHARE = 0.001
"""A forecast is constant when all its quantiles lie within this share of its level."""


@dataclass(frozen=True)
class Filters:
    """Servers that have one of the values of each; an empty tuple lets all pass."""

    level: tuple[str, ...] = ()
    business_unit: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    criticality: tuple[str, ...] = ()
    server_id: tuple[str, ...] = ()


class ServerRisk(NamedTuple):
    """One server's answer. Runways are in days, None when the horizon ends before; times are datetime64[s]."""

    server_id: str
    forecast_id: UUID
    metric: str
    model: str
    frequency: Frequency
    threshold: float
    as_of: np.datetime64
    level: str
    risk_high: bool
    max_p90: float
    mean_p50: float
    breach_probability: float
    expected_breach_days: float
    runway_conservative: float | None
    runway_expected: float | None
    first_breach_p10: np.datetime64 | None
    first_breach_p50: np.datetime64 | None
    headroom_pct: float
    usable_headroom_pct: float
    usable_headroom: float | None
    lead_time_days: float
    order_by: np.datetime64 | None
    overdue: bool
    severity: float | None
    peaks: tuple[Peak, ...]
    fallback: bool
    coverage: float | None
    history_days: int
    quality: tuple[str, ...]
    level_shift: np.datetime64 | None
    attributes: dict[str, str | float]


@dataclass(frozen=True, eq=False)
class Answer:
    """A page of servers. `threshold` is None where servers have different ones; `as_of` is the newest of all."""

    forecast_id: UUID
    metric: str
    frequency: Frequency
    threshold: float | None
    as_of: np.datetime64
    servers: list[ServerRisk]


@dataclass(frozen=True)
class GroupCount:
    """How many servers of a group (None: those that name none) are at each level, and have a runway."""

    group: str | None
    servers: int
    risk_high: int
    levels: dict[str, int]


@dataclass(frozen=True, eq=False)
class Summary:
    forecast_id: UUID
    metric: str
    frequency: Frequency
    threshold: float | None
    as_of: np.datetime64
    total: GroupCount
    groups: list[GroupCount]


class RiskService:
    def __init__(self, database: Database, fleets: Fleets, *, country: str, planning: Planning) -> None:
        self._database = database
        self._fleets = fleets
        self._country = country
        self._planning = planning

    async def servers(
        self, question: Question, filters: Filters, sort: Sort, after: Position | None, limit: int
    ) -> Answer:
        """Up to `limit` servers from the one after `after` on.

        Raises NotFound, ForecastNotReady, NoResults, Invalid (a model or a metric that the forecast lacks, a
        threshold that cannot be one) and ThresholdRequired.
        """
        if after is not None:
            question = replace(question, forecast_id=after[0])
        meant = await self._fleets.meant(question)
        start, lead = after[1] if after else None, question.lead_time_days
        wanted = {name: values for name, values in asdict(filters).items() if values}

        async def page(connection: Connection) -> Shown | None:
            found = await risk_rows.page(connection, meant.run.id, wanted, sort, start, limit)
            return await self._of_page(connection, meant, found) if found.server_ids else None

        stored = await self._stored(meant, question.limits, page)
        if stored is not None:
            standing, shown = stored
            threshold, as_of = standing.threshold, standing.as_of
            servers = [] if shown is None else self._shown(shown[0], shown[1], lead, shown[2])
        else:
            fleet = await self._fleets.whole(meant)
            judged = await self._fleets.judged(fleet, question.limits)
            threshold, as_of = judged.threshold, fleet.matrix.as_of.max()
            rows = await asyncio.to_thread(chosen, fleet, judged.risk, filters, sort, start, limit)
            servers = self._shown(fleet, judged, lead, rows)
        return Answer(meant.forecast.id, meant.metric, meant.contents.frequency, threshold, as_of, servers)

    async def server(
        self, server_id: str, limits: Limits, lead_time_days: float | None = None
    ) -> tuple[list[ServerRisk], list[str]]:
        """One server in the newest succeeded forecast of each metric; and metrics that have no threshold for it.

        Raises NotFound when there is none.
        """
        async with self._database.connect() as connection:
            newest = await newest_forecasts.newest_of_server(connection, server_id)
        if not newest:
            raise NotFound(
                f"No succeeded forecast has a server {server_id!r}. GET /risk/servers lists those there are."
            )
        answers, without = [], []
        for found in newest:
            fleet = await self._fleets.load(await self._fleets.meant(Question(found.forecast_id)), [server_id])
            try:
                judged = await asyncio.to_thread(judge, fleet, limits, self._fleets.levels)
            except ThresholdRequired:
                without.append(found.metric)
                continue
            answers += self._shown(fleet, judged, lead_time_days, np.arange(1))
        return answers, without

    async def summary(self, question: Question, by: Group) -> Summary:
        """How many servers are at each level, in all and per value of an attribute. Raises what `servers` raises."""
        meant = await self._fleets.meant(question)
        stored = await self._stored(meant, question.limits, partial(risk_rows.counts, run_id=meant.run.id, by=by))
        if stored is not None:
            standing, counted = stored
            threshold, as_of, counts = standing.threshold, standing.as_of, counted
        else:
            fleet = await self._fleets.whole(meant)
            judged = await self._fleets.judged(fleet, question.limits)
            threshold, as_of = judged.threshold, fleet.matrix.as_of.max()
            counts = _counts(fleet.attribute(by), judged.risk)
        groups: dict[str | None, list[Count]] = {}
        for each in counts:
            groups.setdefault(each.group, []).append(each)
        return Summary(
            meant.forecast.id,
            meant.metric,
            meant.contents.frequency,
            threshold,
            as_of,
            _total(None, counts),
            [_total(name, groups[name]) for name in sorted(groups, key=lambda name: (name is None, name))],
        )

    async def _stored(
        self, meant: Meant, limits: Limits, read: Callable[[Connection], Awaitable[Read]]
    ) -> tuple[Standing, Read] | None:
        """What is read of the run's stored risk, if that answers: every server at the threshold that it was judged by
        when the run ended, under the rules of today."""
        if limits.groups:
            return None
        async with self._database.connect() as connection:
            rules = risk.judged_by(self._fleets.levels, meant.unit)
            standing = await risk_rows.standing(connection, meant.run.id, rules)
            if standing is None or limits.threshold not in (None, standing.threshold):
                return None
            return standing, await read(connection)

    async def _of_page(self, connection: Connection, meant: Meant, found: Found) -> Shown:
        """The fleet of these servers alone, as it was judged, and the order of its list."""
        fleet = await self._fleets.read(connection, meant, found.server_ids)
        by_id = np.argsort(found.server_ids)
        return fleet, Judged(found.thresholds[by_id], found.risk.at(by_id)), np.argsort(by_id)

    def _shown(self, fleet: Fleet, judged: Judged, lead_time_days: float | None, rows: Rows) -> list[ServerRisk]:
        return _shown(fleet, judged, self._country, self._planning, lead_time_days, rows)


def chosen(
    fleet: Fleet,
    found: Risk,
    filters: Filters,
    sort: Sort,
    after: str | None,
    limit: int,
    among: NDArray[np.bool_] | None = None,
) -> Rows:
    """Rows of the page: sorted, then filtered, then from behind `after` on. Ties go by server_id, byte by byte."""
    order = risk.order(found, sort)
    passes = np.ones(len(fleet.servers), dtype=np.bool_) if among is None else among.copy()
    if filters.level:
        passes &= np.isin(found.level, filters.level)
    for name in ("business_unit", "region", "criticality"):
        if wanted := getattr(filters, name):
            passes &= np.array([value in wanted for value in fleet.attribute(name)])
    if filters.server_id:
        passes &= np.array([name in filters.server_id for name in fleet.matrix.server_ids])
    if after is not None:
        seen = np.flatnonzero(np.array(fleet.matrix.server_ids, dtype=object)[order] == after)
        order = order[int(seen[0]) + 1 :] if seen.size else order[:0]
    return order[passes[order]][:limit]


def _shown(
    fleet: Fleet, judged: Judged, country: str, planning: Planning, lead_time_days: float | None, rows: Rows
) -> list[ServerRisk]:
    """Each field for all servers at once; then they are dealt out."""
    its, matrix = judged.risk.at(rows), fleet.matrix
    servers, thresholds, as_of = (
        [fleet.servers[row] for row in rows.tolist()],
        judged.thresholds[rows],
        matrix.as_of[rows],
    )
    lead = lead_times(fleet, lead_time_days, planning)[rows]
    order_by = risk.order_by(as_of, its.runway_conservative, lead)
    usable_pct = np.maximum(its.headroom_pct - planning.buffer_pct, 0.0)
    whole = thresholds if fleet.unit is Unit.ABSOLUTE else quantities(servers, "capacity")
    coverage = (fleet.run.scores or {}).get("coverage")
    shifted_at = np.full(len(rows), NEVER) if matrix.shifted_at is None else matrix.shifted_at[rows]
    columns: dict[str, Iterable[Any]] = {
        "server_id": (server.server_id for server in servers),
        "forecast_id": repeat(fleet.forecast.id),
        "metric": repeat(fleet.metric),
        "model": repeat(fleet.run.model),
        "frequency": repeat(fleet.contents.frequency),
        "threshold": thresholds.tolist(),
        "as_of": as_of,
        "level": its.level.tolist(),
        "risk_high": its.risk_high.tolist(),
        "max_p90": its.max_p90.tolist(),
        "mean_p50": its.mean_p50.tolist(),
        "breach_probability": its.breach_probability.tolist(),
        "expected_breach_days": its.expected_breach_days.tolist(),
        "runway_conservative": _known(its.runway_conservative),
        "runway_expected": _known(its.runway_expected),
        "first_breach_p10": _dates(its.first_breach_p10),
        "first_breach_p50": _dates(its.first_breach_p50),
        "headroom_pct": its.headroom_pct.tolist(),
        "usable_headroom_pct": usable_pct.tolist(),
        "usable_headroom": _known(usable_pct / 100.0 * whole),
        "lead_time_days": lead.tolist(),
        "order_by": _dates(order_by),
        "overdue": (order_by < as_of).tolist(),
        "severity": _known(its.severity),
        "peaks": _peaks(fleet, rows, country),
        "fallback": (matrix.fallback[row] is not None for row in rows.tolist()),
        "coverage": _known(matrix.scores["coverage"][rows], coverage),
        "history_days": _history_days(servers, as_of),
        "quality": _quality(fleet, servers, rows, shifted_at),
        "level_shift": _dates(shifted_at),
        "attributes": (server.attributes for server in servers),
    }
    return [ServerRisk(**dict(zip(columns, fields, strict=True))) for fields in zip(*columns.values(), strict=False)]


def _peaks(fleet: Fleet, rows: Rows, country: str) -> list[tuple[Peak, ...]]:
    """Servers that end on one day are looked at together."""
    median = fleet.matrix.values[rows, :, fleet.matrix.levels.index(0.5)].astype(np.float64)
    found: list[tuple[Peak, ...]] = [()] * len(rows)
    ends, of = np.unique(fleet.matrix.as_of[rows], return_inverse=True)
    for place, as_of in enumerate(ends):
        alike = np.flatnonzero(of == place)
        its = risk.peaks(median[alike], as_of, fleet.contents.frequency, country)
        for server, peaks in zip(alike.tolist(), its, strict=True):
            found[server] = peaks
    return found


def _history_days(servers: Sequence[Server], as_of: Times) -> list[int]:
    """Days from each server's first row to its last, both counted."""
    days: list[int] = (
        (as_of.astype("datetime64[D]") - instants(s.first_at for s in servers).astype("datetime64[D]")).astype(int) + 1
    ).tolist()
    return days


def _quality(fleet: Fleet, servers: Sequence[Server], rows: Rows, shifted_at: Times) -> list[tuple[str, ...]]:
    """What makes each server's answer less sure; docs/risk.md says what each word means."""
    per_day, horizon = fleet.contents.frequency.per_day, fleet.matrix.values.shape[1]
    lasted = instants(server.last_at for server in servers) - instants(server.first_at for server in servers)
    span = lasted / np.timedelta64(1, "D") * per_day + 1
    counts = np.array([server.counts.get(fleet.metric, 0) for server in servers])
    flags = {
        "short_history": span < max(2 * horizon, SHORT_HISTORY_DAYS * per_day),
        "gaps": counts < (1.0 - GAPS_SHARE) * span,
        "constant": _is_constant(fleet.matrix.values[rows]),
        "stale": fleet.matrix.as_of[rows] < np.datetime64(fleet.contents.end.replace(tzinfo=None), "s"),
        "level_shift": ~np.isnat(shifted_at),
    }
    return [tuple(compress(flags, raised)) for raised in np.column_stack(list(flags.values())).tolist()]


def _is_constant(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether all quantiles of a server (servers, horizon, levels) are about the same."""
    lowest, highest = values.min(axis=(1, 2)), values.max(axis=(1, 2))
    largest = np.maximum(np.maximum(-lowest, highest), 1.0)
    return np.asarray(highest - lowest <= CONSTANT_SHARE * largest)


def count(group: str | None, found: Risk, rows: Rows) -> GroupCount:
    levels = Counter(found.level[rows].tolist())
    return GroupCount(
        group, len(rows), int(found.risk_high[rows].sum()), {level: levels.get(level, 0) for level in risk.LEVELS}
    )


def _counts(groups: Sequence[str | None], found: Risk) -> list[Count]:
    at = list(zip(groups, found.level.tolist(), strict=True))
    high = Counter(pair for pair, at_risk in zip(at, found.risk_high.tolist(), strict=True) if at_risk)
    return [Count(*pair, servers, high[pair]) for pair, servers in Counter(at).items()]


def _total(group: str | None, counts: Sequence[Count]) -> GroupCount:
    levels = dict.fromkeys(risk.LEVELS, 0)
    for each in counts:
        levels[each.level] += each.servers
    return GroupCount(group, sum(levels.values()), sum(each.risk_high for each in counts), levels)


def _known(values: NDArray[np.floating[Any]], default: float | None = None) -> list[float | None]:
    return [default if isnan(value) else value for value in values.tolist()]


def _dates(times: Times) -> list[np.datetime64 | None]:
    return [None if never else time for time, never in zip(times, np.isnat(times).tolist(), strict=True)]

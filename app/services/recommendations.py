"""Recommendations: servers that could be smaller or gone, with the sums behind each; docs/risk.md has the formulas.

It holds which forecasts are looked at together (the newest of each metric of the dataset), who is left out and why,
prices, and the sentences. The plan itself is domain/rightsizing's, made in a child; the last few are kept.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import UUID

import numpy as np

from app.compute import Compute
from app.domain import rightsizing
from app.domain.cost import Microdollars, microdollars, shown
from app.domain.dataset import PRICE_ATTRIBUTES, Server, Unit
from app.domain.panel import Array, Frequency
from app.domain.rightsizing import Plan, Prospect, Rules
from app.domain.risk import Outlook
from app.services.fleets import Fleet, Fleets, Question, Recent, Rows, known_thresholds, run_of
from app.services.profiles import ProfileService
from app.storage import datasets
from app.storage import risk as stored
from app.storage.database import Database

Kind = Literal["downsize", "consolidate"]
Reason = Literal["no_forecast", "no_values", "no_threshold", "no_room", "host"]

SECONDS = 300.0
DEAREST = 10_000_000 * 1_000_000
"""What costs more a month is no price of a server."""

_KEPT = 8


@dataclass(frozen=True)
class Defaults:
    """What is set up: the rules, and the price of a server whose dataset tells none."""

    rules: Rules
    price: Microdollars


@dataclass(frozen=True)
class Selection:
    """Recommendations of one of the kinds, of servers that have one of the values; an empty tuple lets all pass."""

    kind: tuple[Kind, ...] = ()
    business_unit: tuple[str, ...] = ()
    region: tuple[str, ...] = ()


@dataclass(frozen=True)
class Basis:
    """A forecast that was looked at. `as_of` is the newest of its servers; `steps` its horizon."""

    metric: str
    forecast_id: UUID
    model: str
    as_of: np.datetime64
    frequency: Frequency
    steps: int


@dataclass(frozen=True)
class Price:
    monthly: Microdollars
    basis: str


@dataclass(frozen=True)
class Recommendation:
    """What could be done with one server. `onto` and `method` are None where it is to be downsized.

    `breach` by metric is that of the new size, or of the host with all that is put onto it."""

    kind: Kind
    server_id: str
    onto: str | None
    factor: float
    capacity: float | None
    breach: dict[str, float]
    epsilon: float
    formula: str
    assumptions: tuple[str, ...]
    method: str | None
    price: Price
    saving: Microdollars
    profile: str | None
    attributes: dict[str, str | float]


@dataclass(frozen=True)
class LeftOut:
    """Why servers are not recommended; `metric` where one is to blame."""

    reason: Reason
    metric: str | None
    servers: int


@dataclass(frozen=True)
class Totals:
    """Sums over a selection. Every recommendation is of another server."""

    servers: int
    downsize: Microdollars
    consolidate: Microdollars

    @property
    def saving(self) -> Microdollars:
        return self.downsize + self.consolidate


@dataclass(frozen=True)
class Missing:
    """A metric of the dataset without a forecast, and how to make one."""

    metric: str
    todo: str


@dataclass(frozen=True)
class Advice:
    """All that is recommended, the largest saving first; `servers` is how many the dataset has."""

    basis: tuple[Basis, ...]
    epsilon: float
    servers: int
    items: tuple[Recommendation, ...]
    left_out: tuple[LeftOut, ...]
    missing: tuple[Missing, ...]

    @property
    def forecasts(self) -> tuple[UUID, ...]:
        return tuple(one.forecast_id for one in self.basis)

    def select(self, selection: Selection) -> tuple[Recommendation, ...]:
        return tuple(item for item in self.items if _passes(item, selection))


def totals(items: Sequence[Recommendation]) -> Totals:
    saved: Counter[Kind] = Counter()
    for item in items:
        saved[item.kind] += item.saving
    return Totals(len(items), saved["downsize"], saved["consolidate"])


class Recommendations:
    def __init__(
        self, database: Database, fleets: Fleets, profiles: ProfileService, compute: Compute, defaults: Defaults
    ) -> None:
        self._database, self._fleets, self._profiles = database, fleets, profiles
        self._compute, self._defaults = compute, defaults
        self._made: Recent[Hashable, Advice] = Recent(_KEPT)

    async def advice(self, question: Question, epsilon: float | None, pinned: Sequence[UUID] = ()) -> Advice:
        """For the dataset of the forecast asked for; the other metrics by their newest forecasts, or by those pinned.

        A threshold that is asked for counts for the metric of that forecast. Raises what a question of risk raises.
        """
        epsilon = self._defaults.rules.epsilon if epsilon is None else epsilon
        questions, missing = await self._questions(question, pinned)
        runs = []
        for one in questions:
            forecast = await self._fleets.forecast(one)
            runs.append(run_of(forecast, one.model).id)
        key = (tuple(runs), question.limits, epsilon, tuple(one.metric for one in missing))
        return await self._made.get(key, lambda: self._make(questions, missing, epsilon))

    async def _questions(self, question: Question, pinned: Sequence[UUID]) -> tuple[list[Question], list[Missing]]:
        """One question per metric of the dataset, the one asked first; and the metrics without a forecast."""
        if pinned:
            first = Question(pinned[0], question.metric, threshold=question.threshold)
            return [first, *(Question(forecast_id) for forecast_id in pinned[1:])], []
        forecast = await self._fleets.forecast(question)
        run_of(forecast, None)
        dataset_id = forecast.request.dataset_id
        async with self._database.connect() as connection:
            dataset = await datasets.get(connection, dataset_id)
            newest = await datasets.newest_version(connection, dataset_id) or dataset
            found = {one.metric: one.forecast_id for one in await stored.newest_of_family(connection, dataset_id)}
        assert dataset is not None, "a forecast keeps its dataset"
        assert newest is not None
        others = sorted({*dataset.contents.metrics, *newest.contents.metrics} - {forecast.request.metric})
        first = Question(forecast.id, question.metric, threshold=question.threshold)
        missing = [
            Missing(metric, f'POST /forecasts {{"dataset_id": "{newest.id}", "metric": "{metric}"}}')
            for metric in others
            if metric not in found
        ]
        return [first, *(Question(found[metric]) for metric in others if metric in found)], missing

    async def _make(self, questions: Sequence[Question], missing: Sequence[Missing], epsilon: float) -> Advice:
        fleets = [await self._fleets.of(question) for question in questions]
        async with self._database.connect() as connection:
            servers = await datasets.servers(connection, fleets[0].forecast.request.dataset_id)
        limits = [known_thresholds(fleet, question.limits) for fleet, question in zip(fleets, questions, strict=True)]
        rows = [{name: row for row, name in enumerate(fleet.matrix.server_ids)} for fleet in fleets]
        left_out: Counter[tuple[Reason, str | None]] = Counter()
        complete: list[Server] = []
        for server in servers:
            if missing:
                left_out["no_forecast", missing[0].metric] += 1
            elif why := _lacks(server, fleets, rows, limits):
                left_out[why] += 1
            else:
                complete.append(server)
        basis = tuple(
            Basis(
                fleet.metric,
                fleet.forecast.id,
                fleet.run.model,
                fleet.matrix.as_of.max(),
                fleet.contents.frequency,
                fleet.matrix.values.shape[1],
            )
            for fleet in fleets
        )
        items: list[Recommendation] = []
        if complete:
            rules = Rules(epsilon, self._defaults.rules.halvings, self._defaults.rules.underutilized)
            chosen = [np.array([its[server.server_id] for server in complete], dtype=np.intp) for its in rows]
            prospects = [
                Prospect(_only(fleet.outlook(), its), found[its], fleet.template, _highest(fleet, its))
                for fleet, its, found in zip(fleets, chosen, limits, strict=True)
            ]
            prices = [_price(server, self._defaults.price) for server in complete]
            capacity = fleets[0].quantity("capacity")[chosen[0]]
            groups = [
                (server.attributes.get("region"), bool(known), *(str(p.outlook.as_of[row]) for p in prospects))
                for row, (server, known) in enumerate(zip(complete, np.isfinite(capacity), strict=True))
            ]
            found = await self._compute.run(
                rightsizing.plan,
                prospects,
                groups,
                np.where(np.isfinite(capacity), capacity, 1.0),
                [price.monthly for price in prices],
                rules,
                seconds=SECONDS,
            )
            profiles = (await self._profiles.of(fleets[0])).of
            said = partial(_said, complete, fleets, prospects, capacity, prices, rules, found, profiles)
            hosts = set(found.host[found.host >= 0].tolist())
            for row in range(len(complete)):
                if found.halvings[row] or found.host[row] >= 0:
                    items.append(said(row))
                else:
                    left_out["host" if row in hosts else "no_room", None] += 1
        items.sort(key=lambda item: (-item.saving, item.server_id.encode()))
        return Advice(
            basis,
            epsilon,
            len(servers),
            tuple(items),
            tuple(LeftOut(reason, metric, count) for (reason, metric), count in left_out.items()),
            tuple(missing),
        )


def _lacks(
    server: Server, fleets: Sequence[Fleet], rows: Sequence[dict[str, int]], limits: Sequence[Array]
) -> tuple[Reason, str] | None:
    """Why a server cannot be judged on every metric; None where it can."""
    for fleet, its, found in zip(fleets, rows, limits, strict=True):
        row = its.get(server.server_id)
        if row is None:
            return "no_forecast" if server.counts.get(fleet.metric) else "no_values", fleet.metric
        if np.isnan(found[row]):
            return "no_threshold", fleet.metric
    return None


def _only(outlook: Outlook, rows: Rows) -> Outlook:
    return Outlook(
        outlook.values[rows],
        outlook.levels,
        outlook.as_of[rows],
        outlook.frequency,
        outlook.unit,
        outlook.lower[rows],
        outlook.upper[rows],
    )


def _highest(fleet: Fleet, rows: Rows) -> Array:
    """The highest value that each server ever had; without one nothing is low enough."""
    return np.array([fleet.servers[row].maxima.get(fleet.metric, np.inf) for row in rows.tolist()])


def _price(server: Server, default: Microdollars) -> Price:
    """The server's own, where its dataset tells one that can be used."""
    for name in PRICE_ATTRIBUTES:
        if (told := server.attributes.get(name)) is not None:
            try:
                monthly = microdollars(told)
            except ValueError:
                continue
            if monthly <= DEAREST:
                return Price(monthly, f"attribute {name} of the server")
    return Price(default, "assumed: HEADROOM_SERVER_USD_PER_MONTH")


def _said(
    servers: Sequence[Server],
    fleets: Sequence[Fleet],
    prospects: Sequence[Prospect],
    capacity: Array,
    prices: Sequence[Price],
    rules: Rules,
    found: Plan,
    profiles: dict[str, str],
    row: int,
) -> Recommendation:
    """One recommendation in full."""
    server, price, saving = servers[row], prices[row], found.saving[row]
    onto, halvings = int(found.host[row]), int(found.halvings[row])
    moved = onto >= 0
    judged, share = (onto, 1.0) if moved else (row, 0.5**halvings)
    risks = []
    for metric, (fleet, prospect) in enumerate(zip(fleets, prospects, strict=True)):
        days = prospect.outlook.horizon / prospect.outlook.frequency.per_day
        limit = prospect.thresholds[judged] * share
        risks.append(f"P({fleet.metric} > {limit:g} within {days:g} days) = {found.breach[row, metric]:.4f}")
    each = f"{' and '.join(risks)}, each at most {rules.epsilon:g}, and the history was never above"
    if moved:
        formula = (
            f"Idle: on every metric mean p50 below {rules.underutilized:g} % and highest p90 below "
            f"{rightsizing.IDLE_SHARE:g} of the threshold. {servers[onto].server_id} with all that is moved there, "
            f"everything taken to peak together: {each}. Saving: {shown(price.monthly)} a month."
        )
    else:
        size = f"1/{2**halvings}"
        formula = (
            f"At {size} of the size a threshold is {size} of today's: {each}. "
            f"Saving: {shown(price.monthly)} × (1 - {size}) = {shown(saving)} a month."
        )
    return Recommendation(
        kind="consolidate" if moved else "downsize",
        server_id=server.server_id,
        onto=servers[onto].server_id if moved else None,
        factor=0.0 if moved else share,
        capacity=float(capacity[row]) if np.isfinite(capacity[row]) else None,
        breach={fleet.metric: float(found.breach[row, metric]) for metric, fleet in enumerate(fleets)},
        epsilon=rules.epsilon,
        formula=formula,
        assumptions=_assumptions(server, fleets, bool(np.isfinite(capacity[row]))) if moved else (),
        method=found.method[row] if moved else None,
        price=price,
        saving=saving,
        profile=profiles.get(server.server_id),
        attributes=server.attributes,
    )


def _assumptions(server: Server, fleets: Sequence[Fleet], sized: bool) -> tuple[str, ...]:
    """What makes percentages of two servers comparable."""
    shares = [fleet.metric for fleet in fleets if fleet.unit is not Unit.ABSOLUTE]
    if not shares:
        return ()
    if sized:
        return (f"`capacity` is what {', '.join(shares)} is a share of",)
    where = (
        f"servers of {server.attributes['region']}" if server.attributes.get("region") else "servers without a region"
    )
    return (f"no capacity is known: {where} are taken to be of equal size in {', '.join(shares)}",)


def _passes(item: Recommendation, selection: Selection) -> bool:
    wanted = (("business_unit", selection.business_unit), ("region", selection.region))
    return (not selection.kind or item.kind in selection.kind) and all(
        not values or str(item.attributes.get(name)) in values for name, values in wanted
    )

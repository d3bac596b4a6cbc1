"""Alerts: rules kept, judged when a forecast succeeds, and what they find delivered.

    forecast succeeds ──▶ alert_evaluations ──▶ each enabled rule is judged ──▶ alert_deliveries ──▶ signed, sent
      (one transaction)     (claimed by a worker)   (one transaction: all or none)  (the outbox; at least once)

A worker that is killed between two arrows leaves what the next one goes on from. What is judged twice is written once;
what is sent twice carries the same id. It leaves out the rules' meaning (domain/alerts.py), the sending (webhooks.py).
"""

import asyncio
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np

from app.domain import alerts, risk
from app.domain.alerts import Change, NotAnswerable, Rule, condition_to_json
from app.domain.panel import Array
from app.domain.risk import Flags, Levels, Outlook, Risk
from app.errors import NotFound, Rejected
from app.failpoints import reach
from app.services.fleets import Fleet, Fleets, Limits, Question, Rows, known_thresholds
from app.services.webhooks import MAX_BODY, Outcome, Webhooks
from app.storage import alerts as stored
from app.storage import forecasts as stored_forecasts
from app.storage.alerts import Delivery, DeliveryStatus, Evaluation, Outgoing, Position
from app.storage.database import Connection, Database
from app.storage.faults import classify

log = logging.getLogger(__name__)

BACK_OFF = (5.0, 30.0, 120.0, 600.0, 3_600.0, 21_600.0)
"""Seconds, give or take a fifth, from one failed attempt to the next; after the last the delivery has failed."""

LISTED = 1_000
"""Most servers that an event names; it counts all of them."""

_SENDING = 30.0
"""Seconds that a claimed delivery is ours; longer than any attempt takes."""

_JUDGING = 60.0
"""Seconds, times the attempt, that a forecast is ours to judge."""

_JUDGED_AT_MOST = 5
"""Faults of our own on one forecast before it is left unjudged."""

_PAUSE = 10.0


@dataclass(frozen=True)
class _Finding:
    """What a rule found in a forecast: what changed and the event that says so, or what stood in the way."""

    rule: Rule
    change: Change | None = None
    event: Mapping[str, Any] | None = None
    problem: str | None = None


class Alerts:
    def __init__(self, database: Database, fleets: Fleets, webhooks: Webhooks) -> None:
        self._database = database
        self._fleets = fleets
        self._webhooks = webhooks

    async def add(self, rule: Rule) -> Rule:
        """The rule as it is kept. Raises WebhookAddress."""
        await self._webhooks.check(rule.url)
        async with self._database.begin() as connection:
            return replace(rule, created_at=await stored.insert_rule(connection, rule))

    async def get(self, rule_id: UUID) -> Rule:
        async with self._database.connect() as connection:
            return _there(await stored.rule(connection, rule_id), rule_id)

    async def rules(self, after: Position | None, limit: int) -> list[Rule]:
        async with self._database.connect() as connection:
            return await stored.rules(connection, after, limit)

    async def switch(self, rule_id: UUID, enabled: bool) -> Rule:
        async with self._database.begin() as connection:
            return _there(await stored.switch(connection, rule_id, enabled), rule_id)

    async def delete(self, rule_id: UUID) -> None:
        async with self._database.begin() as connection:
            if not await stored.delete_rule(connection, rule_id):
                _there(None, rule_id)

    async def test(self, rule_id: UUID) -> Delivery:
        """Send an event that says it is a test, the way of all others."""
        async with self._database.begin() as connection:
            rule = _there(await stored.rule(connection, rule_id), rule_id)
            delivery_id = uuid4()
            event = {"type": "risk.test", "timestamp": _written(datetime.now(UTC)), "data": {"rule": _shown(rule)}}
            await stored.put(connection, delivery_id, rule_id, None, event)
            delivery = await stored.delivery(connection, delivery_id)
        assert delivery is not None
        return delivery

    async def deliveries(
        self, rule_id: UUID | None, status: DeliveryStatus | None, after: Position | None, limit: int
    ) -> list[Delivery]:
        async with self._database.connect() as connection:
            return await stored.deliveries(connection, rule_id, status, after, limit)

    async def forget(self) -> bool:
        """Deliveries that ended long ago; none is left."""
        async with self._database.begin() as connection:
            await stored.forget_old_deliveries(connection)
        return False

    async def evaluate(self) -> bool:
        """Judge one forecast that has succeeded; whether there was one."""
        async with self._database.begin() as connection:
            evaluation = await stored.claim_evaluation(connection, _JUDGING)
        if evaluation is None:
            return False
        reach("alerts.claimed")
        try:
            await self._evaluate(evaluation)
        except Exception as error:
            if (passing := classify(error)) is not None:
                log.warning("the alerts of forecast %s wait: %s", evaluation.forecast_id, passing.detail)
            else:
                log.exception("judging the alerts of forecast %s failed", evaluation.forecast_id)
            async with self._database.begin() as connection:
                if passing is None and evaluation.attempts >= _JUDGED_AT_MOST:
                    await stored.evaluated(connection, evaluation)
                else:
                    await stored.put_off(connection, evaluation, _PAUSE * evaluation.attempts)
        return True

    async def _evaluate(self, evaluation: Evaluation) -> None:
        async with self._database.connect() as connection:
            forecast = await stored_forecasts.get(connection, evaluation.forecast_id)
            if forecast is None:
                return  # deleted, and its evaluation with it
            metric = forecast.request.metric
            rules = await stored.enabled_rules(connection, metric)
            before = {
                rule.id: await stored.servers_before(connection, rule.id, evaluation.family, metric) for rule in rules
            }
        ended = forecast.finished_at or datetime.now(UTC)
        findings = [await self._found(rule, evaluation.forecast_id, before[rule.id], ended) for rule in rules]
        async with self._database.begin() as connection:
            if not await stored.evaluated(connection, evaluation):
                return
            for finding in findings:
                await _keep(connection, evaluation, metric, finding)
            reach("alerts.before_commit")

    async def _found(self, rule: Rule, forecast_id: UUID, before: Mapping[str, datetime], at: datetime) -> _Finding:
        try:
            fleet = await self._fleets.of(Question(forecast_id, None, rule.model))
            return await asyncio.to_thread(_judged, rule, fleet, self._fleets.levels, before, at)
        except Rejected as error:
            return _Finding(rule, problem=error.detail)
        except NotAnswerable as error:
            return _Finding(rule, problem=f"Forecast {forecast_id} cannot be judged: {error}.")

    async def deliver(self) -> bool:
        """Make one attempt at a delivery that is due; whether there was one."""
        async with self._database.begin() as connection:
            outgoing = await stored.claim_delivery(connection, _SENDING)
        if outgoing is None:
            return False
        reach("alerts.before_send")
        if outgoing.attempts > len(BACK_OFF) + 1:
            outcome = Outcome(None, "the workers died that sent it")
        else:
            outcome = await self._sent(outgoing)
        reach("alerts.sent")
        async with self._database.begin() as connection:
            await _note(connection, outgoing, outcome)
        return True

    async def _sent(self, outgoing: Outgoing) -> Outcome:
        rule = outgoing.rule
        try:
            return await self._webhooks.send(rule.url, rule.secret, str(outgoing.id), outgoing.body)
        except Exception as error:
            # No traceback: it would show what is sent, and to where.
            log.error("delivery %s failed by a fault of ours: %s", outgoing.id, type(error).__name__)
            return Outcome(None, f"an internal fault ({type(error).__name__})")


async def _keep(connection: Connection, evaluation: Evaluation, metric: str, finding: _Finding) -> None:
    rule = finding.rule
    if await stored.rule(connection, rule.id) is None:
        return  # deleted meanwhile
    await stored.note_problem(connection, rule.id, finding.problem)
    if finding.change is not None:
        await stored.keep_servers(
            connection, rule.id, evaluation.family, metric, evaluation.forecast_id, finding.change.after
        )
    if finding.event is not None:
        await stored.put(connection, uuid4(), rule.id, evaluation.forecast_id, finding.event)


async def _note(connection: Connection, outgoing: Outgoing, outcome: Outcome) -> None:
    attempt, rule = outgoing.attempts, outgoing.rule
    if outcome.is_delivered:
        await stored.attempted(connection, outgoing, "delivered", outcome.status, None)
    elif outcome.is_gone:
        await stored.attempted(connection, outgoing, "failed", outcome.status, outcome.problem)
        await stored.switch(connection, rule.id, False, "its receiver answered 410: it wants no more")
        log.warning("alert rule %s is switched off: its receiver answered 410", rule.id)
    elif attempt > len(BACK_OFF):
        await stored.attempted(connection, outgoing, "failed", outcome.status, outcome.problem)
        log.warning("delivery %s of alert rule %s has failed: %s", outgoing.id, rule.id, outcome.problem)
    else:
        again = BACK_OFF[attempt - 1] * random.uniform(0.8, 1.2)
        await stored.attempted(connection, outgoing, "pending", outcome.status, outcome.problem, again)


def _there(rule: Rule | None, rule_id: UUID) -> Rule:
    if rule is None:
        raise NotFound(f"There is no alert rule {rule_id}.")
    return rule


def _judged(rule: Rule, fleet: Fleet, levels: Levels, before: Mapping[str, datetime], at: datetime) -> _Finding:
    """Servers without a threshold are not judged; the rule says so."""
    names = fleet.matrix.server_ids
    limits = known_thresholds(fleet, Limits(rule.threshold))
    known = ~np.isnan(limits)
    chosen = np.array([rule.where.passes(server.server_id, server.attributes) for server in fleet.servers])
    rows = np.flatnonzero(known & chosen)
    outlook, thresholds = _rows(fleet.outlook(), rows), limits[rows]
    found = risk.assess(outlook, thresholds, fleet.template, levels)
    met = np.flatnonzero(alerts.meets(rule.condition, found, outlook, thresholds))
    # As GET /risk/servers sorts them.
    runway = np.nan_to_num(found.runway_conservative[met], nan=np.inf)
    met = met[np.lexsort((-found.breach_probability[met], runway))]
    row_of = {names[rows[row]]: row for row in met.tolist()}
    asked = [name for name, is_known in zip(names, known.tolist(), strict=True) if is_known]
    change = alerts.changed(before, asked, list(row_of), at)
    event = None
    if change.entered or change.left or (change.still and not rule.only_changes):
        event = _event(rule, fleet, found, thresholds, row_of, change, at)
    return _Finding(rule, change, event, _unjudged(fleet, chosen & ~known))


def _unjudged(fleet: Fleet, without: Flags) -> str | None:
    rows = np.flatnonzero(without).tolist()
    if not rows:
        return None
    return (
        f"In forecast {fleet.forecast.id} {len(rows)} servers had no threshold and were not judged, the first is "
        f"{fleet.servers[rows[0]].server_id!r}. Give a rule its own `threshold`, or upload such a column."
    )


def _rows(outlook: Outlook, rows: Rows) -> Outlook:
    return replace(
        outlook,
        values=outlook.values[rows],
        as_of=outlook.as_of[rows],
        lower=outlook.lower[rows],
        upper=outlook.upper[rows],
    )


def _event(
    rule: Rule,
    fleet: Fleet,
    found: Risk,
    thresholds: Array,
    row_of: Mapping[str, int],
    change: Change,
    at: datetime,
) -> dict[str, Any]:
    """As many servers as LISTED and the size of a delivery allow; those that entered first."""

    def server(name: str, since: datetime) -> dict[str, Any]:
        row = row_of[name]
        return {
            "server_id": name,
            "since": _written(since),
            "level": str(found.level[row]),
            "threshold": float(thresholds[row]),
            "max_p90": round(float(found.max_p90[row]), 4),
            "breach_probability": round(float(found.breach_probability[row]), 4),
            "runway_days": {
                "conservative": _days(found.runway_conservative[row]),
                "expected": _days(found.runway_expected[row]),
            },
        }

    entered = [server(name, since) for name, since in list(change.entered.items())[:LISTED]]
    still = [server(name, since) for name, since in list(change.still.items())[:LISTED]]
    left = [{"server_id": name, "since": _written(since)} for name, since in list(change.left.items())[:LISTED]]
    counts = {"entered": len(change.entered), "still": len(change.still), "left": len(change.left)}
    frequency = fleet.contents.frequency
    data = {
        "rule": _shown(rule),
        "forecast_id": str(fleet.forecast.id),
        "dataset_id": str(fleet.forecast.request.dataset_id),
        "metric": fleet.forecast.request.metric,
        "model": fleet.run.model,
        "as_of": frequency.show(fleet.matrix.as_of.max()),
        "counts": counts,
    }
    listed = LISTED
    while True:
        lists = {
            "entered": entered[:listed],
            "left": left[: max(listed - len(entered), 0)],
            "still": still[: max(listed - len(entered) - len(left), 0)],
        }
        named = sum(map(len, lists.values()))
        truncated = named < sum(counts.values())
        event = {"type": "risk.alert", "timestamp": _written(at), "data": {**data, **lists, "truncated": truncated}}
        if len(json.dumps(event, ensure_ascii=False).encode()) <= MAX_BODY or not named:
            return event
        listed = named // 2


def _shown(rule: Rule) -> dict[str, Any]:
    return {"id": str(rule.id), "name": rule.name, "condition": condition_to_json(rule.condition)}


def _days(runway: float) -> float | None:
    return None if np.isnan(runway) else float(runway)


def _written(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").removesuffix("+00:00") + "Z"

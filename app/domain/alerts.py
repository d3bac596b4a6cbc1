"""Alert rules: which servers of a fleet a rule is about, and what changed since the forecast before.

Pure functions over the risk answer of a whole fleet. It leaves out where rules are kept, when they are judged and how
an event is written (services/alerts.py), and how it is delivered (services/webhooks.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, assert_never
from uuid import UUID

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from app.domain import quantiles
from app.domain.dataset import as_text, spellings
from app.domain.panel import Array
from app.domain.risk import LEVELS, Flags, Outlook, Risk

Alarm = Literal["very_high", "high"]
Which = Literal["conservative", "expected"]

ATTRIBUTES = ("business_unit", "region", "criticality")
"""What a rule can choose its servers by, beside their names."""


class NotAnswerable(Exception):
    """The forecast does not hold what the rule asks about; the message says what is missing."""


@dataclass(frozen=True)
class LevelAtLeast:
    level: Alarm


@dataclass(frozen=True)
class RunwayUnder:
    """The runway is known and shorter than so many days; one that the horizon does not reach is not."""

    days: float
    which: Which


@dataclass(frozen=True)
class ProbabilityOver:
    probability: float


@dataclass(frozen=True)
class DaysOver:
    """Among some `of` days in a row, on at least `k` this quantile is over the threshold."""

    k: int
    of: int
    quantile: float


Condition = LevelAtLeast | RunwayUnder | ProbabilityOver | DaysOver


@dataclass(frozen=True)
class Where:
    """Servers that have one of the values of each; an empty tuple lets all pass."""

    business_unit: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    criticality: tuple[str, ...] = ()
    server_id: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, body: Mapping[str, Sequence[str]]) -> "Where":
        return cls(**{name: tuple(values) for name, values in body.items()})

    def to_json(self) -> dict[str, list[str]]:
        """Without what lets all pass."""
        return {name: list(values) for name, values in vars(self).items() if values}

    def passes(self, server_id: str, attributes: Mapping[str, str | float]) -> bool:
        if self.server_id and server_id not in self.server_id:
            return False
        wanted = ((attributes.get(name), getattr(self, name)) for name in ATTRIBUTES)
        return all(not asked or (has is not None and _is_among(has, asked)) for has, asked in wanted)


def _is_among(has: str | float, asked: Sequence[str]) -> bool:
    return any(text in asked for text in spellings(as_text(has)))


@dataclass(frozen=True)
class Rule:
    """Servers that meet `condition`, of forecasts of `metric` (None: of any) by `model` (None: the best of each).

    `threshold` None is each server's own. The secret is what deliveries are signed with; nothing prints it.
    """

    id: UUID
    name: str
    metric: str | None
    where: Where
    threshold: float | None
    model: str | None
    condition: Condition
    only_changes: bool
    url: str
    secret: str = field(repr=False)
    enabled: bool
    created_at: datetime
    problem: str | None = None
    """Why it was switched off, or what it could not be judged on in the last forecast."""


@dataclass(frozen=True)
class Change:
    """Servers in order of urgency but for `left`; each with the time since which it has met the rule."""

    entered: Mapping[str, datetime]
    still: Mapping[str, datetime]
    left: Mapping[str, datetime]
    after: Mapping[str, datetime]
    """What the next forecast is compared with."""


def condition_to_json(condition: Condition) -> dict[str, Any]:
    """As people write it: in requests, in answers and in events."""
    match condition:
        case LevelAtLeast(level):
            return {"level_at_least": level}
        case RunwayUnder(days, which):
            return {"runway_under_days": days, "which": which}
        case ProbabilityOver(probability):
            return {"breach_probability_over": probability}
        case DaysOver():
            return {"days_over": asdict(condition)}
        case _:
            assert_never(condition)


def condition_from_json(body: Mapping[str, Any]) -> Condition:
    match body:
        case {"level_at_least": level}:
            return LevelAtLeast(level)
        case {"runway_under_days": days, "which": which}:
            return RunwayUnder(days, which)
        case {"breach_probability_over": probability}:
            return ProbabilityOver(probability)
        case {"days_over": stretch}:
            return DaysOver(**stretch)
        case _:
            raise ValueError(f"no condition: {body}")


def meets(condition: Condition, risk: Risk, outlook: Outlook, thresholds: Array) -> Flags:
    """Which servers meet the condition, (servers,). Raises NotAnswerable for a quantile that was not forecast."""
    match condition:
        case LevelAtLeast(level):
            return np.isin(risk.level, LEVELS[: LEVELS.index(level) + 1])
        case RunwayUnder(days, which):
            runway = risk.runway_conservative if which == "conservative" else risk.runway_expected
            return np.less(runway, days, out=np.zeros(len(runway), dtype=np.bool_), where=~np.isnan(runway))
        case ProbabilityOver(probability):
            return np.asarray(risk.breach_probability > probability)
        case DaysOver(k, of, quantile):
            return _days_over(k, of, quantile, outlook, thresholds)
        case _:
            assert_never(condition)


def _days_over(k: int, of: int, quantile: float, outlook: Outlook, thresholds: Array) -> Flags:
    """A day of hourly data is 24 steps from the forecast's first on, and over when one of them is."""
    if quantile not in outlook.levels:
        has = ", ".join(map(quantiles.name, outlook.levels))
        raise NotAnswerable(f"the forecast has no {quantiles.name(quantile)}; it has {has}")
    values = outlook.values[..., outlook.levels.index(quantile)]
    over = quantiles.single(values) > quantiles.single(thresholds)[:, None]
    per_day = outlook.frequency.per_day
    whole = np.pad(over, ((0, 0), (0, -outlook.horizon % per_day)))
    days = whole.reshape(len(over), whole.shape[1] // per_day, per_day).any(axis=2)
    ends = np.pad(days, ((0, 0), (0, of - 1)))  # a stretch may reach beyond the horizon, where nothing is over
    return np.asarray((sliding_window_view(ends, of, axis=1).sum(axis=2) >= k).any(axis=1))


def changed(before: Mapping[str, datetime], asked: Collection[str], found: Sequence[str], at: datetime) -> Change:
    """`found` are the servers that meet the rule now, out of those `asked` about.

    A server that the forecast does not hold is not asked about: nothing is known of it, so it has not left.
    """
    entered = {server: at for server in found if server not in before}
    still = {server: before[server] for server in found if server in before}
    known = set(asked)
    left = {s: since for s, since in before.items() if s in known and s not in still}
    unknown = {s: since for s, since in before.items() if s not in known}
    return Change(entered, still, left, {**unknown, **still, **entered})

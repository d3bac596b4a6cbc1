"""How true risk answers were: each of a replay's answers, scored on what came after it.

A case is one server, one origin and one threshold that the server was below for 30 days. It holds the scores and what
a planner could have used instead: the p90 rule, the same rule with the frequencies that its yes and no had at earlier
origins, a straight line, seasonal naive. It leaves out how answers come about (services/replay.py, risk.py).
Everywhere a breach is value > threshold.
"""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Array, Panel, Times
from app.domain.quantiles import normal_scores
from app.domain.risk import Flags, Names

FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Edges of the bins of the reliability tables. Tenths leave few cases a bin, and those of one origin go together."""

ALARM = 0.5
"""A server counts as flagged from this breach probability on."""

QUIET_DAYS = 30
"""A case is a server that was below the threshold for so long."""


@dataclass(frozen=True, eq=False)
class Cases:
    """One row per case, all (cases,). Times until something happens are days after the origin, NaN where it does not.

    `told`: the breach probability; `flagged`: the p90 rule; `line`, `naive`: breach probabilities of a straight line
    and of seasonal naive; `p10`, `p50`: until the first breach was told with that probability; `breach`: until it came.
    """

    origin: Times
    threshold: Array
    server: Names
    told: Array
    flagged: Flags
    line: Array
    naive: Array
    p10: Array
    p50: Array
    breach: Array

    def __len__(self) -> int:
        return len(self.told)

    @property
    def breached(self) -> Flags:
        return np.isfinite(self.breach)


@dataclass(frozen=True)
class Bin:
    """Of the `cases` told a probability from `start` up to `stop`: the mean told, and the share that breached."""

    start: float
    stop: float
    cases: int
    told: float
    happened: float


@dataclass(frozen=True)
class Brier:
    """Mean squared error of a probability: 0 is perfect, a yes or no that is wrong counts 1."""

    headroom: float
    p90_rule: float
    p90_rule_recalibrated: float
    straight_line: float
    seasonal_naive: float


@dataclass(frozen=True)
class Alarms:
    """`lead_days`: median from the origin to the breach, of true alarms; `missed`: share of breaches without one."""

    alarms: int
    true: int
    false_per_100: float
    missed: float | None
    lead_days: float | None


@dataclass(frozen=True)
class Passage:
    """Of the `told` a date by which the breach has happened with that probability: the share it had happened to."""

    told: int
    happened: float | None


@dataclass(frozen=True)
class Downsized:
    """Recommended downsizes that would have breached at the new size; `most`: ε and two standard errors of so many."""

    epsilon: float
    recommended: int
    breached: int

    @property
    def share(self) -> float | None:
        return self.breached / self.recommended if self.recommended else None

    @property
    def most(self) -> float:
        return self.epsilon + 2 * sqrt(self.epsilon * (1 - self.epsilon) / max(self.recommended, 1))


@dataclass(frozen=True)
class Report:
    cases: int
    base_rate: float
    reliability: tuple[Bin, ...]
    reliability_tenths: tuple[Bin, ...]
    brier: Brier
    alarms: dict[str, Alarms]
    first_passage: dict[str, Passage]
    base_rates: dict[str, float] = field(default_factory=dict)
    """Share of cases that breached, by threshold."""


def report(cases: Cases) -> Report:
    """Raises ValueError when there is no case."""
    if not len(cases):
        raise ValueError("no server was below a threshold at any origin")
    happened = cases.breached.astype(np.float64)
    forecasts = {
        "headroom": cases.told,
        "p90_rule": cases.flagged.astype(np.float64),
        "p90_rule_recalibrated": recalibrated(cases),
        "straight_line": cases.line,
        "seasonal_naive": cases.naive,
    }
    return Report(
        cases=len(cases),
        base_rate=float(happened.mean()),
        reliability=reliability(cases.told, cases.breached),
        reliability_tenths=reliability(cases.told, cases.breached, TENTHS),
        brier=Brier(**{name: float(((told - happened) ** 2).mean()) for name, told in forecasts.items()}),
        alarms={
            f"P(breach) >= {ALARM:g}": _alarms(cases, cases.told >= ALARM),
            "p90 rule": _alarms(cases, cases.flagged),
        },
        first_passage={"p10": _passage(cases.p10, cases), "p50": _passage(cases.p50, cases)},
        base_rates={
            f"{threshold:g}": float(happened[cases.threshold == threshold].mean())
            for threshold in np.unique(cases.threshold)
        },
    )


def reliability(told: Array, happened: Flags, edges: tuple[float, ...] = FIFTHS) -> tuple[Bin, ...]:
    """Bins that hold a case; a probability on an edge belongs to the bin above it."""
    place = np.clip(np.searchsorted(edges, told, side="right") - 1, 0, len(edges) - 2)
    return tuple(
        Bin(
            edges[k],
            edges[k + 1],
            int((place == k).sum()),
            float(told[place == k].mean()),
            float(happened[place == k].mean()),
        )
        for k in np.unique(place).tolist()
    )


def recalibrated(cases: Cases) -> Array:
    """The p90 rule with probabilities: how often servers that it flagged, or did not, breached at all earlier origins.

    Both frequencies have a half case of either kind added; at the first origin a yes is 1 and a no 0. That earlier
    origins' outcomes may not have been known yet is in its favour.
    """
    found = cases.flagged.astype(np.float64)
    for origin in np.unique(cases.origin)[1:]:
        earlier, now = cases.origin < origin, cases.origin == origin
        for flag in (False, True):
            alike = earlier & (cases.flagged == flag)
            found[now & (cases.flagged == flag)] = (cases.breached[alike].sum() + 0.5) / (alike.sum() + 1)
    return found


def _alarms(cases: Cases, raised: Flags) -> Alarms:
    true = raised & cases.breached
    breaches = int(cases.breached.sum())
    return Alarms(
        alarms=int(raised.sum()),
        true=int(true.sum()),
        false_per_100=float((raised & ~cases.breached).mean() * 100),
        missed=float((cases.breached & ~raised).sum() / breaches) if breaches else None,
        lead_days=float(np.median(cases.breach[true])) if true.any() else None,
    )


def _passage(day: Array, cases: Cases) -> Passage:
    told = np.isfinite(day)
    return Passage(int(told.sum()), float((cases.breach[told] <= day[told]).mean()) if told.any() else None)


def first_over(values: Array, threshold: Array | float) -> Array:
    """The first step, from 1, of (servers, steps) over the threshold: (servers,), NaN where none is."""
    over = values > np.broadcast_to(threshold, len(values))[:, None]
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1.0, np.nan)


def straight_line(past: Panel, horizon: int, levels: tuple[float, ...]) -> Array:
    """Least squares over each server's history, drawn on, with normal residuals: (servers, horizon, levels)."""
    at = np.arange(past.steps, dtype=np.float64)
    known = np.isfinite(past.values)
    count = known.sum(axis=1)
    values = np.where(known, past.values, 0.0)
    mean_at, mean = (known * at).sum(axis=1) / count, values.sum(axis=1) / count
    x, y = np.where(known, at - mean_at[:, None], 0.0), np.where(known, values - mean[:, None], 0.0)
    slope = (x * y).sum(axis=1) / np.maximum((x**2).sum(axis=1), 1e-12)
    spread = np.sqrt(((y - slope[:, None] * x) ** 2).sum(axis=1) / np.maximum(count - 2, 1))
    line = mean[:, None] + slope[:, None] * (past.future_columns(horizon) - mean_at[:, None])
    return np.asarray(line[..., None] + spread[:, None, None] * normal_scores(levels))


def joined(parts: list[Cases]) -> Cases:
    """Cases of several origins and thresholds, one after the other."""

    def column(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    return Cases(**{name: column(name) for name in Cases.__dataclass_fields__})  # type: ignore[arg-type]

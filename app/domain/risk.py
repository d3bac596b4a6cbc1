"""The risk answer: out of quantiles, thresholds and joint paths, what a capacity planner asks of each server.

It holds the formulas of docs/risk.md as pure functions over whole fleets, and the peaks of single forecasts.
It leaves out where quantiles, thresholds and attributes come from (services/risk.py), the marginals
(quantiles.py) and the joint law of the steps (paths.py). Everywhere a breach is value > threshold.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain import calendar, quantiles
from app.domain.panel import Array, Frequency, Times
from app.domain.paths import Template

Flags = NDArray[np.bool_]
Names = NDArray[np.str_]

Sort = Literal["runway", "breach_probability", "max_p90", "server_id"]

LEVELS = ("very_high", "high", "normal", "underutilized")

FORMULAS = 1
"""Raise it when a formula changes: a stored answer of another number is no longer shown."""

DEFAULT_THRESHOLD = {"percent": 90.0, "ratio": 0.9}
"""Thresholds of units that have a natural one."""

SMALLEST_THRESHOLD, LARGEST_THRESHOLD = 1e-30, 1e30
"""What single precision can hold, with room for a share of it."""

PEAK_UPLIFT_PCT = 5.0
"""A window stands out when its median is at least this much above its surroundings."""

SURROUNDINGS_DAYS = 28
"""How far around a day its surroundings reach."""

_ROUNDING = 1e-9
"""A probability of exactly 10 % counts as reached, however 1 - 0.9 is rounded."""

_CELLS = 1_000_000
"""Servers are taken in blocks of about this many (server, step) cells, to bound memory."""


@dataclass(frozen=True)
class Levels:
    """The figures behind `level`, in percent: of a percent metric itself, else of the server's threshold."""

    very_high: float = 90.0
    high: float = 80.0
    underutilized: float = 40.0


@dataclass(frozen=True, eq=False)
class Outlook:
    """Forecasts to be judged: `values` (servers, horizon, levels), ascending; `as_of`, `lower`, `upper` (servers,).

    Step k, from 1, of server i is at `as_of[i]` plus k steps. `levels` ascend and contain 0.1, 0.5 and 0.9.
    """

    values: NDArray[np.floating[Any]]
    levels: tuple[float, ...]
    as_of: Times
    frequency: Frequency
    unit: str
    lower: Array
    upper: Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def horizon(self) -> int:
        return int(self.values.shape[1])

    def at(self, rows: slice | NDArray[np.intp]) -> "Outlook":
        """Some of its servers."""
        return replace(
            self,
            values=self.values[rows],
            as_of=self.as_of[rows],
            lower=self.lower[rows],
            upper=self.upper[rows],
        )


@dataclass(frozen=True, eq=False)
class Risk:
    """One value per server, (servers,); NaN and NaT where the horizon ends before it happens (censored).

    `severity` is the mean excess over the threshold of a step that breaches, E Σ(Y - threshold)⁺ / Σ P(breach), in
    the metric's unit; NaN where no breach is to be expected.
    """

    level: Names
    risk_high: Flags
    max_p90: Array
    mean_p50: Array
    breach_probability: Array
    expected_breach_days: Array
    runway_conservative: Array
    runway_expected: Array
    first_breach_p10: Times
    first_breach_p50: Times
    headroom_pct: Array
    severity: Array

    def at(self, rows: NDArray[np.intp]) -> "Risk":
        """Some of its servers."""
        return Risk(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Peak(NamedTuple):
    """Days on which a server's forecast stands out, both ends included, and what the calendar says about them."""

    start: np.datetime64
    end: np.datetime64
    cause: str
    uplift_pct: float


def can_be_threshold(value: float) -> bool:
    """Whether it can, of a metric of any unit: above 0, since room and levels are told as shares of it."""
    return SMALLEST_THRESHOLD <= value <= LARGEST_THRESHOLD


def default_threshold(unit: str) -> float | None:
    """None for a unit that has no natural one."""
    return DEFAULT_THRESHOLD.get(unit)


def assess(outlook: Outlook, thresholds: Array, template: Template, rules: Levels) -> Risk:
    """Every figure of the risk answer but the peaks. `thresholds` is (servers,), finite.

    The template's horizon is at least the outlook's.
    """
    block = max(1, _CELLS // max(outlook.horizon, 1))
    parts = [
        _assess(outlook.at(slice(start, start + block)), thresholds[start : start + block], template, rules)
        for start in range(0, max(len(outlook), 1), block)
    ]
    return Risk(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Risk)})


def order(found: Risk, sort: Sort) -> NDArray[np.intp]:
    """Its servers, the most urgent first; ties stay as the servers are: by their ids."""
    match sort:
        case "runway":
            return np.lexsort((-found.breach_probability, np.nan_to_num(found.runway_conservative, nan=np.inf)))
        case "breach_probability":
            return np.argsort(-found.breach_probability, kind="stable")
        case "max_p90":
            return np.argsort(-found.max_p90, kind="stable")
        case "server_id":
            return np.arange(len(found.level))


def judged_by(levels: Levels, unit: str) -> dict[str, float | None]:
    """All that an answer follows from beside the forecast and the servers' attributes, to tell an outdated one."""
    return {"formulas": FORMULAS, "default_threshold": default_threshold(unit), **asdict(levels)}


def percent(values: Array, thresholds: Array, unit: str) -> Array:
    """Values on a percent scale: as they are, times 100 for a ratio, else as a share of the threshold."""
    match unit:
        case "percent":
            return values
        case "ratio":
            return values * 100.0
        case _:
            return np.asarray(values / thresholds * 100.0)


def runway_steps(outlook: Outlook, thresholds: Array, level: float) -> Array:
    """The first step, from 1, whose quantile at `level` is over the threshold, (servers,); NaN when none is."""
    column = outlook.levels.index(level)
    return _first(quantiles.single(outlook.values[..., column]) > quantiles.single(thresholds)[:, None])


def order_by(as_of: Times, runway_days: Array, lead_time_days: Array) -> Times:
    """The UTC day, datetime64[D], on which room must be ordered to be there when the runway ends; NaT without one."""
    days = np.isfinite(runway_days)
    seconds = (np.where(days, runway_days, 0.0) - lead_time_days) * 86_400
    at = as_of.astype("datetime64[s]") + np.floor(seconds).astype("timedelta64[s]")
    return np.where(days, at.astype("datetime64[D]"), np.datetime64("NaT", "D"))


def peaks(p50: Array, as_of: np.datetime64, frequency: Frequency, country: str) -> list[tuple[Peak, ...]]:
    """Where medians (servers, horizon) of one `as_of` stand out over their surroundings, and why, in order of time.

    Hourly medians are averaged per whole UTC day. The surroundings of a day are the ordinary days, no holiday or end
    of quarter, at most `SURROUNDINGS_DAYS` away, of the same weekday where there are any; their median counts. A
    window is a run of days with one cause; its uplift is its mean over the mean of its surroundings. The weekly
    rhythm is reported once: the days of the week whose median stands out over the mean of the seven, in the whole
    week in which they are highest.
    """
    times = as_of.astype("datetime64[s]") + np.arange(1, p50.shape[1] + 1) * frequency.step
    days, first, length = np.unique(times.astype("datetime64[D]"), return_index=True, return_counts=True)
    whole = length == frequency.per_day
    if not whole.any():
        return [()] * len(p50)
    days, daily = days[whole], (np.add.reduceat(p50, first, axis=1) / length)[:, whole]
    causes = calendar.cause(days, country)
    weekday = calendar.weekday(days)
    ordinary = ~np.isin(causes, ("end_of_quarter", "holiday"))
    found: list[list[Peak]] = [[] for _ in p50]
    for run in _runs(np.where(ordinary, "", causes)):
        around = _surroundings(daily, run, weekday, ordinary)
        uplift = _uplift(daily[:, run].mean(axis=1), around)
        for server in np.flatnonzero(uplift >= PEAK_UPLIFT_PCT).tolist():
            found[server].append(Peak(days[run][0], days[run][-1], str(causes[run][0]), float(uplift[server])))
    if len(np.unique(weekday[ordinary])) == 7:
        for server, peak in _weekly(daily, days, weekday, ordinary):
            found[server].append(peak)
    return [tuple(sorted(peaks, key=attrgetter("start"))) for peaks in found]


def _assess(outlook: Outlook, thresholds: Array, template: Template, rules: Levels) -> Risk:
    values, thresholds = quantiles.single(outlook.values), quantiles.single(thresholds)
    limit = np.broadcast_to(thresholds[:, None], values.shape[:2])
    lower, upper = quantiles.single(outlook.lower[:, None]), quantiles.single(outlook.upper[:, None])
    p50, p90 = (values[..., outlook.levels.index(level)] for level in (0.5, 0.9))
    conservative, expected = (runway_steps(outlook, thresholds, level) for level in (0.9, 0.5))
    below = quantiles.cdf(values, outlook.levels, limit, lower, upper)
    breached_by = template.breached_by(below)
    per_day = outlook.frequency.per_day
    max_p90, mean_p50 = p90.max(axis=1), p50.mean(axis=1)
    headroom = np.maximum(percent(thresholds, thresholds, outlook.unit) - percent(max_p90, thresholds, outlook.unit), 0)
    return Risk(
        level=_level(percent(max_p90, thresholds, outlook.unit), percent(mean_p50, thresholds, outlook.unit), rules),
        risk_high=np.isfinite(conservative),
        max_p90=max_p90,
        mean_p50=mean_p50,
        breach_probability=breached_by[:, -1],
        expected_breach_days=(1.0 - below).sum(axis=1) / per_day,
        runway_conservative=conservative / per_day,
        runway_expected=expected / per_day,
        first_breach_p10=_dates(_first(breached_by >= 0.1 - _ROUNDING), outlook),
        first_breach_p50=_dates(_first(breached_by >= 0.5 - _ROUNDING), outlook),
        headroom_pct=headroom,
        severity=_severity(values, outlook.levels, limit, lower, upper, 1.0 - below),
    )


def _first(happens: Flags) -> Array:
    """The first step, from 1, at which it happens; NaN when it does not."""
    return np.where(happens.any(axis=1), happens.argmax(axis=1) + 1.0, np.nan)


def _dates(steps: Array, outlook: Outlook) -> Times:
    known = np.isfinite(steps)
    at = outlook.as_of.astype("datetime64[s]") + np.where(known, steps, 0).astype(np.int64) * outlook.frequency.step
    return np.where(known, at, np.datetime64("NaT", "s"))


def _level(max_p90: Array, mean_p50: Array, rules: Levels) -> Names:
    highest, usual = quantiles.single(max_p90), quantiles.single(mean_p50)
    very_high, high, underutilized = quantiles.single(np.array([rules.very_high, rules.high, rules.underutilized]))
    return np.select(
        [highest > very_high, highest > high, usual < underutilized],
        [np.array("very_high"), np.array("high"), np.array("underutilized")],
        default=np.array("normal"),
    )


def _severity(values: Array, levels: Sequence[float], limit: Array, lower: Array, upper: Array, breach: Array) -> Array:
    """Only cells that may breach at all are worth their integral."""
    cells = breach > 1e-9
    excess = np.zeros(breach.shape)
    bounds = (np.broadcast_to(bound, breach.shape)[cells] for bound in (lower, upper))
    excess[cells] = quantiles.mean_excess(values[cells], levels, limit[cells], *bounds)
    expected = np.where(cells, breach, 0.0).sum(axis=1)
    return np.where(expected > 0, excess.sum(axis=1) / np.where(expected > 0, expected, 1.0), np.nan)


def _runs(labels: Names | Flags) -> list[slice]:
    """Stretches of one and the same label, where that is not empty or false."""
    edges = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist(), len(labels)]
    return [slice(start, stop) for start, stop in pairwise(edges) if labels[start]]


def _surroundings(daily: Array, run: slice, weekday: NDArray[np.int64], ordinary: Flags) -> Array:
    """Mean over the days of a run of the median of their surroundings: (servers,), NaN where there are none."""
    position = np.arange(daily.shape[1])
    levels = []
    for day in position[run]:
        near = ordinary & (np.abs(position - day) <= SURROUNDINGS_DAYS)
        alike = near & (weekday == weekday[day])
        chosen = alike if alike.any() else near
        levels.append(np.median(daily[:, chosen], axis=1) if chosen.any() else np.full(len(daily), np.nan))
    return np.asarray(np.mean(levels, axis=0))


def _weekly(daily: Array, days: Times, weekday: NDArray[np.int64], ordinary: Flags) -> list[tuple[int, Peak]]:
    profile = np.stack([np.median(daily[:, ordinary & (weekday == day)], axis=1) for day in range(7)], axis=1)
    uplift = _uplift(profile, profile.mean(axis=1, keepdims=True))
    hot = uplift >= PEAK_UPLIFT_PCT
    found: list[tuple[int, Peak]] = []
    patterns = hot @ (1 << np.arange(7))  # one number for each set of days
    for number in np.unique(patterns[patterns > 0]).tolist():
        alike = np.flatnonzero(patterns == number)
        pattern = hot[alike[0]]
        runs = _runs(ordinary & pattern[weekday])
        most = max(run.stop - run.start for run in runs)
        weeks = np.array([run.start for run in runs if run.stop - run.start == most])[:, None] + np.arange(most)
        highest = weeks[daily[alike[:, None, None], weeks].mean(axis=2).argmax(axis=1)]
        mean = uplift[alike[:, None], weekday[highest]].mean(axis=1).tolist()
        its = zip(alike.tolist(), days[highest[:, 0]], days[highest[:, -1]], mean, strict=True)
        found += [(server, Peak(start, end, "weekday", its_mean)) for server, start, end, its_mean in its]
    return found


def _uplift(value: Array, level: Array) -> Array:
    """In percent; 0 where there is no level to compare with."""
    usable = np.isfinite(level) & (level > 0)
    return np.asarray(np.where(usable, (value / np.where(usable, level, 1.0) - 1.0) * 100.0, 0.0))

"""Why a forecast is what it is: the parts that its p50 adds up from, in the metric's unit.

    p50 = level + trend + weekday (+ hour) + year + calendar (+ known_ahead) + other

A model knows its parts on the scale it was fitted on, where they add up; on the way back from a logarithm they
multiply. Here they are made to add up again, and what another model, the calibration or a correction put on top is
told as `other`. It leaves out where the parts come from (forecasters).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.domain.panel import Array

PARTS = ("level", "trend", "weekday", "hour", "year", "calendar", "known_ahead", "other")
"""In this order; `hour` of hourly data alone, `known_ahead` of data with such columns."""

TINY = 1e-6
"""A way, in deviations of the server, too short to take a slope of."""


@dataclass(frozen=True)
class Parts:
    """Of one server: `level`, where it stands at the outset without its calendar; `effects` by part, without `other`,
    and the part `calendar` once more by `events`: (horizon,) each, an event NaN on the steps it does not fall on."""

    level: float
    effects: dict[str, Array]
    events: dict[str, Array]


@dataclass(frozen=True)
class Lift:
    """What a part does over the horizon: the lowest and highest it adds, and its share of all that the parts add or
    take away, level apart."""

    part: str
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class EventLift:
    """What an event adds on the mean step that it falls on; `percent` of the level, None for a level of zero."""

    event: str
    steps: int
    lift: float
    percent: float | None


@dataclass(frozen=True)
class Explanation:
    """`rows` (horizon, names) whose every row adds up to `p50` (horizon,)."""

    p50: Array
    names: tuple[str, ...]
    rows: Array
    events: dict[str, Array]

    def falling(self, step: int) -> list[str]:
        """The events of a step."""
        return [name for name, effect in self.events.items() if not np.isnan(effect[step])]

    def lifts(self) -> list[Lift]:
        """Of each part but the level."""
        size = np.abs(self.rows).mean(axis=0)[1:]
        share = size / size.sum() if size.sum() > 0 else np.zeros(len(size))
        low, high = self.rows.min(axis=0)[1:], self.rows.max(axis=0)[1:]
        return [Lift(*told) for told in zip(self.names[1:], low.tolist(), high.tolist(), share.tolist(), strict=True)]

    def event_lifts(self) -> list[EventLift]:
        """Of each event that falls into the horizon, the strongest first."""
        level = abs(float(self.rows[0, 0]))
        found = []
        for name, effect in self.events.items():
            lift = float(np.nanmean(effect))
            percent = 100 * lift / level if level > 0 else None
            found.append(EventLift(name, int(np.isfinite(effect).sum()), lift, percent))
        return sorted(found, key=lambda one: -abs(one.lift))


def explanation(parts: Parts, p50: Array) -> Explanation:
    """`p50` (horizon,) of any model as the level, the effects, and `other`: what they leave."""
    rows = [np.full(len(p50), parts.level), *parts.effects.values()]
    other = p50 - np.sum(rows, axis=0)
    names = ("level", *parts.effects, "other")
    return Explanation(p50, names, np.column_stack([*rows, other]), parts.events)


def additive(start: float, effects: Array, back: Callable[[Array], Array]) -> tuple[float, Array]:
    """What `start` is on the way back, and what each of `effects` adds to it there.

    `effects` (K, steps) add up to the way from `start` on the scale of the fit, from which `back` leads. Each gets its
    share of what the whole way makes. Where `back` is the exponential function, that is the logarithmic mean of both
    ends times the logarithm of the effect's factor: the logarithmic mean Divisia index, additive without a rest
    whatever the order (Ang, Energy Policy 33, 2005). On a straight scale it is the effect itself.
    """
    way = effects.sum(axis=0)
    way = np.where(np.abs(way) < TINY, TINY, way)
    ends = back(np.append(start, start + way))
    return float(ends[0]), effects * ((ends[1:] - ends[0]) / way)

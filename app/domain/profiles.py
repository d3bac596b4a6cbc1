"""Profiles of load: servers grouped by how high and in what shape they are used, each group with a readable name.

Five figures describe a server's last year, in percent, so that any two can be weighed against each other, and
k-means groups them. It leaves out where histories come from (services/profiles.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from app.domain import calendar
from app.domain.calendar import Flags
from app.domain.panel import Array, Index, Panel, Times

DAYS = 364
"""What a profile looks back on: whole weeks, a year of quarter ends."""

FEWEST_DAYS = 28
"""A server with fewer days of values has no profile."""

MOST = 6
"""Most profiles of a fleet."""

WORTH_IT = 0.35
"""Two or more profiles have to fit this well, by silhouette, else the fleet is one."""

LOW, HIGH = 40.0, 60.0
"""A mean below the one is low, from the other on high, in between medium."""

UPLIFT, TREND, IRREGULAR = 10.0, 20.0, 15.0
"""From how much on a rhythm of weekdays or of quarter ends, a trend per year, or a spread gives a profile its name."""

_SAME = 5.0
"""A figure that spreads by less than this over the fleet tells no servers apart."""

_FAR = 4.0
_RESTARTS = 8


@dataclass(frozen=True)
class Figures:
    """In percent of the level, but for the level itself. Weekday: Mondays to Fridays over weekends.

    Quarter end: its last seven days over all others. Variability is the spread (σ) that all these leave.
    """

    level_pct: float
    weekday_uplift_pct: float
    trend_pct_per_year: float
    variability_pct: float
    quarter_end_uplift_pct: float


FIGURES = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True)
class Profile:
    """One group; `examples` are the servers nearest to its centre."""

    name: str
    servers: int
    centre: Figures
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Profiles:
    """Lowest level first. `of` maps a server to the name of its profile; servers with too few values are not in it.

    `silhouette` is None where there is one profile."""

    profiles: tuple[Profile, ...]
    of: dict[str, str]
    silhouette: float | None


def profiles(panel: Panel, full: Array, seed: int = 0) -> Profiles:
    """Of every server of a panel; `full` (servers,) is what counts as 100 % of each, in the metric's unit."""
    times, values = daily(panel)
    measured = figures(times, values / full[:, None] * 100.0)
    rows = np.flatnonzero(np.isfinite(measured).all(axis=1))
    if not rows.size:
        return Profiles((), {}, None)
    scaled = _standardised(measured[rows])
    labels, silhouette = _grouped(scaled, seed)
    order = sorted(set(labels.tolist()), key=lambda label: float(np.median(measured[rows][labels == label, 0])))
    centres = [Figures(*measured[rows][labels == label].mean(axis=0).tolist()) for label in order]
    found: list[Profile] = []
    of: dict[str, str] = {}
    for label, centre, name in zip(order, centres, _names(centres), strict=True):
        its = rows[labels == label]
        middle = scaled[labels == label].mean(axis=0)
        nearest = np.argsort(np.square(scaled[labels == label] - middle).sum(axis=1), kind="stable")[:3]
        found.append(Profile(name, len(its), centre, tuple(panel.servers[row] for row in its[nearest])))
        of |= {panel.servers[row]: name for row in its.tolist()}
    return Profiles(tuple(found), of, silhouette)


def daily(panel: Panel) -> tuple[Times, Array]:
    """Means of each UTC day of the last year of the panel: days datetime64[D] (days,), values (servers, days)."""
    days, first = np.unique(panel.times.astype("datetime64[D]"), return_index=True)
    known = np.add.reduceat(np.isfinite(panel.values).astype(np.float64), first, axis=1)
    total = np.add.reduceat(np.nan_to_num(panel.values), first, axis=1)
    means = np.where(known > 0, total / np.maximum(known, 1.0), np.nan)
    return days[-DAYS:], means[:, -DAYS:]


def figures(days: Times, values: Array) -> Array:
    """(servers, 5) in the order of FIGURES, from daily values (servers, days) in percent; NaN for too few."""
    known = np.isfinite(values)
    enough = known.sum(axis=1) >= FEWEST_DAYS
    level = _mean(values, known)
    scale = np.where(np.abs(level) > 1e-9, level, np.inf)[:, None]
    weekend = calendar.is_weekend(days.astype("datetime64[s]"))
    relative = np.where(known, values, 0.0) / scale * 100.0
    rhythm = _mean(relative, known & ~weekend) - _mean(relative, known & weekend)
    rest = relative - np.where(
        weekend, _mean(relative, known & weekend)[:, None], _mean(relative, known & ~weekend)[:, None]
    )
    late = calendar.end_of_quarter(days.astype("datetime64[s]"))
    slope, rest = _detrended(rest, known & ~late)
    lift = _mean(rest, known & late) - _mean(rest, known & ~late)
    rest = rest - np.where(late, lift[:, None], 0.0)
    spread = np.sqrt(_mean(np.square(rest - _mean(rest, known)[:, None]), known))
    found = np.stack([level, rhythm, slope * 365.0, spread, lift], axis=1)
    return np.where(enough[:, None], found, np.nan)


def _mean(values: Array, counted: Flags) -> Array:
    """Of the cells counted, (servers,); 0 where there are none."""
    count = counted.sum(axis=1)
    return np.asarray(np.where(counted, values, 0.0).sum(axis=1) / np.maximum(count, 1))


def _detrended(values: Array, known: Flags) -> tuple[Array, Array]:
    """Least-squares slope per day, (servers,), 0 for what spans less than half a year; and what it leaves."""
    day = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
    centred = day - _mean(day, known)[:, None]
    long = np.where(known, day, -np.inf).max(axis=1) - np.where(known, day, np.inf).min(axis=1) >= DAYS / 2
    steepness = np.where(known, centred * values, 0.0).sum(axis=1)
    length = np.where(known, np.square(centred), 0.0).sum(axis=1)
    slope = np.where(long, steepness / np.maximum(length, 1e-9), 0.0)
    return slope, values - slope[:, None] * centred


def _standardised(measured: Array) -> Array:
    """By each figure's own spread, so that none outweighs the others; one that hardly differs counts for nothing."""
    spread = measured.std(axis=0)
    scaled = (measured - measured.mean(axis=0)) / np.where(spread < _SAME, np.inf, spread)
    return np.asarray(np.clip(scaled, -_FAR, _FAR))


def _grouped(scaled: Array, seed: int) -> tuple[Index, float | None]:
    """Labels (servers,) of the number of groups, up to MOST, with the best silhouette; one where none is worth it."""
    best, labels = WORTH_IT, np.zeros(len(scaled), dtype=np.int64)
    silhouette = None
    if not np.ptp(scaled):
        return labels, silhouette
    for count in range(2, min(MOST, len(scaled) // 2) + 1):
        found = _kmeans(scaled, count, seed)
        if found is not None and (value := _silhouette(scaled, *found)) > best:
            best, silhouette, labels = value, value, found[1]
    return labels, silhouette


def _kmeans(scaled: Array, count: int, seed: int) -> tuple[Array, Index] | None:
    """Centres and labels of the tightest of a few starts; None where every start lost a group."""
    tightest, found = np.inf, None
    for start in range(_RESTARTS):
        try:
            centres, labels = kmeans2(
                scaled, count, iter=30, minit="++", missing="raise", rng=np.random.default_rng([seed, start])
            )
        except ClusterError:
            continue
        inertia = float(np.square(scaled - centres[labels]).sum())
        if inertia < tightest - 1e-9:
            tightest, found = inertia, (centres, labels.astype(np.int64))
    return found


def _silhouette(scaled: Array, centres: Array, labels: Index) -> float:
    """Simplified: distances to centres, not to every server (Vendramin et al., Stat. Anal. Data Min. 3, 2010)."""
    distance = np.sqrt(np.square(scaled[:, None] - centres).sum(axis=-1))
    own = np.take_along_axis(distance, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(distance, labels[:, None], np.inf, axis=1)
    other = distance.min(axis=1)
    return float(((other - own) / np.maximum(np.maximum(other, own), 1e-12)).mean())


def _names(centres: Sequence[Figures]) -> list[str]:
    """`quarter-end peaks, low`; two of one name are told apart by their level, then by number."""
    plain = [f"{_shape(centre)}, {_height(centre.level_pct)}" for centre in centres]
    exact = [
        f"{name} ({centre.level_pct:.0f} %)" if plain.count(name) > 1 else name
        for name, centre in zip(plain, centres, strict=True)
    ]
    return [
        f"{name} {exact[: place + 1].count(name)}" if exact.count(name) > 1 else name
        for place, name in enumerate(exact)
    ]


def _height(level: float) -> str:
    return "low" if level < LOW else "medium" if level < HIGH else "high"


def _shape(centre: Figures) -> str:
    """What stands out most over its bound."""
    marks = {
        "quarter-end peaks": centre.quarter_end_uplift_pct / UPLIFT,
        "weekday peaks": centre.weekday_uplift_pct / UPLIFT,
        "weekend peaks": -centre.weekday_uplift_pct / UPLIFT,
        "growing": centre.trend_pct_per_year / TREND,
        "shrinking": -centre.trend_pct_per_year / TREND,
        "irregular": centre.variability_pct / IRREGULAR,
    }
    name = max(marks, key=lambda mark: marks[mark])
    return name if marks[name] >= 1.0 else "steady"

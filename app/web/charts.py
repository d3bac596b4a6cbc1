"""Forecasts as pictures: little fans and what-ifs drawn here as SVG paths, and the figures of the charts that the
browser draws.

Pure functions over arrays; colours and sizes are the style sheet's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Array, Frequency, Panel, Times
from app.domain.risk import Peak

WIDTH, HEIGHT = 140.0, 36.0
"""Of a little fan, in the units of its paths."""

POINTS = 70
"""Most points of a little fan; longer horizons are drawn in blocks."""

FLOW_WIDTH, FLOW_HEIGHT = 380.0, 190.0
"""Of the picture of a scenario."""

LEFT, RIGHT, BAR = 112.0, 258.0, 10.0
"""Where its two columns of bars begin, and how wide a bar is; names and counts stand outside."""

LEAST, GAP = 15.0, 5.0
"""Height of the smallest bar, so that its name fits beside it; between two bars."""

SHIFT_WIDTH, SHIFT_BEYOND = 140.0, 134.0
"""Of a runway that moved: its width, and where those end that the horizon does not reach."""

DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Fan:
    """A little fan chart: SVG paths in a box of `WIDTH` by `HEIGHT`, and what it shows in words."""

    band: str
    median: str
    threshold: float
    words: str


def fan(p10: Array, p50: Array, p90: Array, threshold: float) -> Fan:
    """The fan of one server; each of the three is (horizon,)."""
    edges = np.unique(np.linspace(0, len(p50), min(len(p50), POINTS) + 1).astype(int))[:-1]
    low, high = np.minimum.reduceat(p10, edges), np.maximum.reduceat(p90, edges)
    middle = np.add.reduceat(p50, edges) / np.diff(np.append(edges, len(p50)))
    bottom = min(float(low.min()), threshold)
    top = max(float(high.max()), threshold)
    margin = 0.06 * (top - bottom) or 1.0
    x = np.linspace(0, WIDTH, len(edges)) if len(edges) > 1 else np.array([0.0])

    def y(values: Array | float) -> Any:
        return HEIGHT - (np.asarray(values) - bottom) / (top + margin - bottom) * HEIGHT

    return Fan(
        band=f"M{_points(x, y(high))}L{_points(x[::-1], y(low)[::-1])}Z",
        median=f"M{_points(x, y(middle))}",
        threshold=round(float(y(threshold)), 1),
        words=f"p10 to p90 between {p10.min():.4g} and {p90.max():.4g}, threshold {threshold:.4g}",
    )


@dataclass(frozen=True)
class Bar:
    """So many servers of a level (None: retired) on one side of a flow."""

    level: str | None
    servers: int
    y: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Ribbon:
    """Servers on their way from one bar to another."""

    before: str
    after: str | None
    servers: int
    path: str


@dataclass(frozen=True)
class Flow:
    """Servers by level in two worlds, in a box of `FLOW_WIDTH` by `FLOW_HEIGHT`."""

    before: list[Bar]
    after: list[Bar]
    ribbons: list[Ribbon]


def flow(moves: Mapping[tuple[str, str | None], int], levels: Sequence[str]) -> Flow:
    """`moves` counts servers by their level before and after; bars stand in the order of `levels`, who left last."""
    order: list[str | None] = [*levels, None]
    before = _bars({level: _sum(moves, 0, level) for level in levels})
    after = _bars({level: _sum(moves, 1, level) for level in order})
    ribbons = []
    leaving, coming = ({bar.level: bar.y for bar in bars} for bars in (before, after))
    for first in before:
        for last in after:
            if servers := moves.get((str(first.level), last.level), 0):
                out, into = servers / first.servers * first.height, servers / last.servers * last.height
                top, bottom = leaving[first.level], coming[last.level]
                ribbons.append(
                    Ribbon(str(first.level), last.level, servers, _ribbon(top, top + out, bottom, bottom + into))
                )
                leaving[first.level] += out
                coming[last.level] += into
    ribbons.sort(key=lambda ribbon: ribbon.before != ribbon.after)  # those who move are drawn over those who stay
    return Flow(before, after, ribbons)


def _sum(moves: Mapping[tuple[str, str | None], int], side: int, level: str | None) -> int:
    return sum(servers for move, servers in moves.items() if move[side] == level)


def _bars(counts: Mapping[str | None, int] | Mapping[str, int]) -> list[Bar]:
    """Those of the levels that have servers: each as high as it needs to be, and what is left shared out by number."""
    shown = {level: servers for level, servers in counts.items() if servers}
    room = FLOW_HEIGHT - len(shown) * LEAST - (len(shown) - 1) * GAP
    total = sum(shown.values())
    bars, y = [], 0.0
    for level, servers in shown.items():
        height = LEAST + room * servers / total
        bars.append(Bar(level, servers, round(y, 1), round(height, 1)))
        y += height + GAP
    return bars


def _ribbon(top: float, bottom: float, to_top: float, to_bottom: float) -> str:
    start, end = LEFT + BAR, RIGHT
    middle = (start + end) / 2
    return (
        f"M{start:g} {top:.1f}C{middle:g} {top:.1f} {middle:g} {to_top:.1f} {end:g} {to_top:.1f}"
        f"V{to_bottom:.1f}C{middle:g} {to_bottom:.1f} {middle:g} {bottom:.1f} {start:g} {bottom:.1f}Z"
    )


@dataclass(frozen=True)
class Shift:
    """How a runway moved along the horizon: where it was, and where it is (None: the server left)."""

    before: float
    after: float | None


def shift(before: float | None, after: float | None, horizon: float, *, retired: bool = False) -> Shift:
    """Runways in days, None where `horizon` (in days) ends before."""

    def x(runway: float | None) -> float:
        return SHIFT_BEYOND if runway is None else round(6 + (SHIFT_BEYOND - 22) * runway / horizon, 1)

    return Shift(x(before), None if retired else x(after))


def figures(
    history: Panel,
    times: Times,
    quantiles: dict[str, NDArray[Any]],
    threshold: float | None,
    peaks: tuple[Peak, ...],
    causes: dict[str, str],
) -> dict[str, Any]:
    """What the browser needs to draw one server: the last year of its history, its forecast, its threshold, its peaks.

    `times` are those of the forecast, (horizon,) as each of `quantiles`. It opens on four horizons of history.
    """
    frequency = history.frequency
    last = int(history.last[0])
    first = max(int(history.first[0]), last + 1 - 365 * frequency.per_day)
    seen = history.times[first : last + 1]
    opens = max(seen[0], times[0] - max(4 * len(times) * frequency.step, 14 * DAY))
    half = frequency.step / 2
    return {
        "history": {"x": _shown(seen, frequency), "y": _numbers(history.values[0, first : last + 1])},
        "forecast": {"x": _shown(times, frequency)} | {name: _numbers(values) for name, values in quantiles.items()},
        "threshold": threshold,
        "asOf": str(times[0] - half),
        "opens": [str(opens), str(times[-1] + half)],
        "peaks": [
            {
                "start": str(peak.start.astype("datetime64[s]") - (half if frequency is Frequency.DAILY else 0 * half)),
                "end": str((peak.end + DAY).astype("datetime64[s]") - half),
                "label": f"{causes[peak.cause]}, {peak.uplift_pct:+.0f} %",
            }
            for peak in peaks
        ],
    }


def _points(x: Array, y: Array) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _shown(times: Times, frequency: Frequency) -> list[str]:
    unit: Literal["D", "m"] = "D" if frequency is Frequency.DAILY else "m"
    return [str(time) for time in np.datetime_as_string(times, unit=unit)]


def _numbers(values: NDArray[Any]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in values]

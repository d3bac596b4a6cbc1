"""Forecasts as pictures: little fans drawn here as SVG paths, and the figures of the charts that the browser draws.

Pure functions over arrays; colours and sizes are the style sheet's.
"""

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

"""What is done to a panel before a fit: outliers capped, gaps filled, both counted per server, and shifts levelled.

Pure array functions, vectorised over servers. A panel is already cut at its origin, so that looking both ways
in time looks at nothing that came later. It leaves out the calendar (calendar.py) and what is wrong with an
upload (refused long before).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from app.domain import calendar, shifts
from app.domain.panel import Array, Index, Panel, median, median_of_ordered

OUTLIER_Z = 6.0
"""The usual `outlier_z`: the setting's default."""

RARE = 0.02
"""The share of a server's values that may be capped: what it shows more often is its habit, such as a monthly peak."""

YEAR = 364
"""Days of a year in whole weeks, so that a year ago was the same weekday."""

_PHASE_REACH = 4
"""Seasons to either side that a value is compared with."""

_EVENT_REACH = 3
"""Steps to either side: of 2 · 3 + 1 steps, the majority that moves together is an event, not an outlier."""

_EVENT_LIMITS = 100.0
"""Times the limit: more than that is a glitch, though it be on a holiday."""

_SPREAD_REACH, _SPREAD_STRIDE = 9, 3
"""The rolling spread is taken of every third step up to 27 steps to either side, about four weeks of days."""

_CELLS = 50_000
"""Values worked on at once: bounds the memory of the sliding windows, which hold each 19 times."""


@dataclass(frozen=True)
class Changes:
    """How many values of each server were filled and capped: int (servers,)."""

    filled: Index
    capped: Index

    def summary(self) -> dict[str, int]:
        """The counts over all servers, for a report."""
        return {
            "filled_values": int(self.filled.sum()),
            "filled_servers": int(np.count_nonzero(self.filled)),
            "capped_values": int(self.capped.sum()),
            "capped_servers": int(np.count_nonzero(self.capped)),
        }


def prepare(panel: Panel, outlier_z: float = OUTLIER_Z) -> tuple[Panel, Changes]:
    """The panel with its outliers capped and its gaps filled; what lies outside first … last stays NaN.

    Outliers go first, so that none is copied into a gap. A server without a single value stays without. At last, what
    lies before a late shift of a server's level is brought to the level after it (shifts).
    """
    capped = cap_outliers(panel, outlier_z)
    filled = fill_gaps(capped)
    changes = Changes(
        filled=(np.isfinite(filled.values) & ~np.isfinite(panel.values)).sum(axis=1),
        capped=((capped.values != panel.values) & np.isfinite(panel.values)).sum(axis=1),
    )
    return shifts.levelled(filled), changes


def fill_gaps(panel: Panel) -> Panel:
    """Every missing value between first and last row, filled from the same phase of the season.

    A gap takes, for each weekday (hourly: each hour of the day), the straight line between the value before
    and the value after it; before the first and after the last value of a phase, that value. A phase without
    any value (short servers) is filled along time instead. Never with zero.
    """
    gaps = _inside(panel) & ~np.isfinite(panel.values)
    rows = np.flatnonzero(gaps.any(axis=1))
    if not rows.size:
        return panel
    values = panel.values.copy()
    for block in _blocks(rows, panel.steps):
        filled = _interpolate(_along_phase(values[block], panel.frequency.season))
        filled = _interpolate(_along_time(filled, panel.frequency.season, panel.steps))
        values[block] = np.where(gaps[block], filled, values[block])
    return replace(panel, values=values)


def cap_outliers(panel: Panel, outlier_z: float = OUTLIER_Z) -> Panel:
    """Values more than `outlier_z` rolling robust deviations from what was to be expected, set to that limit.

    Expected is the rolling median of the same phase (weekday, or hour of the day), moved by the rolling
    median of how far the steps around it are off: so a rhythm, a level shift, and a week in which all is
    higher are expected. So are the holidays and quarter ends of the panel's country, which come again, and
    what a server shows more often than `RARE`. The deviation is 1.4826 · rolling median absolute
    deviation (a normal's standard deviation; Rousseeuw and Croux, JASA 88, 1993), never below the
    server's overall one. `outlier_z` = 0 changes nothing.
    """
    if outlier_z <= 0 or not len(panel):
        return panel
    known_event = calendar.end_of_quarter(panel.times) | calendar.is_holiday(panel.times, panel.country)
    values = panel.values.copy()
    for block in _blocks(np.arange(len(panel)), panel.steps):
        values[block] = _capped(values[block], panel.frequency.season, outlier_z, known_event)
    return replace(panel, values=values)


def trend(panel: Panel) -> Array:
    """Robust slope of each server, in the metric's unit per day: float64 (servers,), NaN under two seasons.

    The median change over a lag of about half the history, after Theil's incomplete method (Proc. Kon. Ned.
    Akad. v. Wetensch. A 53, 1950). The lag is whole years from two years of history on, else whole seasons,
    so that no season is taken for growth.
    """
    per_day, season = panel.frequency.per_day, panel.frequency.season
    length = panel.last - panel.first + 1
    year = YEAR * per_day
    years, seasons = np.maximum(length // (2 * year), 1), np.maximum(length // (2 * season), 1)
    lag = np.where(length >= 2 * year, years * year, seasons * season)
    later = np.arange(panel.steps) + lag[:, None]
    ahead = np.take_along_axis(panel.values, np.minimum(later, panel.steps - 1), axis=1)
    change = np.where(later <= panel.last[:, None], ahead - panel.values, np.nan)
    slope: Array = median(change) * per_day / lag
    return slope


def _capped(values: Array, season: int, outlier_z: float, known_event: NDArray[np.bool_]) -> Array:
    there = np.isfinite(values)
    phase = median(_around(values, _PHASE_REACH, season), there)
    expected = phase + median(_around(values - phase, _EVENT_REACH, 1), there)
    off = values - expected
    size = np.abs(off)
    count = there.sum(axis=1)
    # A value that is its own median says nothing about the spread; on a nearly constant server the few that
    # are not say too much, and there the plain deviation is the smaller one.
    sizes, still = np.sort(size, axis=1), (size == 0).sum(axis=1)
    apart = 1.4826 * median_of_ordered(sizes, still, count - still)
    # And one glitch of a server that else repeats itself to the digit is all that it deviates by, so that it would
    # set its own limit: what the server usually shows bounds it.
    ordered = np.sort(values, axis=1)
    top = _usual(count)
    reach = _at(ordered, top) - _at(ordered, np.maximum(count - 1, 0) - top)
    usual = np.maximum(reach, np.abs(median_of_ordered(ordered, 0, count)))
    bound = np.where(usual > 0, usual, np.inf)
    overall = np.fmin(np.fmin(apart, np.sqrt(_mean(off**2))), bound)[:, None]
    limit = np.maximum(outlier_z * overall, _at(sizes, top)[:, None])
    suspect = size > limit  # the rolling spread only widens the limit: it is asked for of these alone
    rolling = 1.4826 * median(_around(size, _SPREAD_REACH, _SPREAD_STRIDE)[suspect])
    limit = np.broadcast_to(limit, values.shape).copy()
    limit[suspect] = np.fmax(outlier_z * rolling, limit[suspect])
    excused = known_event & (size <= _EVENT_LIMITS * limit)
    outlier = suspect & (size > limit) & (limit > 0) & ~excused
    return np.where(outlier, expected + np.clip(off, -limit, limit), values)


def _usual(count: Index) -> Index:
    """The place, among so many ascending values, of that which at most a share of `RARE`, or one alone, exceeds."""
    place: Index = np.maximum(np.floor((1 - RARE) * (count - 1)).astype(np.int64), 0)
    return place


def _at(ordered: Array, place: Index) -> Array:
    found: Array = np.take_along_axis(ordered, place[:, None], axis=1)[:, 0]
    return found


def _around(values: Array, reach: int, stride: int) -> Array:
    """The windows of a rolling figure, a view (rows, steps, 2 · reach + 1); NaN where they pass an end."""
    margin = reach * stride
    padded = np.pad(values, ((0, 0), (margin, margin)), constant_values=np.nan)
    return sliding_window_view(padded, 2 * margin + 1, axis=1)[..., ::stride]


def _mean(values: Array) -> Array:
    finite = np.isfinite(values)
    mean: Array = np.where(finite, values, 0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)
    return mean


def _interpolate(values: Array) -> Array:
    """Fill the NaN of each row on the straight line between the values around them, beyond these with the nearest."""
    width, known, gaps = values.shape[1], np.flatnonzero(np.isfinite(values)), np.flatnonzero(np.isnan(values))
    if not (known.size and gaps.size):
        return values
    place, row = np.searchsorted(known, gaps), gaps // width
    before, after = known[np.maximum(place - 1, 0)], known[np.minimum(place, known.size - 1)]
    left = np.where(before // width == row, before, after)
    right = np.where(after // width == row, after, before)
    low, high = values.flat[left], values.flat[right]
    line = low + (high - low) * (gaps - left) / np.maximum(right - left, 1)
    filled = values.copy()
    filled.flat[gaps] = np.where(left // width == row, line, np.nan)
    return filled


def _along_phase(values: Array, season: int) -> Array:
    """(servers, steps) → (servers · season, seasons): a row holds one phase of one server."""
    servers, steps = values.shape
    padded = np.pad(values, ((0, 0), (0, -steps % season)), constant_values=np.nan)
    return padded.reshape(servers, -1, season).transpose(0, 2, 1).reshape(servers * season, -1)


def _along_time(values: Array, season: int, steps: int) -> Array:
    """The way back from `_along_phase`."""
    phases = values.reshape(-1, season, values.shape[1])
    return phases.transpose(0, 2, 1).reshape(phases.shape[0], -1)[:, :steps]


def _inside(panel: Panel) -> NDArray[np.bool_]:
    column = np.arange(panel.steps)
    return (column >= panel.first[:, None]) & (column <= panel.last[:, None])


def _blocks(rows: Index, steps: int) -> Iterator[Index]:
    """The rows in pieces of about `_CELLS` values."""
    size = max(_CELLS // max(steps, 1), 1)
    for start in range(0, rows.size, size):
        yield rows[start : start + size]

"""Servers whose level has shifted lately: a step, not a slope or a season, that has lasted.

Pure array functions over a whole fleet. It leaves out what else is done before a fit (preparation) and what a reader is
told (services/risk).

    season medians  … 41 40 42 41 40 41 │ 55 54 56 55      step: median of up to 5 behind the line less that of 5 before
                                        └ shifted here

Medians of whole seasons (weeks of days, days of hours) hide the rhythm within them. A step counts when it is large
beside what the same server's steps usually are, so that growth and the wave of a year do not, when half of it comes
within two seasons, when what came after has stayed on its side, and when a year ago there was none like it.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from app.domain.panel import Array, Frequency, Index, Panel, Times, median

LATELY = 13
"""Seasons: a quarter of a year of days, two weeks of hours."""

REACH = {Frequency.DAILY: 5, Frequency.HOURLY: 7}
"""Seasons on either side that a level is the median of, at most; of hourly data a week, whose week-end is no shift."""

LASTING = {Frequency.DAILY: 3, Frequency.HOURLY: 4}
"""Seasons that must have come since, and that a level is the median of, at least: more than a week-end."""

YEAR, AROUND = 364, 2
"""Days of a year in whole weeks, and seasons to either side of a year ago at which the same step is looked for."""

USUAL = 4.0
"""Times the server's usual step, robustly: 1.4826 · median of their absolutes, a normal's standard deviation."""

SHARE = 0.1
"""Of the level before: a smaller step is no news to a planner."""


_SERVERS = 500
"""Servers looked at together: bounds the memory, of which a history takes a few times its own."""


@dataclass(frozen=True)
class Shifts:
    """The servers whose level shifted: their `rows` in the panel, the `column` with which the new level began, and the
    level `before` and `after`, all (shifts,)."""

    rows: Index
    column: Index
    before: Array
    after: Array


def find(panel: Panel) -> Shifts:
    """The latest shift of each server that had one lately."""
    blocks = [np.arange(start, min(start + _SERVERS, len(panel))) for start in range(0, len(panel), _SERVERS)]
    found = [(block, _latest(panel.values[block], panel.last[block], panel.frequency)) for block in blocks]
    rows = np.concatenate([block[column >= 0] for block, column in found] or [np.zeros(0, np.int64)])
    column = np.concatenate([column[column >= 0] for _, column in found] or [np.zeros(0, np.int64)])
    reach = np.arange(REACH[panel.frequency] * panel.frequency.season)
    before, after = (median(_at(panel.values[rows], start[:, None] + reach)) for start in (column - len(reach), column))
    return Shifts(rows, column, before, after)


def shifted_at(panel: Panel) -> Times:
    """When each server's level last shifted, if it did lately: datetime64[s] (servers,), NaT where it did not."""
    times = np.full(len(panel), np.datetime64("NaT"), "datetime64[s]")
    found = find(panel)
    times[found.rows] = panel.times[found.column]
    return times


def levelled(panel: Panel) -> Panel:
    """What came before a shift, brought to the level after it, so that calendars are learnt from all of the history and
    the level from its end. In proportion, since calendars are; within the server's bounds.

    Only where there is more than a year of history: before, a step and the season that it comes with look the same.
    """
    found = find(panel)
    old = panel.last[found.rows] - panel.first[found.rows] >= YEAR * panel.frequency.per_day
    able = np.flatnonzero(old & (found.before > 0) & (found.after > 0))
    if not able.size:
        return panel
    rows, column = found.rows[able], found.column[able, None]
    values = panel.values.copy()
    raised = values[rows] * (found.after[able] / found.before[able])[:, None]
    raised = np.clip(raised, panel.lower[rows, None], panel.upper[rows, None])
    values[rows] = np.where(np.arange(panel.steps) < column, raised, values[rows])
    return replace(panel, values=values)


def _latest(values: Array, last: Index, frequency: Frequency) -> Index:
    """The column with which each server's new level began, -1 where none did: (servers,)."""
    season, servers = frequency.season, len(values)
    seasons = values.shape[1] // season
    if seasons < REACH[frequency] + LASTING[frequency]:
        return np.full(servers, -1)
    columns = last[:, None] + 1 - seasons * season + np.arange(seasons * season)
    ending = _at(values, columns).reshape(servers, seasons, season)
    level = median(ending)
    place, before, after = _steps(level, frequency)
    rows = np.flatnonzero(place >= 0)
    rhythm = median((ending[rows] - level[rows, :, None]).transpose(0, 2, 1))
    flat = (ending[rows] - rhythm[:, None]).reshape(rows.size, seasons * season)
    found = np.full(servers, -1)
    found[rows] = columns[rows, _split(flat, place[rows] * season, before[rows], after[rows], season)]
    return found


def _at(values: Array, columns: Index) -> Array:
    """Of each row, NaN outside."""
    inside = (columns >= 0) & (columns < values.shape[1])
    taken = np.take_along_axis(values, np.clip(columns, 0, values.shape[1] - 1), axis=1)
    return np.where(inside, taken, np.nan)


def _steps(level: Array, frequency: Frequency) -> tuple[Index, Array, Array]:
    """From medians (servers, seasons): the season with which a new level began, -1 where none did, and both levels."""
    seasons, reach, lasting = level.shape[1], REACH[frequency], LASTING[frequency]
    places = np.arange(lasting, seasons - lasting + 1)
    padded = np.pad(level, ((0, 0), (reach, reach)), constant_values=np.nan)
    around = sliding_window_view(padded, reach, axis=1)
    before, after = median(around[:, places]), median(around[:, places + reach])
    step = after - before
    change = np.abs(np.diff(level, axis=1))
    usual = 1.4826 * np.fmax(median(np.abs(step)), median(change) / np.sqrt(2))

    lately = slice(max(len(places) - LATELY, 0), None)
    news = np.abs(step[:, lately]) - _a_year_ago(step, YEAR * frequency.per_day // frequency.season)[:, lately]
    places, before, after, step = places[lately], before[:, lately], after[:, lately], step[:, lately]
    near = median(around[:, places + reach][..., :2]) - median(around[:, places][..., -2:])
    lasts = np.array([median(level[:, place:]) for place in places]).T
    size, side = np.abs(step), np.sign(step)
    enough = news > np.fmax(USUAL * usual[:, None], SHARE * np.abs(before))
    enough &= near * side >= 0.5 * size
    enough &= (lasts - before) * side >= 0.5 * size
    best = np.where(enough, size, -1.0).argmax(axis=1)
    rows = np.arange(len(level))
    place = np.where(enough.any(axis=1), places[best], -1)
    return place.astype(np.int64), before[rows, best], after[rows, best]


def _a_year_ago(step: Array, year: int) -> Array:
    """The largest step of the same sign around the same time a year before, 0 where there was none: as `step`."""
    padded = np.pad(step, ((0, 0), (year + AROUND, 0)))
    then = sliding_window_view(padded, 2 * AROUND + 1, axis=1)[:, : step.shape[1]]
    same = np.where(np.sign(then) == np.sign(step)[..., None], np.abs(then), 0.0)
    largest: Array = same.max(axis=-1)
    return largest


def _split(values: Array, near: Index, before: Array, after: Array, season: int) -> Index:
    """The step within a season of `near` at which two levels part the values best, in absolute errors: (servers,)."""
    columns = near[:, None] + np.arange(-season, season)
    columns = np.clip(columns, 0, values.shape[1] - 1)
    window = np.take_along_axis(values, columns, axis=1)
    gain = np.nan_to_num(np.abs(window - after[:, None]) - np.abs(window - before[:, None]))
    best = np.cumsum(gain, axis=1).argmax(axis=1)  # the last step that is nearer to the level before
    first: Index = np.minimum(columns[np.arange(len(near)), best] + 1, values.shape[1] - 1)
    return first

"""A panel: one metric of many servers on one regular time grid, as a dense array.

It holds values and the calendar they stand on. It leaves out where they came from (storage) and what is
done to them before a fit (preparation).

              column 0                    last[i]   last[i]+1 … last[i]+horizon
    server i  NaN NaN 41.2 43.0 NaN … 47.1 |         the forecast's steps
                      first[i]
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Times = NDArray[np.datetime64]

MIN_VALUES = 14
"""A server with fewer values of the metric is ineligible: in no run."""

_NARROW = 9
"""Medians of so many values or fewer are taken of all windows at once."""


class Frequency(StrEnum):
    """The regular step of a dataset."""

    DAILY = "D"
    HOURLY = "H"

    @property
    def step(self) -> np.timedelta64:
        return np.timedelta64(86_400 if self is Frequency.DAILY else 3_600, "s")

    @property
    def season(self) -> int:
        """Steps of the seasonal-naive season: a week of days, a day of hours."""
        return 7 if self is Frequency.DAILY else 24

    @property
    def per_day(self) -> int:
        return 1 if self is Frequency.DAILY else 24

    @lru_cache(maxsize=1024)  # the servers of a page have few different times
    def show(self, time: np.datetime64) -> str:
        """`2023-01-01` for daily data, else `2023-01-01T05:00:00Z`."""
        return str(time.astype("datetime64[D]")) if self is Frequency.DAILY else f"{time.astype('datetime64[s]')}Z"


def instants(times: Iterable[datetime | None]) -> Times:
    """Times that know their zone as datetime64[s], NaT for None. NumPy itself would take several times as long."""
    return np.array([_NAT if time is None else int(time.timestamp()) for time in times], np.int64).view("datetime64[s]")


_NAT = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Panel:
    """`values` is float64 (servers, steps), NaN where a value is missing; `start` the time of column 0.

    `first` and `last` are the columns of each server's first and last row. `known` maps each known-ahead
    regressor to float64 (servers, steps + further steps), which may go on past the last row.
    `lower`/`upper` bound every quantile of a server (from the unit of the metric).
    """

    servers: tuple[str, ...]
    start: np.datetime64
    frequency: Frequency
    values: Array
    first: Index
    last: Index
    lower: Array
    upper: Array
    known: dict[str, Array] = field(default_factory=dict)
    country: str = "US"

    def __len__(self) -> int:
        return len(self.servers)

    @property
    def steps(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def times(self) -> Times:
        """datetime64[s] (steps,)."""
        return self.times_with_future(0)

    def times_with_future(self, horizon: int) -> Times:
        """`times`, and `horizon` steps more: datetime64[s] (steps + horizon,)."""
        times: Times = self.start.astype("datetime64[s]") + np.arange(self.steps + horizon) * self.frequency.step
        return times

    @property
    def as_of(self) -> Times:
        """The time of each server's last row."""
        times: Times = self.start.astype("datetime64[s]") + self.last * self.frequency.step
        return times

    def future_columns(self, horizon: int) -> Index:
        """Columns of each server's forecast on `times_with_future`: int (servers, horizon)."""
        columns: Index = self.last[:, None] + 1 + np.arange(horizon)
        return columns

    def counts(self) -> Index:
        """Values each server has: int (servers,)."""
        counts: Index = np.isfinite(self.values).sum(axis=1)
        return counts

    def take(self, rows: Index) -> "Panel":
        """The panel of some servers, in the order given; the grid stays."""
        return replace(
            self,
            servers=tuple(self.servers[i] for i in rows),
            values=self.values[rows],
            first=self.first[rows],
            last=self.last[rows],
            lower=self.lower[rows],
            upper=self.upper[rows],
            known={name: column[rows] for name, column in self.known.items()},
        )

    def before(self, steps: int) -> "Panel":
        """History as it stood `steps` steps before each server's own last row; later values are gone.

        Servers whose history is shorter keep `last` at `first` - 1 at the least and have no values.
        Known-ahead regressors stay: they were known.
        """
        return self if steps == 0 else self.before_each(np.full(len(self), steps))

    def before_each(self, steps: Index) -> "Panel":
        """As `before`, with a number of steps per server: int (servers,)."""
        last = np.maximum(self.last - steps, self.first - 1)
        width = max(int(last.max(initial=0)) + 1, 1)
        values = self.values[:, :width].copy()
        values[np.arange(width) > last[:, None]] = np.nan
        return replace(self, values=values, last=last)

    def window(self, number: int, horizon: int) -> Array:
        """What happened in back-test window `number` (1 = the last `horizon` steps): (servers, horizon), NaN outside.

        … ├── window 2 ──┤├── window 1 ──┤ last row
        """
        columns = self.last[:, None] + 1 - number * horizon + np.arange(horizon)
        inside = columns >= self.first[:, None]
        return np.where(inside, np.take_along_axis(self.values, np.maximum(columns, 0), axis=1), np.nan)


def median(values: Array, wanted: NDArray[np.bool_] | None = None) -> Array:
    """Along the last axis without the NaN; NaN where there is nothing else, or where it is not `wanted`."""
    width = values.shape[-1]
    if width > _NARROW or width % 2 == 0:
        ordered = np.sort(values, axis=-1)  # NaN last
        return median_of_ordered(ordered, 0, np.isfinite(ordered).sum(axis=-1))
    columns = [values[..., k] for k in range(width)]
    found = _middle_of(columns)
    missing = np.isnan(found)
    gaps = np.nonzero(missing if wanted is None else missing & wanted)
    found[gaps] = _middle_of_some(np.array([column[gaps] for column in columns]))
    return found


def median_of_ordered(ordered: Array, start: Index | int, count: Index) -> Array:
    """Of the `count` ascending values from place `start` on, along the last axis; NaN where there are none."""
    last = ordered.shape[-1] - 1
    lower, upper = (np.clip(start + place, 0, last)[..., None] for place in ((count - 1) // 2, count // 2))
    both = np.take_along_axis(ordered, lower, axis=-1) + np.take_along_axis(ordered, upper, axis=-1)
    return np.where(count > 0, both[..., 0] / 2, np.nan)


def _middle_of(columns: list[Array]) -> Array:
    """Elementwise median of an odd number of arrays, NaN where one is NaN.

    Of just over half of them the least and the greatest cannot be the median: they are left out, and the next one
    comes in. So a whole array is compared at once, which sorting each window by itself is not.
    """
    enough = len(columns) // 2 + 2
    kept, rest = columns[:enough], columns[enough:]
    while len(kept) > 1:
        for k in range(len(kept) - 1):
            kept[k], kept[k + 1] = np.minimum(kept[k], kept[k + 1]), np.maximum(kept[k], kept[k + 1])
        for k in range(len(kept) - 2, 0, -1):
            kept[k - 1], kept[k] = np.minimum(kept[k - 1], kept[k]), np.maximum(kept[k - 1], kept[k])
        kept = kept[1:-1] + rest[:1]
        rest = rest[1:]
    return kept[0]


def _middle_of_some(columns: Array) -> Array:
    """As `_middle_of`, the NaN left out: (columns, values).

    They stand by turns for the greatest and the least, and the other way round: so both middles of an even number are
    found, of an odd one the same twice.
    """
    missing = np.isnan(columns)
    extreme = np.where(np.cumsum(missing, axis=0) % 2, np.inf, -np.inf)
    low, high = (_middle_of(list(np.where(missing, end, columns))) for end in (extreme, -extreme))
    with np.errstate(invalid="ignore"):  # where all are missing
        return np.asarray((low + high) / 2)

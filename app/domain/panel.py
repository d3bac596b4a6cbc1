"""A panel: one metric of many servers on one regular time grid, as a dense array.

It holds values and the calendar they stand on. It leaves out where they came from (storage) and what is
done to them before a fit (preparation).

              column 0                    last[i]   last[i]+1 … last[i]+horizon
    server i  NaN NaN 41.2 43.0 NaN … 47.1 |         the forecast's steps
                      first[i]
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Times = NDArray[np.datetime64]

MIN_VALUES = 14
"""A server with fewer values of the metric is ineligible: in no run."""


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

    def show(self, time: np.datetime64) -> str:
        """`2023-01-01` for daily data, else `2023-01-01T05:00:00Z`."""
        return str(time.astype("datetime64[D]")) if self is Frequency.DAILY else f"{time.astype('datetime64[s]')}Z"


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


def median(values: Array) -> Array:
    """Along the last axis without the NaN, which sort last; NaN where there is nothing else."""
    ordered = np.sort(values, axis=-1)
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    lower = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    upper = np.take_along_axis(ordered, np.minimum(count // 2, ordered.shape[-1] - 1), axis=-1)
    middle: Array = np.where(count > 0, (lower + upper) / 2, np.nan)[..., 0]
    return middle

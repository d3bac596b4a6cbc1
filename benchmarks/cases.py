"""What is forecast in the benchmarks: panels of a folder and the reference fleet, each at its origins, and what came.

A case of a folder is a file that a table here names, since origins, horizon and what is no truth have to be said once
and not be chosen by looking at results. It leaves out who forecasts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from app.domain import fleet
from app.domain.dataset import Unit, bounds
from app.domain.fleet import Fleet
from app.domain.panel import MIN_VALUES, Array, Frequency, Panel


@dataclass(frozen=True)
class Case:
    """`origins` are dates, or numbers of horizons before each server's last row. Values of rows whose column
    `untrue` has `untrue_value` are no truth: models see them, scores do not."""

    file: str
    metric: str
    frequency: Frequency
    horizon: int
    origins: tuple[str | int, ...]
    untrue: str | None = None
    untrue_value: float = 0.0


MONTH_ENDS = tuple(str(day.date()) for day in pd.date_range("2021-12-31", "2022-09-30", freq="ME"))
CASES = {
    "regions": Case("regions_daily.parquet", "util_p95", Frequency.DAILY, 90, ("2022-10-02",), "imputed_hours", 24),
    "regions-months": Case("regions_daily.parquet", "util_p95", Frequency.DAILY, 90, MONTH_ENDS, "imputed_hours", 24),
    "vms": Case("vms_daily.parquet", "cpu_p95", Frequency.DAILY, 14, (1, 2, 3, 4)),
    "ec2": Case("ec2_hourly.parquet", "cpu_p95", Frequency.HOURLY, 72, (1, 2, 3, 4)),
}

FLEET_METRIC, FLEET_HORIZON = "cpu_p95", 90


def origins(case: Case, folder: Path) -> Iterator[tuple[str, Panel, Array]]:
    """Each origin, the panel as it stood then, and what came in the steps after (servers, horizon), NaN = no truth."""
    whole, true = read(case, folder)
    for origin in case.origins:
        if isinstance(origin, int):
            past = whole.before(origin * case.horizon)
            truth = replace(whole, values=true).window(origin, case.horizon)
        else:
            steps = int((np.datetime64(origin) - whole.start) // whole.frequency.step) + 1
            past = replace(whole, values=whole.values[:, :steps], last=np.minimum(whole.last, steps - 1))
            truth = true[:, steps : steps + case.horizon]
        eligible = np.flatnonzero(past.counts() >= MIN_VALUES)
        past = past.take(eligible)
        lower, upper = bounds(Unit.PERCENT, past.values)
        yield str(origin), replace(past, lower=lower, upper=upper), truth[eligible]


def read(case: Case, folder: Path) -> tuple[Panel, Array]:
    """The panel of a case, and its values without those that are no truth."""
    table = pd.read_parquet(folder / case.file)
    at = pd.to_datetime(table["timestamp"], utc=True).dt.tz_localize(None)
    column = ((at - at.min()) // pd.Timedelta(case.frequency.step)).to_numpy()
    row, servers = pd.factorize(table["server_id"], sort=True)
    values = np.full((len(servers), int(column.max()) + 1), np.nan)
    values[row, column] = table[case.metric]
    present = np.zeros(values.shape, dtype=bool)
    present[row, column] = True
    true = values.copy()
    if case.untrue is not None:
        unknown = (table[case.untrue] == case.untrue_value).to_numpy()
        true[row[unknown], column[unknown]] = np.nan
    panel = Panel(
        servers=tuple(servers),
        start=np.datetime64(at.min(), "s"),
        frequency=case.frequency,
        values=values,
        first=present.argmax(axis=1),
        last=present.shape[1] - 1 - present[:, ::-1].argmax(axis=1),
        lower=np.zeros(len(servers)),
        upper=np.full(len(servers), 100.0),
    )
    return panel, true


def split(made: Fleet) -> tuple[Panel, Array]:
    """The fleet's history, and what came in its last `FLEET_HORIZON` days: (servers, horizon), NaN = missing."""
    seen = fleet.observe(made)[FLEET_METRIC]
    values = np.where(seen.missing, np.nan, seen.values)
    servers, days = values[:, :-FLEET_HORIZON].shape
    past = Panel(
        servers=tuple(made.servers),
        start=made.times[0],
        frequency=Frequency.DAILY,
        values=values[:, :-FLEET_HORIZON],
        first=np.zeros(servers, dtype=np.int64),
        last=np.full(servers, days - 1),
        lower=np.zeros(servers),
        upper=np.full(servers, 100.0),
        country=fleet.COUNTRY,
    )
    return past, values[:, -FLEET_HORIZON:]

"""How accurate and how well calibrated the models are, on a folder of real panels (Parquet: server, step, metrics).

    python benchmarks/accuracy.py FOLDER [--case regions] [--models auto,structural,prophet]

Each case below is a file, a metric, a horizon and origins; at each origin every model sees the history up to it, is
back-tested, weighed and calibrated on windows of that history as a run of the service does it (prepare, fit, combine,
judge: the same functions), and is scored on the steps after it, which nothing above has read. Prints one line per
model and origin, and the means.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from app import forecasters
from app.domain.dataset import Unit, bounds
from app.domain.evaluation import Scores, Trial, judge, pooled_scores, seasonal_scale
from app.domain.panel import MIN_VALUES, Array, Frequency, Panel
from app.domain.preparation import prepare
from app.domain.quantiles import BASE

REPORTED = 1


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
MODELS = "auto,structural,gradient_boosting,seasonal_naive,random_forest,prophet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the Parquet files of the cases are")
    parser.add_argument("--case", choices=list(CASES), action="append", help="one of the cases; all when not given")
    parser.add_argument("--models", default=MODELS, help="comma-separated")
    parser.add_argument("--windows", type=int, default=3, help="back-test windows beside the reported one")
    options = parser.parse_args()
    for name in options.case or CASES:
        run(name, CASES[name], options.folder, options.models.split(","), options.windows)


def run(name: str, case: Case, folder: Path, models: list[str], earlier: int) -> None:
    print(f"\n{name}: {case.file} {case.metric}, {case.horizon} steps ahead")
    print(f"{'origin':<12} {'model':<18} {'WQL':>7} {'sMAPE':>7} {'MASE':>7} {'cover':>7} {'CPU s':>7}")
    rows = []
    for origin, past, truth in origins(case, folder):
        for model, scores, seconds in scored(past, truth, case.horizon, models, earlier):
            rows.append((model, defined(scores.wql), scores.smape, defined(scores.mase), scores.coverage, seconds))
            print(f"{origin:<12} " + line(*rows[-1]), flush=True)
    if len({row[0] for row in rows}) < len(rows):
        table = pd.DataFrame(rows, columns=["model", "wql", "smape", "mase", "coverage", "seconds"])
        for mean in table.groupby("model", sort=False).mean().itertuples(name=None):
            print(f"{'mean':<12} " + line(*mean), flush=True)


def line(model: str, wql: float, smape: float, mase: float, coverage: float, seconds: float) -> str:
    return f"{model:<18} {wql:>7.4f} {smape:>7.2f} {mase:>7.3f} {coverage:>7.3f} {seconds:>7.1f}"


def defined(figure: float | None) -> float:
    return np.nan if figure is None else figure


def scored(
    past: Panel, truth: Array, horizon: int, models: list[str], earlier: int
) -> Iterator[tuple[str, Scores, float]]:
    """Each model's scores on what came, and the CPU seconds of its fits (an ensemble's: of its members)."""
    windows = min(REPORTED + earlier, max(0, (int(past.counts().max()) - MIN_VALUES) // horizon))
    members = [
        load.members(len(past)) if isinstance(load, forecasters.Ensemble) else (model,)
        for model, load in loaded(models)
    ]
    fitted = {member: fit(past, horizon, windows, member) for member in dict.fromkeys(m for ms in members for m in ms)}
    for (model, forecaster), needed in zip(loaded(models), members, strict=True):
        trials = {member: fitted[member][0] for member in needed}
        began = time.process_time()
        trial = forecaster.combine(trials).trial if isinstance(forecaster, forecasters.Ensemble) else trials[model]
        values = judge(trial).values
        seconds = time.process_time() - began + sum(fitted[member][1] for member in needed)
        base = values[..., [trial.levels.index(level) for level in BASE]]
        scores = pooled_scores(base[None], truth[None], trial.scale[:1])
        if scores is not None:
            yield model, scores, seconds


def loaded(models: list[str]) -> list[tuple[str, forecasters.Forecaster | forecasters.Ensemble]]:
    return [(model, forecasters.load(model)) for model in models]


def fit(past: Panel, horizon: int, windows: int, model: str) -> tuple[Trial, float]:
    """The model's forecast and its back-tests, and the CPU seconds they took."""
    forecaster = forecasters.load(model)
    assert not isinstance(forecaster, forecasters.Ensemble)
    began = time.process_time()
    raw = np.full((1 + windows, len(past), horizon, len(BASE)), np.nan)
    for window in range(1 + windows):
        known = past.before(window * horizon)
        enough = np.flatnonzero(known.counts() >= MIN_VALUES)
        for rows in np.array_split(enough, -(-len(enough) // (forecaster.chunk or len(past)))) if len(enough) else []:
            prepared, _ = prepare(known.take(rows))
            raw[window, rows] = forecaster.fit(prepared, horizon).predict(horizon, BASE)
    seconds = time.process_time() - began
    season = past.frequency.season
    actual = np.array([past.window(w, horizon) for w in range(1, windows + 1)]).reshape(windows, len(past), horizon)
    scale = np.array([seasonal_scale(past.before(w * horizon), season) for w in range(windows + 1)])
    return Trial(BASE, raw, actual, scale, past.lower, past.upper, min(REPORTED, windows)), seconds


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


if __name__ == "__main__":
    main()

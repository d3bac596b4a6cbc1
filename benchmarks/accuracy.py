"""How accurate and how well calibrated the models are, on a folder of real panels (Parquet: server, step, metrics).

    python -m benchmarks.accuracy FOLDER [--case regions] [--models auto,structural,prophet]

The quick look while a model is worked on; `python -m benchmarks` sets the models beside their peers, with what they
cost. At each origin of a case (cases) every model sees the history up to it, is back-tested, weighed and calibrated on
windows of that history as a run of the service does it (headroom), and is scored on the steps after it, which nothing
above has read. Prints one line per model and origin, and the means.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from app.domain.evaluation import Scores, pooled_scores, seasonal_scale
from app.domain.panel import MIN_VALUES, Array, Panel
from benchmarks import headroom
from benchmarks.cases import CASES, Case, origins

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
    room = max(0, (int(past.counts().max()) - MIN_VALUES) // horizon)
    windows = min(headroom.REPORTED + earlier, room)
    fitted: dict[str, tuple[headroom.Fitted, float]] = {}
    for model in models:
        for member in headroom.members(model, len(past)):
            if member not in fitted:
                began = time.process_time()
                [its] = headroom.fit(past, horizon, windows, (member,))
                fitted[member] = its, time.process_time() - began
        fits, taken = zip(*(fitted[member] for member in headroom.members(model, len(past))), strict=True)
        began = time.process_time()
        values = headroom.judged(model, past, horizon, list(fits))
        seconds = time.process_time() - began + sum(taken)
        scores = score(values, past, truth)
        if scores is not None:
            yield model, scores, seconds


def score(base: Array, past: Panel, truth: Array) -> Scores | None:
    """p10, p50 and p90 (servers, horizon, 3) against what came."""
    return pooled_scores(base[None], truth[None], seasonal_scale(past, past.frequency.season)[None])


if __name__ == "__main__":
    main()

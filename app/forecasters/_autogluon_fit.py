"""AutoGluon's own side, run by the Python of its environment: history in, quantiles out. Nothing of Headroom is here.

    python -I _autogluon_fit.py FOLDER

FOLDER holds `task.json`, `history.parquet` (item_id, timestamp, target, covariates) and `future.parquet` (item_id,
timestamp, covariates of the steps to forecast). It gets `quantiles.parquet`: item_id, timestamp, one column per level,
in the order of `future.parquet`.
"""

import ctypes
import json
import signal
import sys
from pathlib import Path

if sys.platform == "linux":  # the end of who started this is its own end: nobody would read the answer
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

import pandas as pd
from autogluon.timeseries import TimeSeriesDataFrame, TimeSeriesPredictor

NOT_HERE = ("Chronos", "Chronos2", "Toto", "Toto2")
"""Models whose weights come from a hub: without it they cost a third of the time and give nothing."""


def main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    history = _frame(folder / "history.parquet")
    future = _frame(folder / "future.parquet")
    predictor = TimeSeriesPredictor(
        prediction_length=task["horizon"],
        freq=task["frequency"],
        target="target",
        known_covariates_names=list(future.columns),
        quantile_levels=task["levels"],
        eval_metric="WQL",
        path=str(folder / "models"),
        verbosity=1,
    )
    predictor.fit(
        history,
        presets=task["preset"],
        excluded_model_types=list(NOT_HERE),
        time_limit=task["seconds"],
        random_seed=task["seed"],
        enable_ensemble=True,
    )
    answer = predictor.predict(history, known_covariates=future if len(future.columns) else None)
    quantiles = answer.reindex(future.index)[[str(level) for level in task["levels"]]]
    pd.DataFrame(quantiles).reset_index().to_parquet(folder / "quantiles.parquet")


def _frame(file: Path) -> TimeSeriesDataFrame:
    return TimeSeriesDataFrame.from_data_frame(pd.read_parquet(file))


main(Path(sys.argv[1]))

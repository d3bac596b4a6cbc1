"""AutoGluon's medium_quality ensemble, in an environment of its own, which `make autogluon` installs.

Its needs contradict Headroom's (older pandas, statsforecast, plotly) and weigh two gigabytes, so it is never imported:
its Python is started for each fit, is given Parquet and gives Parquet back (_autogluon_fit). It runs in the process
group of the child that fits, is killed with it, and has its limits of memory and threads. It leaves out calibration,
and AutoGluon's models whose weights come from a hub.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from app.domain.panel import Array, Frequency, Index, Panel
from app.forecasters import _regressors
from app.forecasters._apart import AUTOGLUON

SCRIPT = Path(__file__).with_name("_autogluon_fit.py")
PRESET = "medium_quality"

SECONDS = 600
"""AutoGluon trains no further model once it has used these. A forecast that comes to that depends on the machine."""

SEED = 20_220_101
ONE_TRAINING_WINDOW = 10
"""Values that AutoGluon wants of a server before its own validation window; it learns from none that has fewer."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "AG_CPU_COUNT", "LOKY_MAX_CPU_COUNT")
"""Variables by which AutoGluon, and what it is made of, learn how many threads and processes they may have."""

OFFSETS = {Frequency.DAILY: "D", Frequency.HOURLY: "h"}


class AutoGluonFailed(Exception):
    """The process of AutoGluon ended without an answer; the message is the last that it said."""


@dataclass(frozen=True)
class PreparedAutoGluon:
    """A checked panel. AutoGluon learns for the quantiles that it is to give, so it starts once they are known.

    Not `told`, it gets neither the calendar nor what is known ahead.
    """

    panel: Panel
    horizon: int
    threads: int = 1
    told: bool = True

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        columns = self.panel.future_columns(self.horizon)
        with tempfile.TemporaryDirectory(prefix="autogluon-") as name:
            folder = Path(name)
            self._write(folder, quantiles)
            _run(folder, self.threads)
            answer = pd.read_parquet(folder / "quantiles.parquet", columns=[str(float(level)) for level in quantiles])
        values = answer.to_numpy(np.float64).reshape(*columns.shape, len(quantiles))
        ascending: Array = np.sort(values[:, :horizon], axis=-1)
        return ascending

    def _write(self, folder: Path, quantiles: Sequence[float]) -> None:
        panel, rows = self.panel, np.arange(len(self.panel))
        inside = (np.arange(panel.steps) >= panel.first[:, None]) & (np.arange(panel.steps) <= panel.last[:, None])
        row, column = np.nonzero(inside)
        ahead = panel.future_columns(self.horizon)
        history = self._covariates(row, column).assign(target=panel.values[row, column])
        history.to_parquet(folder / "history.parquet")
        self._covariates(np.repeat(rows, self.horizon), ahead.ravel()).to_parquet(folder / "future.parquet")
        task = {
            "horizon": self.horizon,
            "frequency": OFFSETS[panel.frequency],
            "levels": [float(level) for level in quantiles],
            "preset": PRESET,
            "seconds": SECONDS,
            "seed": SEED,
        }
        (folder / "task.json").write_text(json.dumps(task))

    def _covariates(self, row: Index, column: Index) -> pd.DataFrame:
        """What is known of each step, past or to come; servers by number, which orders them as the panel does."""
        panel = self.panel
        steps = {"item_id": row, "timestamp": panel.times_with_future(self.horizon)[column]}
        if not self.told:
            return pd.DataFrame(steps)
        calendar, names = _regressors.calendar_columns(panel, self.horizon)
        known = _regressors.known_ahead(panel, self.horizon)
        return pd.DataFrame(
            steps
            | {f"calendar_{name}": calendar[column, number] for number, name in enumerate(names)}
            | {f"known_{name}": values[row, column] for name, values in known.items()}
        )


@dataclass(frozen=True)
class AutoGluon:
    name: str = "autogluon"
    chunk: int = 500
    earlier_windows: int = 1

    def fit(self, panel: Panel, horizon: int) -> PreparedAutoGluon:
        """Raises ValueError where AutoGluon could learn from no server, sooner than its process would."""
        needed = horizon + ONE_TRAINING_WINDOW
        if int((panel.last - panel.first).max()) + 1 < needed:
            raise ValueError(f"AutoGluon learns from {needed} steps to forecast {horizon}; no server has as many")
        return PreparedAutoGluon(panel, horizon)


FORECASTER = AutoGluon()


def _run(folder: Path, threads: int) -> None:
    environment = {
        **os.environ,
        **dict.fromkeys(THREADS, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    # -I: neither this folder, whose modules are named like libraries, nor the caller's variables lead its imports.
    done = subprocess.run(
        [AUTOGLUON, "-I", SCRIPT, folder], cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise AutoGluonFailed(f"AutoGluon ended with {done.returncode}: {said[:500]}")

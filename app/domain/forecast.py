"""A forecast: what was asked for, and the status that follows from its runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from app.domain.quantiles import BASE, with_base
from app.domain.run import Run, RunStatus

Model = Literal[
    "seasonal_naive",
    "structural",
    "prophet",
    "random_forest",
    "gradient_boosting",
    "statistical",
    "autogluon",
    "auto",
    "canvas",
]
MODELS: tuple[str, ...] = get_args(Model)
"""Every model a client may name, whether or not this installation has it."""

MAX_HORIZON = 2_200


@dataclass(frozen=True)
class ForecastRequest:
    """The body of POST /forecasts after its defaults."""

    dataset_id: UUID
    metric: str
    horizon: int = 90
    quantiles: tuple[float, ...] = BASE
    models: tuple[str, ...] = ("auto",)
    server_ids: tuple[str, ...] | None = None
    backtest_windows: int = 1
    max_cost_usd: float = 0.0
    fallback: bool = True
    reuse_models_of: UUID | None = None
    name: str | None = None

    @property
    def levels(self) -> tuple[float, ...]:
        return with_base(self.quantiles)

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["dataset_id"] = str(self.dataset_id)
        body["reuse_models_of"] = str(self.reuse_models_of) if self.reuse_models_of else None
        return body

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "ForecastRequest":
        reuse, servers = body["reuse_models_of"], body["server_ids"]
        return cls(
            **{
                **body,
                "dataset_id": UUID(body["dataset_id"]),
                "quantiles": tuple(body["quantiles"]),
                "models": tuple(body["models"]),
                "server_ids": tuple(servers) if servers is not None else None,
                "reuse_models_of": UUID(reuse) if reuse else None,
            }
        )


class ForecastStatus:
    """The same words as a run's, less `skipped`."""

    QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
    TERMINAL = (SUCCEEDED, FAILED, CANCELLED)


def status_of(runs: Sequence[RunStatus]) -> str:
    """A forecast has succeeded when one of its runs has, and failed when all ended and none has."""
    if all(status.is_terminal for status in runs):
        if RunStatus.SUCCEEDED in runs:
            return ForecastStatus.SUCCEEDED
        return ForecastStatus.CANCELLED if RunStatus.CANCELLED in runs else ForecastStatus.FAILED
    untouched = all(status in (RunStatus.QUEUED, RunStatus.SKIPPED) for status in runs)
    return ForecastStatus.QUEUED if untouched else ForecastStatus.RUNNING


def rank(runs: Sequence[Run]) -> list[Run]:
    """Succeeded runs, best first: by WQL, then sMAPE, then the order asked for; unscored ones last."""

    def key(run: Run) -> tuple[bool, float, float, int]:
        scores = run.scores or {}
        wql, smape = scores.get("wql"), scores.get("smape")
        return wql is None, wql or 0.0, smape or 0.0, run.position

    return sorted((run for run in runs if run.status is RunStatus.SUCCEEDED), key=key)


@dataclass(frozen=True)
class Forecast:
    id: UUID
    request: ForecastRequest
    status: str
    warnings: tuple[str, ...]
    best_model: str | None
    runs: tuple[Run, ...]
    revision: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def is_terminal(self) -> bool:
        return self.status in ForecastStatus.TERMINAL

    @property
    def progress(self) -> float:
        """Mean over the runs; an ended run counts as done."""
        done = [1.0 if run.status.is_terminal else run.progress for run in self.runs]
        return sum(done) / len(done) if done else 0.0

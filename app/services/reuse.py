"""What a forecast may use again of an earlier one (docs/models.md): a managed model that is there already.

It may where it is asked what it has learned: the same metric, step, regressors and horizon, and no quantile more. It is
scored only on windows that it has not seen, and it never forecasts from rows older than those it has learned from.
Local models learn anew; why is told for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np

from app.canvas.requests import FIRST
from app.canvas.stages import Stage
from app.domain.dataset import Contents
from app.domain.forecast import ForecastRequest
from app.domain.panel import Frequency
from app.domain.quantiles import name
from app.domain.run import RunError, RunStatus
from app.storage import datasets as stored_datasets
from app.storage import forecasts as stored_forecasts
from app.storage import managed
from app.storage.database import Connection

LEARNS_ANEW: Mapping[str, str] = {
    "seasonal_naive": "it has learned nothing, and repeats the last season of the newest rows",
    "structural": "its effects and its level are those of all rows up to the newest, and take little to fit",
    "statistical": "its smoothing starts from the newest rows of each server, and is fitted with it",
    "prophet": "its trend may turn up to the newest rows, and whether seasons grow with it is tried out on them",
    "random_forest": "its trees know nothing of rows that came since, and no trees are kept",
    "gradient_boosting": "its trees know nothing of rows that came since, and no trees are kept",
    "autogluon": "what it has learned could be kept as pickles alone, which Headroom does not load",
    "auto": "its members are fitted to the newest rows, and weighed by back-tests that end with them",
}
"""Why each local model does."""


@dataclass(frozen=True)
class Reused:
    """`run_id`: the run that trained the models; `containers` by training; `unseen`: how many of the newest windows of
    the present history they have not learned from."""

    run_id: UUID
    containers: Mapping[str, list[dict[str, Any]]]
    unseen: int


def learned_anew(models: Sequence[str]) -> list[str]:
    """What is told to those who would use an earlier forecast again, of these local models."""
    return [f"{model} learned anew, nothing of the earlier forecast is in it: {LEARNS_ANEW[model]}" for model in models]


async def find(connection: Connection, request: ForecastRequest) -> Reused | RunError | None:
    """What `reuse_models_of` stands for, or why it cannot be had; None where nothing is to be used again."""
    if request.reuse_models_of is None:
        return None
    earlier = await stored_forecasts.get(connection, request.reuse_models_of)
    run = next((run for run in earlier.runs if run.model == "canvas"), None) if earlier else None
    state = await managed.get(connection, run.id) if run and run.status is RunStatus.SUCCEEDED else None
    if earlier is None or state is None or "containers" not in state.facts:  # failed before, then brought by hand
        return _not(f"The forecast {request.reuse_models_of} has no model that was trained by Canvas.")
    root = UUID(state.facts.get("models_of", str(state.run_id)))
    trained = state if root == state.run_id else await managed.get(connection, root)
    if trained is None or trained.stage == Stage.FORGOTTEN:
        return _not("What that model is made of has been removed from S3 (HEADROOM_CANVAS_KEEP_DAYS).")
    present, past = [await stored_datasets.get(connection, each.dataset_id) for each in (request, earlier.request)]
    assert present is not None  # foreign keys hold them
    assert past is not None
    if (odd := _difference(request, present.contents, earlier.request, past.contents)) is not None:
        return _not(odd)
    shift = await _shift(connection, request, earlier.request, present.contents.frequency)
    unseen = state.facts.get("unseen", state.facts["windows"]) + shift
    if unseen < 0:
        return _not("That model has learned from rows that come after this dataset's.")
    kept = {training: made for training, made in state.facts["containers"].items() if training == FIRST or shift >= 0}
    return Reused(root, kept, unseen)


def _difference(now: ForecastRequest, present: Contents, then: ForecastRequest, past: Contents) -> str | None:
    """What that model was asked that is not asked now."""
    lacking = [name(level) for level in now.levels if level not in then.levels]
    differences = {
        f"the metric {then.metric}": then.metric != now.metric,
        f"a horizon of {then.horizon}": then.horizon != now.horizon,
        f"another step ({past.frequency.value})": past.frequency is not present.frequency,
        f"other known-ahead columns ({', '.join(past.known_ahead) or 'none'})": past.known_ahead != present.known_ahead,
        f"quantiles without {', '.join(lacking)}": bool(lacking),
    }
    found = [what for what, differs in differences.items() if differs]
    return f"That model was trained for {' and '.join(found)}." if found else None


async def _shift(connection: Connection, now: ForecastRequest, then: ForecastRequest, frequency: Frequency) -> int:
    """By how many whole windows the history has grown since, of the server for which it has grown least."""
    before = {
        server.server_id: server.last_at
        for server in await stored_datasets.servers(connection, then.dataset_id, then.server_ids)
    }
    window = timedelta(seconds=int(frequency.step / np.timedelta64(1, "s"))) * now.horizon
    grown = [
        (server.last_at - before[server.server_id]) // window
        for server in await stored_datasets.servers(connection, now.dataset_id, now.server_ids)
        if server.server_id in before
    ]
    return min(grown, default=0)


def _not(detail: str) -> RunError:
    return RunError("model-not-reusable", detail)

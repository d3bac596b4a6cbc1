"""The steps a run may take, and the status and ranking that follow."""

from itertools import product
from uuid import uuid4

import pytest

from app.domain.forecast import rank, status_of
from app.domain.run import TRANSITIONS, IllegalTransition, Run, RunStatus, allow

Q, R, S = RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SUCCEEDED
F, C, K = RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED


@pytest.mark.parametrize(("before", "after"), list(product(RunStatus, RunStatus)))
def test_only_the_steps_of_the_table_are_allowed(before: RunStatus, after: RunStatus) -> None:
    if (before, after) in TRANSITIONS:
        allow(before, after)
    else:
        with pytest.raises(IllegalTransition):
            allow(before, after)


def test_what_has_ended_stays_as_it_is_unless_a_person_brings_results() -> None:
    assert {step for step in TRANSITIONS if step[0].is_terminal} == {(K, S), (F, S), (S, S)}
    assert {after for _, after in TRANSITIONS} == set(RunStatus)


@pytest.mark.parametrize(
    ("runs", "status"),
    [
        ([Q, Q], "queued"),
        ([Q, K], "queued"),
        ([R, Q], "running"),
        ([S, Q], "running"),
        ([F, R], "running"),
        ([S, F], "succeeded"),
        ([S, K], "succeeded"),
        ([S, C], "succeeded"),
        ([F, K], "failed"),
        ([K], "failed"),
        ([F, C], "cancelled"),
        ([C, C], "cancelled"),
    ],
)
def test_a_forecasts_status_follows_from_its_runs(runs: list[RunStatus], status: str) -> None:
    assert status_of(runs) == status


def test_rank_is_by_wql_then_smape_with_the_unscored_last() -> None:
    def run(model: str, position: int, status: RunStatus, **scores: float) -> Run:
        return Run(
            id=uuid4(), forecast_id=uuid4(), position=position, model=model, status=status, stage=None, progress=1.0,
            servers=1, fallback_servers=0, estimated_microusd=0, actual_microusd=0, error=None, scores=scores or None,
            seconds=None, report=None, revision=1, started_at=None, finished_at=None,
        )  # fmt: skip

    runs = [
        run("unscored", 0, S),
        run("worse", 1, S, wql=0.3, smape=1.0),
        run("tied", 2, S, wql=0.2, smape=9.0),
        run("best", 3, S, wql=0.2, smape=8.0),
        run("failed", 4, F, wql=0.1, smape=1.0),
    ]
    assert [ranked.model for ranked in rank(runs)] == ["best", "tied", "worse", "unscored"]

"""A run: one model of one forecast, and the only ways it may go from one status to another."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4


class RunStatus(StrEnum):
    QUEUED = "queued"
    """waits for a worker, for the first time or again"""
    RUNNING = "running"
    """claimed by one worker, under a lease that it must renew"""
    SUCCEEDED = "succeeded"
    """results, scores and costs are stored"""
    FAILED = "failed"
    """gave up; `error` says why"""
    CANCELLED = "cancelled"
    """stopped on request"""
    SKIPPED = "skipped"
    """never started, because it could not have run; `error` says why"""

    @property
    def is_terminal(self) -> bool:
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


_Q, _R, _S = RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SUCCEEDED
_F, _C, _K = RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED

TRANSITIONS = frozenset(
    {
        (_Q, _R),  # a worker claims it
        (_Q, _C),  # cancelled before anyone had it
        (_Q, _K),  # what it needs is not there
        (_R, _R),  # taken over: the worker before it fell silent
        (_R, _Q),  # handed back by a worker that stops, or waits for its next stage
        (_R, _S),
        (_R, _F),
        (_R, _C),
        (_K, _S),  # a person brought its results
        (_F, _S),  # the same
        (_S, _S),  # the same person brought better ones
    }
)


class IllegalTransition(Exception):
    """A bug: the table above does not know this step."""


def allow(before: RunStatus, after: RunStatus) -> None:
    """Raises IllegalTransition unless the table allows the step."""
    if (before, after) not in TRANSITIONS:
        raise IllegalTransition(f"a run cannot go from {before} to {after}")


@dataclass(frozen=True)
class RunError:
    """Why a run failed or was skipped: a code for programs, a sentence for people."""

    code: str
    detail: str


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a run. `epoch` is the fence: a write under an older epoch changes no row."""

    run_id: UUID
    forecast_id: UUID
    model: str
    epoch: int
    attempt: int
    stage: str | None = None
    progress: float = 0.0


@dataclass(frozen=True)
class Run:
    id: UUID
    forecast_id: UUID
    position: int
    model: str
    status: RunStatus
    stage: str | None
    progress: float
    servers: int
    fallback_servers: int
    estimated_microusd: int
    actual_microusd: int
    error: RunError | None
    scores: dict[str, float | None] | None
    seconds: float | None
    report: dict[str, object] | None
    revision: int
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def queued(cls, forecast_id: UUID, model: str, position: int, servers: int, estimated_microusd: int = 0) -> "Run":
        """A run that waits for its first worker."""
        return cls(
            id=uuid4(),
            forecast_id=forecast_id,
            position=position,
            model=model,
            status=RunStatus.QUEUED,
            stage=None,
            progress=0.0,
            servers=servers,
            fallback_servers=0,
            estimated_microusd=estimated_microusd,
            actual_microusd=0,
            error=None,
            scores=None,
            seconds=None,
            report=None,
            revision=0,
            started_at=None,
            finished_at=None,
        )

    def skipped(self, error: RunError, at: datetime) -> "Run":
        """The same, but that it never starts, and why."""
        return replace(self, status=RunStatus.SKIPPED, error=error, finished_at=at)

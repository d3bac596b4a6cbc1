"""What exists in the account: jobs, models, transforms, tags. In memory; it goes when the emulator goes.

A job is its plan (who does what from when to when, in simulated time) and what became of it; its status at any
moment follows from both. It leaves out how a plan is made and carried out (automl.py, transform.py).
"""

import threading
from dataclasses import dataclass, field, replace

from app.emulator import constraints
from app.emulator.clock import Clock
from app.emulator.faults import Faults
from app.emulator.journal import Journal
from app.emulator.protocol import AwsError, Body, invalid
from app.emulator.s3 import S3

STOPPING = 30.0
"""Seconds from the stop of a job to its end."""

LATE = 600.0
"""Seconds from the end of a transform to outputs that are late."""

ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class Training:
    """A child job of an AutoML job, billed from start to end."""

    name: str
    arn: str
    algorithm: str
    start: float
    end: float


@dataclass(frozen=True)
class Plan:
    """`phases` are (secondary status, until) in order; the last one's `until` is the end of the job."""

    phases: tuple[tuple[str, float], ...]
    trainings: tuple[Training, ...]
    candidate_at: float
    ended_as: str

    @property
    def end(self) -> float:
        return self.phases[-1][1]

    def phase(self, now: float) -> str:
        return next((name for name, until in self.phases if now < until), self.phases[-1][0])

    def cut(self, moment: float, ended_as: str) -> "Plan":
        """The plan when all ends at that moment: what has not begun never does."""
        if moment >= self.end:
            return self
        kept = [phase for phase in self.phases if phase[1] < moment]
        return Plan(
            (*kept, (self.phases[len(kept)][0], moment)),
            tuple(replace(one, end=min(one.end, moment)) for one in self.trainings if one.start < moment),
            self.candidate_at,
            ended_as,
        )


@dataclass
class AutoMLJob:
    name: str
    arn: str
    request: Body
    created: float
    plan: Plan
    content: tuple[str, ...]
    """URIs of the training data."""
    model_uri: str
    image: str
    faults: frozenset[str]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    failure: str | None = None
    stopped_at: float | None = None
    learnt: threading.Event = field(default_factory=threading.Event)
    """Set when the model is there, or never will be."""
    carried_out: threading.Event = field(default_factory=threading.Event)
    worker: threading.Thread | None = None

    @property
    def at_rest(self) -> float:
        """When nothing more happens."""
        return self.end

    @property
    def end(self) -> float:
        return self.plan.end if self.stopped_at is None else self.stopped_at + STOPPING

    def status(self, now: float) -> tuple[str, str]:
        """Primary and secondary status."""
        if self.stopped_at is not None:
            return ("Stopped", "Stopped") if now >= self.end else ("Stopping", "Stopping")
        if now < self.end or not self.carried_out.is_set():
            return "InProgress", self.plan.phase(now)
        return ("Failed", "Failed") if self.failure else ("Completed", self.plan.ended_as)

    def has_ended(self, now: float) -> bool:
        return self.status(now)[0] in ENDED


@dataclass(frozen=True)
class Model:
    name: str
    arn: str
    request: Body
    created: float

    @property
    def containers(self) -> list[Body]:
        return [self.request["PrimaryContainer"]] if "PrimaryContainer" in self.request else self.request["Containers"]


@dataclass
class TransformJob:
    """Billed from `start` to the end."""

    name: str
    arn: str
    request: Body
    created: float
    start: float
    planned_end: float
    faults: frozenset[str]
    failure: str | None = None
    stopped_at: float | None = None
    carried_out: threading.Event = field(default_factory=threading.Event)
    worker: threading.Thread | None = None

    @property
    def at_rest(self) -> float:
        """When nothing more happens."""
        return self.end + (LATE if "late_out" in self.faults else 0.0)

    @property
    def end(self) -> float:
        return self.planned_end if self.stopped_at is None else self.stopped_at + STOPPING

    @property
    def billed_until(self) -> float:
        return min(self.planned_end, self.planned_end if self.stopped_at is None else self.stopped_at)

    def status(self, now: float) -> str:
        if self.stopped_at is not None:
            return "Stopped" if now >= self.end else "Stopping"
        if now < self.end or not self.carried_out.is_set():
            return "InProgress"
        return "Failed" if self.failure else "Completed"

    def has_ended(self, now: float) -> bool:
        return self.status(now) in ENDED


@dataclass
class Account:
    """All of it. `lock` is held while jobs are looked up, made or changed; never while S3 is asked."""

    clock: Clock
    faults: Faults
    journal: Journal
    s3: S3
    lock: threading.RLock = field(default_factory=threading.RLock)
    working: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    """Held by the one job that computes: the machine has other things to do."""
    automl: dict[str, AutoMLJob] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    transforms: dict[str, TransformJob] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """By ARN: what has an entry exists."""

    def jobs(self) -> list[AutoMLJob | TransformJob]:
        return [*self.automl.values(), *self.transforms.values()]

    def trainings(self) -> list[tuple[AutoMLJob, Training]]:
        return [(job, training) for job in self.automl.values() for training in job.plan.trainings]

    def keep_tags(self, arn: str, body: Body) -> None:
        self.tags[arn] = {tag["Key"]: tag["Value"] for tag in body.get("Tags", [])}

    def clear(self) -> None:
        """Forget all; jobs under way are stopped."""
        with self.lock:
            now = self.clock.now()
            for job in self.jobs():
                job.stopped_at = now if job.stopped_at is None else job.stopped_at
            self.automl.clear()
            self.models.clear()
            self.transforms.clear()
            self.tags.clear()
        self.clock.wake()


def key(name: str) -> str:
    """Names are one when they differ in case only."""
    return name.lower()


def not_found(operation: str, what: str, name: str) -> AwsError:
    """ResourceNotFound where the model names it for the operation; else AWS says ValidationException."""
    if "ResourceNotFound" in constraints.errors(operation):
        return AwsError("ResourceNotFound", f"Requested resource not found: {what} {name!r} does not exist.")
    return invalid(f'Could not find {what} "{name}".')


def in_use(operation: str, what: str, name: str) -> AwsError:
    if "ResourceInUse" in constraints.errors(operation):
        return AwsError("ResourceInUse", f"{what.capitalize()} {name!r} already exists; names are not case-sensitive.")
    return invalid(f'Cannot create already existing {what} "{name}".')

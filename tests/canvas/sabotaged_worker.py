"""`headroom worker` with one guard taken out, named by SABOTAGE: the checker must see what then goes wrong.

    python -m tests.canvas.sabotaged_worker

The guards themselves have no switch; they are replaced here, in the memory of this one process.
"""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from app.aws.faults import NameTaken, OutcomeUnknown
from app.aws.sagemaker import RealSageMaker
from app.canvas import requests
from app.cli import app
from app.errors import Transient
from app.services.janitor import Janitor
from app.services.runs import Runs
from app.storage import managed
from app.storage import runs as stored_runs
from app.storage.managed import Intent, Managed
from app.storage.tables import runs


async def _nothing(*_: Any) -> int:
    return 0


def no_intent() -> None:
    """What is about to be asked of AWS is not written down."""

    async def intend(_: Any, state: Managed, purpose: str, name: str, spec_hash: str, seconds: float) -> Intent:
        return Intent(state.run_id, state.attempt, purpose, name, spec_hash, datetime.now(UTC), False, False)

    managed.intend = intend


def no_fence() -> None:
    """A worker's writes reach the run, whoever has it by now, and whether or not it has ended."""
    stored_runs.keep = _nothing  # type: ignore[assignment]
    stored_runs._held = lambda claim: sa.update(runs).where(runs.c.id == claim.run_id)


def random_names() -> None:
    """A name on AWS does not follow from the run: a worker that comes after makes up another."""
    _salted(lambda: _SALT)


def no_adoption() -> None:
    """Where nobody heard what became of a call, or the name is taken, another name is."""
    failed: list[str] = []
    _salted(lambda: "".join(failed))
    create = RealSageMaker.create_automl

    async def create_automl(self: RealSageMaker, request: Mapping[str, Any]) -> str:
        try:
            return await create(self, request)
        except (OutcomeUnknown, NameTaken):
            failed.append("again")
            raise Transient("then by another name") from None

    RealSageMaker.create_automl = create_automl  # type: ignore[method-assign]


def no_janitor() -> None:
    """Nobody looks at what ended runs leave on AWS."""
    Janitor.sweep = Janitor.tidy = _nothing  # type: ignore[assignment, method-assign]


def no_reconciler() -> None:
    """Nobody looks for runs that a dead worker had."""
    Runs.reconcile = _nothing  # type: ignore[method-assign]


_SALT = uuid4().hex


def _salted(salt: Callable[[], str]) -> None:
    name = requests.job_name

    def salted(installation: str, run_id: str, attempt: int, purpose: str | None = None) -> str:
        return name(installation, run_id + salt(), attempt, purpose)

    requests.job_name = salted


if __name__ == "__main__":
    guards = (no_intent, no_fence, random_names, no_adoption, no_janitor, no_reconciler)
    {guard.__name__: guard for guard in guards}[os.environ["SABOTAGE"]]()
    app("worker")

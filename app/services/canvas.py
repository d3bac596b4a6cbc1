"""The managed run, one stage a tick: what it would cost, what it does next, and what it leaves behind.

    offer ─ reserve ─▶ staging ─▶ training ─▶ registering ─▶ transforming ─▶ collecting ─▶ judged as any run

A step does at most one thing on AWS that costs or lasts. Before it, a transaction writes down the intent, under the
claim's fence; after it, another that it was done. A step that is repeated, after a lost reply or a killed worker,
finds its own work by name. What a run that has ended leaves on AWS is the janitor's (janitor).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from app.aws.faults import NameTaken
from app.aws.sagemaker import AutoMLJob, JobStatus, SageMaker, TransformJob
from app.canvas import requests
from app.canvas.requests import FORECAST, Request, Size, Spec
from app.canvas.stages import Stage
from app.compute import Compute
from app.domain.cost import (
    TRAINING,
    Estimate,
    Microdollars,
    Settled,
    Usage,
    estimate,
    microdollars,
    shown,
    transform_instance,
)
from app.domain.dataset import Dataset, Server
from app.domain.forecast import Forecast, ForecastRequest
from app.domain.panel import MIN_VALUES, Frequency
from app.domain.run import Claim, Run, RunError
from app.errors import Fatal, Transient
from app.failpoints import reach
from app.services.costs import Terms
from app.services.fitting import Part, Source
from app.services.managed_files import collect, stage_inputs
from app.storage import ledger, managed
from app.storage import runs as stored_runs
from app.storage.database import Connection, Database
from app.storage.managed import Managed

log = logging.getLogger(__name__)

CANVAS = "canvas"
NO_MONEY = Terms(paid_runs=False, monthly_budget=0)
Job = TypeVar("Job", AutoMLJob, TransformJob)


class Files(Protocol):
    """The bucket that Canvas reads from and writes to."""

    async def put_file(self, key: str, file: Path) -> None: ...
    async def list(self, prefix: str) -> list[str]: ...
    async def get_file(self, key: str, target: Path) -> None: ...
    async def delete_prefix(self, prefix: str) -> None: ...


@dataclass(frozen=True)
class CanvasPolicy:
    """The settings a managed run lives by. `reason_off` says why there can be none."""

    reason_off: RunError | None
    bucket: str = ""
    role_arn: str = ""
    prefix: str = "headroom"
    country: str = "US"
    outlier_z: float = 6.0
    emulated: bool = False
    needs_owner: bool = False
    terms: Terms = NO_MONEY
    training_seconds: int = 1_800
    poll_seconds: float = 60.0
    call_seconds: float = 300.0
    output_patience_seconds: float = 600.0
    deadline_seconds: float = 4 * 3_600.0


@dataclass(frozen=True)
class Offer:
    """What a managed run would cost, or why there can be none."""

    refusal: RunError | None
    estimate: Estimate | None
    cap: Microdollars


@dataclass(frozen=True)
class Wait:
    """Nothing to do before so many seconds."""

    seconds: float
    stage: Stage


@dataclass(frozen=True)
class Collected:
    """Everything is here: files of quantiles as the judge reads them, and what it cost."""

    parts: tuple[Part, ...]
    windows: int
    settled: tuple[Settled, ...]
    facts: Mapping[str, Any]


class Canvas:
    def __init__(
        self,
        database: Database,
        compute: Compute,
        sagemaker: SageMaker | None,
        files: Files | None,
        work: Path,
        policy: CanvasPolicy,
    ) -> None:
        self._database = database
        self._compute = compute
        self._sagemaker = sagemaker
        self._files = files
        self._work = work
        self.policy = policy

    def offer(self, request: ForecastRequest, dataset: Dataset, servers: Sequence[Server]) -> Offer:
        """Whether this request can run, and what it is expected to cost."""
        cap = microdollars(request.max_cost_usd)
        if self.policy.reason_off is not None:
            return Offer(self.policy.reason_off, None, cap)
        eligible = [server for server in servers if server.counts.get(request.metric, 0) >= MIN_VALUES]
        steps = max((server.rows for server in eligible), default=0)
        windows = requests.scorable_windows(steps, request.horizon, request.backtest_windows)
        size = Size(
            servers=len(eligible),
            steps=steps,
            fewest_values=min((server.counts[request.metric] for server in eligible), default=0),
            horizon=request.horizon,
            levels=request.levels,
            features=len(dataset.contents.known_ahead),
        )
        if (refusal := requests.limits(size)) is not None:
            return Offer(refusal, None, cap)
        expected = estimate(
            servers=len(eligible),
            steps=steps,
            horizon=request.horizon,
            windows=windows,
            training_seconds=self.policy.training_seconds,
            prices=self.policy.terms.prices,
            assumed=self.policy.terms.assumed,
        )
        if (unpaid := self.policy.terms.refusal(expected.total, cap)) is not None:
            return Offer(RunError("budget-exceeded", unpaid), expected, cap)
        return Offer(None, expected, cap)

    async def reserve(self, connection: Connection, run: Run, owner: str, cap: Microdollars) -> RunError | None:
        """Set aside what the run may cost, under the month's budget; why not, when it has no room."""
        if self.policy.needs_owner and not owner:
            return RunError(
                "aws-unavailable", "Without API keys nobody owns a paid run; make one (headroom keys create)."
            )
        budget = self.policy.terms.monthly_budget
        if await ledger.reserve(
            connection,
            run_id=run.id,
            forecast_id=run.forecast_id,
            model=CANVAS,
            owner=owner,
            attempt=1,
            amount=cap,
            monthly_budget=budget,
        ):
            return None
        left = max(budget - await ledger.month_committed(connection), 0)
        return RunError(
            "budget-exceeded",
            f"Canvas may cost up to {shown(cap)} (max_cost_usd); {shown(left)} are left of this month's budget of "
            f"{shown(budget)}.",
        )

    async def step(
        self, claim: Claim, forecast: Forecast, source: Source, servers: Sequence[str], steps: int
    ) -> Wait | Collected:
        """One stage, as far as it goes. Raises Fatal, of which the run dies, or Transient: try again later."""
        state = await self._state(claim, forecast, steps)
        reach("canvas.begun")
        spec = spec_of(state)
        took = (datetime.now(UTC) - datetime.fromisoformat(state.facts["began"])).total_seconds()
        if took > self.policy.deadline_seconds:
            raise Fatal("AWS did not finish within the deadline; what it does is stopped.", slug="canvas-deadline")
        reach(f"canvas.{state.stage}")
        match Stage(state.stage):
            case Stage.STAGING:
                return await self._stage(claim, state, spec, source, servers)
            case Stage.TRAINING:
                return await self._train(claim, state, spec, forecast)
            case Stage.REGISTERING:
                return await self._register(claim, state, spec)
            case Stage.TRANSFORMING:
                return await self._transform(claim, state, spec)
            case Stage.COLLECTING:
                return await self._collect(state, spec, source, servers)
            case other:
                raise Fatal(f"A managed run that goes on cannot be at {other}.", slug="internal")

    async def _state(self, claim: Claim, forecast: Forecast, steps: int) -> Managed:
        async with self._database.begin() as connection:
            request = forecast.request
            known = await managed.get(connection, claim.run_id)
            if known is None:
                windows = requests.scorable_windows(steps, request.horizon, request.backtest_windows)
                spec = {
                    "run_id": str(claim.run_id),
                    "forecast_id": str(claim.forecast_id),
                    "installation": await managed.installation_id(connection),
                    "attempt": 1,
                    "bucket": self.policy.bucket,
                    "prefix": self.policy.prefix,
                    "role_arn": self.policy.role_arn,
                    "horizon": request.horizon,
                    "levels": list(request.levels),
                    "country": self.policy.country,
                    "max_runtime_seconds": self.policy.training_seconds,
                    "emulated": self.policy.emulated,
                    "regressors": [],
                    "frequency": "D",
                }
                facts = {"spec": spec, "windows": windows, "began": datetime.now(UTC).isoformat()}
                await managed.begin(connection, claim.run_id, claim.forecast_id, Stage.STAGING, facts)
                known = await managed.get(connection, claim.run_id)
        assert known is not None
        return known

    async def _stage(self, claim: Claim, state: Managed, spec: Spec, source: Source, servers: Sequence[str]) -> Wait:
        assert self._files is not None
        folder = self._folder(state)
        found: dict[str, Any] = {"inputs": {}}
        for number, purpose in enumerate(purposes(state)):
            cut = window_of(purpose) * spec.horizon
            written = await self._compute.run(
                stage_inputs,
                source,
                tuple(servers),
                spec.horizon,
                cut,
                folder / purpose,
                self.policy.outlier_z,
                seconds=1_800,
            )
            for file in written.files:
                await self._files.put_file(spec.input_prefix(purpose) + file.name, file)
            reach(f"canvas.uploaded.{purpose}")
            found["inputs"][purpose] = {"rows": written.rows, "files": len(written.files)}
            if number == 0:
                found["spec"] = {
                    **state.facts["spec"],
                    "regressors": list(written.regressors),
                    "frequency": written.frequency,
                    "transform_instance": transform_instance(written.megabytes)[0],
                }
        return await self._on(claim, state, Stage.TRAINING, found)

    async def _train(self, claim: Claim, state: Managed, spec: Spec, forecast: Forecast) -> Wait:
        assert self._sagemaker is not None
        request = requests.automl(spec, purposes(state)[-1])
        job, _ = await self._made(
            claim, state, "automl", request, spec.name, self._sagemaker.automl, self._sagemaker.create_automl
        )
        match job.status:
            case JobStatus.COMPLETED if job.best and job.best.containers:
                found = {
                    "containers": [dict(container) for container in job.best.containers],
                    "aws_metrics": job.best.metrics,
                    "automl_arn": job.arn,
                }
                return await self._on(claim, state, Stage.REGISTERING, found)
            case JobStatus.COMPLETED:
                raise Fatal("AutoML ended without a candidate.", slug="automl-no-candidate")
            case JobStatus.FAILED:
                raise Fatal(f"AutoML failed: {job.failure_reason or 'no reason was given'}", slug="automl-failed")
            case JobStatus.STOPPED:
                why = state.facts.get("stopped_because", "it was stopped on AWS")
                raise Fatal(f"AutoML was stopped: {why}", slug="automl-stopped")
            case _:
                await self._hold_to_cap(state, job, microdollars(forecast.request.max_cost_usd))
                return self._later(Stage.TRAINING)

    async def _hold_to_cap(self, state: Managed, job: AutoMLJob, cap: Microdollars) -> None:
        """Stop the job once what its child jobs have used is worth the cap."""
        assert self._sagemaker is not None
        spent = self.policy.terms.prices.total(await self._used(job))
        if spent < cap or job.status is JobStatus.STOPPING:
            return
        why = f"its jobs have used {shown(spent)}, and the cap is {shown(cap)}"
        async with self._database.begin() as connection:
            await managed.advance(connection, state.run_id, state.stage, {"stopped_because": why})
        await self._sagemaker.stop_automl(job.name)

    async def _register(self, claim: Claim, state: Managed, spec: Spec) -> Wait:
        assert self._sagemaker is not None
        request = requests.model(spec, state.facts["containers"])
        await self._made(claim, state, "model", request, spec.name, self._sagemaker.model, self._sagemaker.create_model)
        return await self._on(claim, state, Stage.TRANSFORMING, {})

    async def _transform(self, claim: Claim, state: Managed, spec: Spec) -> Wait:
        """The next transform that is not there, or a look at all of them."""
        assert self._sagemaker is not None
        jobs: list[TransformJob] = []
        for purpose in purposes(state):
            request = requests.transform(spec, purpose)
            name = spec.transform_name(purpose)
            job, created = await self._made(
                claim,
                state,
                f"transform-{purpose}",
                request,
                name,
                self._sagemaker.transform,
                self._sagemaker.create_transform,
            )
            if created:
                return Wait(0.0, Stage.TRANSFORMING)
            jobs.append(job)
        for job in jobs:
            if job.status in (JobStatus.FAILED, JobStatus.STOPPED):
                raise Fatal(
                    f"A transform {job.status.lower()}: {job.failure_reason or 'no reason was given'}",
                    slug="transform-failed",
                )
        if all(job.status is JobStatus.COMPLETED for job in jobs):
            return await self._on(claim, state, Stage.COLLECTING, {"transformed": datetime.now(UTC).isoformat()})
        return self._later(Stage.TRANSFORMING)

    async def _collect(self, state: Managed, spec: Spec, source: Source, servers: Sequence[str]) -> Wait | Collected:
        assert self._sagemaker is not None
        assert self._files is not None
        parts = []
        for purpose in purposes(state):
            folder = self._folder(state) / f"{purpose}-out"
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            keys = [key for key in await self._files.list(spec.output_prefix(purpose)) if key.endswith(".out")]
            if len(keys) < state.facts["inputs"][purpose]["files"]:
                since = datetime.fromisoformat(state.facts["transformed"])
                if (datetime.now(UTC) - since).total_seconds() > self.policy.output_patience_seconds:
                    raise Fatal("A transform completed, but its output never came.", slug="transform-output-missing")
                return self._later(Stage.COLLECTING)
            for number, key in enumerate(keys):
                await self._files.get_file(key, folder / f"{number:04}.out")
            reach(f"canvas.fetched.{purpose}")
            out = self._folder(state) / f"{purpose}.npy"
            cut = window_of(purpose) * spec.horizon
            await self._compute.run(
                collect, folder, source, tuple(servers), cut, spec.horizon, spec.levels, out, seconds=1_800
            )
            parts.append(Part(CANVAS, window_of(purpose), 0, len(servers), str(out)))
        job = await self._sagemaker.automl(spec.name)
        return Collected(
            tuple(parts),
            state.facts["windows"],
            tuple(await self.bill(state, spec, job)),
            {"aws_metrics": state.facts.get("aws_metrics")},
        )

    async def bill(self, state: Managed, spec: Spec, job: AutoMLJob | None) -> list[Settled]:
        """What was used so far, by purpose, from the billed seconds of the child jobs and the transforms."""
        assert self._sagemaker is not None
        found: list[Settled] = []
        if job is not None:
            found.append(self.policy.terms.prices.settled(TRAINING, await self._used(job)))
        for purpose in purposes(state):
            transform = await self._sagemaker.transform(spec.transform_name(purpose))
            if transform is not None:
                used = Usage(
                    transform.name, transform.instance_type, transform.billed_seconds(), transform.instance_count
                )
                found.append(self.policy.terms.prices.settled(f"transform-{purpose}", [used]))
        return found

    async def _used(self, job: AutoMLJob) -> list[Usage]:
        assert self._sagemaker is not None
        return [
            Usage(child.name, child.instance_type or "unknown", child.billed_seconds(), child.instance_count)
            for child in await self._sagemaker.children(job.arn, job.created, job.ended)
        ]

    async def _made(
        self,
        claim: Claim,
        state: Managed,
        purpose: str,
        request: Request,
        name: str,
        look: Callable[[str], Awaitable[Any]],
        create: Callable[[Mapping[str, Any]], Awaitable[str]],
    ) -> tuple[Any, bool]:
        """The job or model of that name: there already, or asked for once, now (True)."""
        async with self._database.begin() as connection:
            await stored_runs.keep(connection, claim)
            intent = await managed.intend(
                connection, state, purpose, name, requests.spec_hash(request), self.policy.call_seconds
            )
        reach(f"canvas.before.{purpose}")
        found = await look(name)
        created = found is None
        if found is None:
            try:
                await create(request)
            except NameTaken:
                log.warning("%s is there already: perhaps a call of ours whose reply was lost", name)
            reach(f"canvas.after.{purpose}")
            found = await look(name)
            if found is None:
                raise Transient(f"{name} was made and cannot be seen yet.")
        if not isinstance(found, AutoMLJob | TransformJob) or requests.is_ours(request, found):
            if not intent.created_on_aws:
                async with self._database.begin() as connection:
                    await managed.made(connection, intent)
                reach(f"canvas.committed.{purpose}")
            return found, created
        log.error("%s on AWS is a stranger's: other output, role or model than ours", name)
        raise Fatal(f"A job named {name} that is not ours stands on AWS; the run stops here.", slug="aws-name-taken")

    async def _on(self, claim: Claim, state: Managed, stage: Stage, found: dict[str, Any]) -> Wait:
        async with self._database.begin() as connection:
            await stored_runs.keep(connection, claim)
            await managed.advance(connection, state.run_id, stage, found)
        reach(f"canvas.reached.{stage}")
        return Wait(0.0, stage)

    def _folder(self, state: Managed) -> Path:
        """Swept with the forecast's other work."""
        return self._work / str(state.forecast_id) / CANVAS

    def _later(self, stage: Stage) -> Wait:
        reach(f"canvas.polled.{stage}")
        return Wait(self.policy.poll_seconds * random.uniform(0.8, 1.2), stage)


def spec_of(state: Managed) -> Spec:
    """What requests are built from, as it was written down when the run began."""
    known = state.facts["spec"]
    return Spec(
        **{
            **known,
            "levels": tuple(known["levels"]),
            "regressors": tuple(known["regressors"]),
            "frequency": Frequency(known["frequency"]),
        }
    )


def window_of(purpose: str) -> int:
    """0 is the forecast itself."""
    return 0 if purpose == FORECAST else int(purpose.removeprefix("window-"))


def purposes(state: Managed) -> list[str]:
    """The forecast, and the windows that are scored, newest first: the model is trained before the oldest."""
    return [FORECAST, *(f"window-{number}" for number in range(1, state.facts["windows"] + 1))]

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
from uuid import UUID

from app.aws.faults import NameTaken
from app.aws.sagemaker import AutoMLJob, JobStatus, SageMaker, TransformJob
from app.canvas import requests
from app.canvas.outcome import BadModelOutput
from app.canvas.requests import AGAIN, FIRST, FORECAST, Request, Size, Spec
from app.canvas.stages import Stage
from app.compute import Compute
from app.domain.cost import (
    TRAINING,
    Balance,
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
from app.services.reuse import Reused, find
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
    """The settings a managed run lives by. `reason_off` says why there can be none; `retrain`: the forecast comes from
    a model of its own, which has learned from the whole history; `keep_days`: how long a model may be used again."""

    reason_off: RunError | None
    bucket: str = ""
    role_arn: str = ""
    prefix: str = "headroom"
    country: str = "US"
    outlier_z: float = 6.0
    emulated: bool = False
    needs_owner: bool = False
    terms: Terms = NO_MONEY
    algorithms: tuple[str, ...] = ()
    kms_key: str | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    retrain: bool = False
    keep_days: float = 30.0
    sweep_seconds: float = 60.0
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

    def offer(
        self, request: ForecastRequest, dataset: Dataset, servers: Sequence[Server], reused: Reused | RunError | None
    ) -> Offer:
        """Whether this request can run, and what it is expected to cost."""
        cap = microdollars(request.max_cost_usd)
        if self.policy.reason_off is not None:
            return Offer(self.policy.reason_off, None, cap)
        if isinstance(reused, RunError):
            return Offer(reused, None, cap)
        eligible = [server for server in servers if server.counts.get(request.metric, 0) >= MIN_VALUES]
        steps = max((server.rows for server in eligible), default=0)
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
        windows = _windows(request, steps, reused)
        expected = estimate(
            servers=len(eligible),
            steps=steps,
            horizon=request.horizon,
            windows=windows,
            training_seconds=self.policy.training_seconds,
            trainings=0 if reused else 1 + self._retrains(windows),
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
            known = await managed.get(connection, claim.run_id)
            if known is None:
                facts = await self._first_facts(connection, claim, forecast.request, steps)
                await managed.begin(connection, claim.run_id, claim.forecast_id, Stage.STAGING, facts)
                known = await managed.get(connection, claim.run_id)
        assert known is not None
        return known

    async def _first_facts(
        self, connection: Connection, claim: Claim, request: ForecastRequest, steps: int
    ) -> dict[str, Any]:
        """What is settled when a run begins, whatever the settings say later."""
        reused = await find(connection, request)
        if isinstance(reused, RunError):
            raise Fatal(reused.detail, slug=reused.code)
        windows = _windows(request, steps, reused)
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
            "algorithms": list(self.policy.algorithms),
            "kms_key": self.policy.kms_key,
            "subnets": list(self.policy.subnets),
            "security_groups": list(self.policy.security_groups),
            "emulated": self.policy.emulated,
            "regressors": [],
            "frequency": "D",
        }
        facts = {"spec": spec, "windows": windows, "began": datetime.now(UTC).isoformat()}
        if reused:
            return facts | {
                "trainings": sorted(reused.containers, reverse=True),
                "containers": dict(reused.containers),
                "models_of": str(reused.run_id),
                "unseen": reused.unseen,
            }
        return facts | {"trainings": [FIRST, AGAIN] if self._retrains(windows) else [FIRST], "containers": {}}

    def _retrains(self, windows: int) -> bool:
        """Without a window to score, the first model has the whole history already."""
        return self.policy.retrain and windows > 0

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
        return await self._on(claim, state, Stage.REGISTERING if is_reused(state) else Stage.TRAINING, found)

    async def _train(self, claim: Claim, state: Managed, spec: Spec, forecast: Forecast) -> Wait:
        """The next training that is not there, or a look at all of them."""
        assert self._sagemaker is not None
        jobs: dict[str, AutoMLJob] = {}
        for training in state.facts["trainings"]:
            request = requests.automl(spec, FORECAST if training == AGAIN else purposes(state)[-1], training)
            name = spec.training_name(training)
            jobs[training], created = await self._made(
                claim,
                state,
                labelled(TRAINING, training),
                request,
                name,
                self._sagemaker.automl,
                self._sagemaker.create_automl,
            )
            if created:
                return Wait(0.0, Stage.TRAINING)
        for job in jobs.values():
            _raise_unless_well(job, state)
        if not all(job.status is JobStatus.COMPLETED for job in jobs.values()):
            await self._hold_to_cap(state, list(jobs.values()), microdollars(forecast.request.max_cost_usd))
            return self._later(Stage.TRAINING)
        best = {training: job.best for training, job in jobs.items() if job.best}
        found = {
            "containers": {
                training: [dict(one) for one in candidate.containers] for training, candidate in best.items()
            },
            "aws_metrics": best[FIRST].metrics,
        }
        return await self._on(claim, state, Stage.REGISTERING, found)

    async def _hold_to_cap(self, state: Managed, jobs: Sequence[AutoMLJob], cap: Microdollars) -> None:
        """Stop the jobs once what their child jobs have used is worth the cap."""
        assert self._sagemaker is not None
        spent = sum([self.policy.terms.prices.total(await self._used(job)) for job in jobs])
        going = [job for job in jobs if not job.status.is_terminal and job.status is not JobStatus.STOPPING]
        if spent < cap or not going:
            return
        why = f"its jobs have used {shown(spent)}, and the cap is {shown(cap)}"
        async with self._database.begin() as connection:
            await managed.advance(connection, state.run_id, state.stage, {"stopped_because": why})
        for job in going:
            await self._sagemaker.stop_automl(job.name)

    async def _register(self, claim: Claim, state: Managed, spec: Spec) -> Wait:
        assert self._sagemaker is not None
        for training in state.facts["trainings"]:
            request = requests.model(spec, state.facts["containers"][training], training)
            name, purpose = spec.training_name(training), labelled("model", training)
            _, created = await self._made(
                claim, state, purpose, request, name, self._sagemaker.model, self._sagemaker.create_model
            )
            if created:
                return Wait(0.0, Stage.REGISTERING)
        return await self._on(claim, state, Stage.TRANSFORMING, {})

    async def _transform(self, claim: Claim, state: Managed, spec: Spec) -> Wait:
        """The next transform that is not there, or a look at all of them."""
        assert self._sagemaker is not None
        jobs: list[TransformJob] = []
        for purpose in purposes(state):
            training = AGAIN if purpose == FORECAST and AGAIN in state.facts["trainings"] else FIRST
            request = requests.transform(spec, purpose, training)
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
            try:
                await self._compute.run(
                    collect, folder, source, tuple(servers), cut, spec.horizon, spec.levels, out, seconds=1_800
                )
            except BadModelOutput:
                async with self._database.begin() as connection:  # the janitor is to leave it, to be looked at
                    await managed.keep_output(connection, state.run_id)
                raise
            parts.append(Part(CANVAS, window_of(purpose), 0, len(servers), str(out)))
        facts: dict[str, Any] = {
            name: state.facts[name] for name in ("aws_metrics", "models_of") if name in state.facts
        }
        return Collected(tuple(parts), state.facts["windows"], tuple(await self.bill(state, spec)), facts)

    async def bill(self, state: Managed, spec: Spec) -> list[Settled]:
        """What was used so far, by purpose, from the billed seconds of the child jobs and the transforms."""
        assert self._sagemaker is not None
        found: list[Settled] = []
        for training in trainings(state):
            job = ours(spec, await self._sagemaker.automl(spec.training_name(training)))
            if job is not None:
                found.append(self.policy.terms.prices.settled(labelled(TRAINING, training), await self._used(job)))
        for purpose in purposes(state):
            transform = ours(spec, await self._sagemaker.transform(spec.transform_name(purpose)))
            if transform is not None:
                used = Usage(
                    transform.name, transform.instance_type, transform.billed_seconds(), transform.instance_count
                )
                found.append(self.policy.terms.prices.settled(f"transform-{purpose}", [used]))
        return found

    async def settle(self, connection: Connection, run_id: UUID, attempt: int, billed: Sequence[Settled]) -> Balance:
        """Book what was billed; raise the alarm where it is more than was set aside."""
        before = await ledger.balance(connection, run_id)
        balance = await ledger.settle(connection, run_id, attempt, billed)
        await stored_runs.book(connection, run_id, balance.settled)
        if balance.overrun > before.overrun:
            log.error(
                "run %s cost %s, %s more than was set aside for it",
                run_id,
                shown(balance.settled),
                shown(balance.overrun),
            )
        return balance

    async def release_unused(self) -> None:
        """Give back what was set aside for runs that ended before they began."""
        async with self._database.begin() as connection:
            for run_id in await managed.never_begun(connection):
                await ledger.release(connection, run_id, 1)

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
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in state.facts["spec"].items()
    }
    return Spec(**known | {"frequency": Frequency(known["frequency"])})


def ours(spec: Spec, job: Job | None) -> Job | None:
    """The job, unless a stranger made it under our name: it is not ours to stop, nor to pay. Ours write to their run's
    folder."""
    return job if job is not None and job.output_path.startswith(spec.uri(spec.folder)) else None


def window_of(purpose: str) -> int:
    """0 is the forecast itself."""
    return 0 if purpose == FORECAST else int(purpose.removeprefix("window-"))


def purposes(state: Managed) -> list[str]:
    """The forecast, and the windows that are scored, newest first: the model is trained before the oldest."""
    return [FORECAST, *(f"window-{number}" for number in range(1, state.facts["windows"] + 1))]


def is_reused(state: Managed) -> bool:
    return "models_of" in state.facts


def trainings(state: Managed) -> list[str]:
    """Those that this run pays for."""
    return [] if is_reused(state) else list(state.facts["trainings"])


def labelled(what: str, training: str) -> str:
    """`automl`, `automl-again`: a purpose in the ledger and among the intents."""
    return what if training == FIRST else f"{what}-{training}"


def _windows(request: ForecastRequest, steps: int, reused: Reused | None) -> int:
    """How many windows are scored: a model that is used again is not asked for what it has seen."""
    found = requests.scorable_windows(steps, request.horizon, request.backtest_windows)
    return min(found, reused.unseen) if reused else found


def _raise_unless_well(job: AutoMLJob, state: Managed) -> None:
    match job.status:
        case JobStatus.COMPLETED if not (job.best and job.best.containers):
            raise Fatal("AutoML ended without a candidate.", slug="automl-no-candidate")
        case JobStatus.FAILED:
            raise Fatal(f"AutoML failed: {job.failure_reason or 'no reason was given'}", slug="automl-failed")
        case JobStatus.STOPPED:
            why = state.facts.get("stopped_because", "it was stopped on AWS")
            raise Fatal(f"AutoML was stopped: {why}", slug="automl-stopped")

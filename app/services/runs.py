"""The life of a run: claimed by a tick, fitted in pieces, judged, stored whole or not at all.

    queued ── claim ──▶ running: pieces (model × chunk of servers × window) ─▶ judge ─▶ one guarded transaction
       ▲                   │
       └── handed back ────┘ when the worker stops; taken over when it falls silent (its lease runs out)

Pieces are files in the work folder, each whole or not there, so a run that is taken over goes on where it was.
No transaction is open while children compute. The fence is the claim's epoch: a worker that was frozen, doubled
or cancelled finds that its writes change no row, and stops.
"""

import asyncio
import logging
import random
import re
import shutil
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from app import forecasters
from app.canvas.stages import Stage
from app.compute import ChildDied, Compute, TooSlow
from app.domain.cost import Settled
from app.domain.risk import Levels
from app.domain.run import Claim, Run, RunError, RunStatus
from app.errors import Fatal, Transient, Unavailable
from app.failpoints import reach
from app.services import judging
from app.services.canvas import CANVAS, Canvas, Wait
from app.services.coordination import Gate, Once
from app.services.fitting import Fitted, Judged, Part, Piece, judge_run
from app.services.janitor import Janitor
from app.services.judging import Plan
from app.services.placing import Place
from app.storage import forecasts as stored_forecasts
from app.storage import runs as stored_runs
from app.storage.artifacts import Store
from app.storage.database import Connection, Database
from app.storage.faults import classify
from app.storage.queue import Queue
from app.storage.runs import Lost

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PAUSE = 10.0
"""Seconds before a run is tried again that something passing stood in the way of."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

STAND_IN = "seasonal_naive"
"""What answers for a server that its model cannot fit."""


@dataclass(frozen=True)
class Policy:
    """The settings a run lives by."""

    lease_seconds: float
    max_attempts: int
    chunk_seconds: float
    outlier_z: float
    country: str
    levels: Levels


@dataclass
class _Progress:
    """What the heartbeat shows; written by the work, read by the beat."""

    stage: str = "reading"
    done: int = 0
    total: int = 1

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0)


class Runs:
    def __init__(
        self,
        database: Database,
        queue: Queue,
        store: Store,
        compute: Compute,
        place: Place,
        canvas: Canvas,
        janitor: Janitor | None,
        work: Path,
        policy: Policy,
    ) -> None:
        self._database = database
        self._queue = queue
        self._store = store
        self._compute = compute
        self._place = place
        self._canvas = canvas
        self._janitor = janitor
        self._work = work
        self._policy = policy
        self._once = Once[Fitted]()
        self._gate = Gate()

    async def tick(self, run_id: UUID) -> None:
        """Take the run if it is there to be taken, and carry it as far as it goes. Safe to call twice.

        A run on which workers died is carried alone, so that it takes no other with it, and its deaths are its own.
        """
        async with self._database.connect() as connection:
            suspect = await stored_runs.attempts(connection, run_id) > 0
        async with self._gate.alone() if suspect else self._gate.shared():
            await self._carry(run_id)

    async def _carry(self, run_id: UUID) -> None:
        async with self._database.begin() as connection:
            reach("before_claim")
            claim = await stored_runs.claim(connection, run_id, self._policy.lease_seconds)
            reach("in_claim")
        if claim is None:
            return
        log.info("claimed run %s (%s), epoch %d, attempt %d", run_id, claim.model, claim.epoch, claim.attempt)
        if claim.attempt >= self._policy.max_attempts:
            crashed = f"its worker died {claim.attempt} times while it ran; the run is given up"
            await self._end(claim, RunError("worker-crashed", crashed))
            return
        reach("after_claim")
        reach(f"after_claim.{claim.model}")
        progress = _Progress(claim.stage or "reading", round(claim.progress * 100), 100)
        try:
            work = self._managed(claim) if claim.model == CANVAS else self._local(claim, progress)
            await self._held(claim, progress, work)
        except Lost:
            log.info("run %s is no longer ours (epoch %d)", run_id, claim.epoch)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(claim, "the worker stops", 0))
            raise
        except Fatal as error:
            await self._end(claim, RunError(error.slug, error.detail))
        except (ChildDied, TooSlow) as error:
            await self._end(
                claim, RunError("judging-failed", f"{claim.model} was fitted, but judging it failed: {error}")
            )
        except Exception as error:
            if (passing := classify(error)) is not None:
                log.warning("run %s goes back to the queue: %s", run_id, passing.detail)
                await self._give_back(claim, passing.slug, PAUSE)
                return
            log.exception("run %s failed by a fault of ours", run_id)
            await self._end(claim, RunError("internal", f"an internal fault ({type(error).__name__}); see the log"))
        if claim.model == CANVAS and self._janitor is not None:
            await self._janitor.tidy(run_id)

    async def _local(self, claim: Claim, progress: _Progress) -> None:
        """Fit, judge, store. What was computed outlives an absence of the database: storing is tried until it is ours
        no more."""
        judged, plan, pieces = await self._computed(claim, progress)
        while True:
            try:
                return await self._store_results(claim, plan, judged, pieces)
            except Exception as error:
                if not isinstance(classify(error), Unavailable):
                    raise
                log.warning("run %s: the database is away; its results wait", claim.run_id)
                await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _managed(self, claim: Claim) -> None:
        """One step of a managed run: it waits for AWS, or is judged and stored as any other."""
        plan = await self._plan(claim)
        try:
            step = await self._canvas.step(claim, plan.forecast, plan.source, plan.servers, plan.longest)
        except (Transient, Unavailable) as error:
            log.warning("run %s: %s; trying again later", claim.run_id, error.detail)
            step = Wait(self._canvas.policy.poll_seconds, Stage(claim.stage or Stage.STAGING))
        if isinstance(step, Wait):
            async with self._database.begin() as connection:
                if not await stored_runs.park(
                    connection, claim, step.seconds, stage=step.stage, progress=step.stage.progress
                ):
                    raise Lost
                await self._queue.defer(connection, claim.run_id, in_seconds=step.seconds)
                reach("in_park")
            reach("after_park")
            return
        plan = replace(plan, windows=step.windows)
        judged = await self._judged(plan, claim.model, step.parts)
        await self._store_results(claim, plan, judged, [], settled=step.settled, report=step.facts)

    async def reconcile(self) -> int:
        """Tick again what should have been ticked, sweep what ended runs left; how many ticks it deferred."""
        async with self._database.begin() as connection:
            late = await stored_runs.overdue(connection, self._policy.lease_seconds)
            if late:
                await self._queue.defer(connection, *late)
            await stored_forecasts.forget_old_keys(connection)
        await self._sweep()
        await self._canvas.release_unused()
        if self._janitor is not None:
            await self._janitor.sweep()
        return len(late)

    async def _held(self, claim: Claim, progress: _Progress, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The work's answer, the lease renewed meanwhile. Raises Lost, and stops the work, once it cannot be."""
        working = asyncio.create_task(work)
        beating = asyncio.create_task(self._beat(claim, progress))
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                beating.result()  # it ends by raising Lost
            return await working
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    async def _beat(self, claim: Claim, progress: _Progress) -> None:
        """Renew often enough to show progress, and to survive two lost beats."""
        lease = self._policy.lease_seconds
        while True:
            try:
                async with self._database.begin() as connection:
                    kept = await stored_runs.renew(
                        connection, claim, lease, stage=progress.stage, progress=progress.share
                    )
                if not kept:
                    raise Lost
            except Exception as error:
                if classify(error) is None:
                    raise
                log.warning("run %s: the database is away; the work goes on meanwhile", claim.run_id)
            await asyncio.sleep(min(1.0, lease / 3))

    async def _computed(self, claim: Claim, progress: _Progress) -> tuple[Judged, Plan, list[Fitted]]:
        plan = await self._plan(claim)
        forecaster = forecasters.load(claim.model)
        members: tuple[str, ...] = (claim.model,)
        if isinstance(forecaster, forecasters.Ensemble):
            members = forecaster.members(len(plan.servers))
        pieces = [piece for model in members for piece in self._pieces(plan, model)]
        progress.stage, progress.total = "fitting", len(pieces) + 1
        failures = _Failures(claim.model, len(plan.servers))

        async def one(piece: Piece) -> list[tuple[Part, Fitted]]:
            made = await self._fitted(plan, piece, failures)
            progress.done += 1
            reach("after_piece")
            return made

        made = [item for part in await _all(one(piece) for piece in pieces) for item in part]
        progress.stage = "judging"
        judged = await self._judged(plan, claim.model, [part for part, _ in made])
        progress.stage = "storing"
        return judged, plan, [fitted for _, fitted in made]

    async def _judged(self, plan: Plan, model: str, parts: Sequence[Part]) -> Judged:
        case = judging.case(plan, model, parts, self._policy.levels)
        return await self._compute.run(judge_run, case, seconds=self._policy.chunk_seconds)

    async def _plan(self, claim: Claim) -> Plan:
        plan = await judging.planned(self._database, self._store, claim.forecast_id, self._policy.country)
        if plan is None:
            raise Lost
        await asyncio.to_thread(self._folder(plan).mkdir, parents=True, exist_ok=True)
        earlier = 0 if claim.model == CANVAS else forecasters.load(claim.model).earlier_windows
        return replace(plan, windows=min(plan.windows, plan.forecast.request.backtest_windows + earlier))

    def _folder(self, plan: Plan) -> Path:
        return self._work / str(plan.forecast.id)

    def _pieces(self, plan: Plan, model: str) -> list[Piece]:
        """Chunk by chunk, so that a child which has read the history of one finds it at hand for the next window."""
        size = forecasters.member(model).chunk or len(plan.servers)
        return [
            self._piece(plan, model, window, start, plan.servers[start : start + size])
            for start in range(0, len(plan.servers), size)
            for window in range(plan.windows + 1)
        ]

    def _piece(self, plan: Plan, model: str, window: int, start: int, servers: tuple[str, ...]) -> Piece:
        return Piece(
            model=model,
            window=window,
            source=plan.source,
            start=start,
            servers=servers,
            horizon=plan.forecast.request.horizon,
            levels=plan.forecast.request.levels,
            outlier_z=self._policy.outlier_z,
            out=str(self._folder(plan) / f"{model}-{window}-{start}-{start + len(servers)}.npy"),
        )

    async def _fitted(self, plan: Plan, piece: Piece, failures: "_Failures") -> list[tuple[Part, Fitted]]:
        """The piece; where its fit fails, its halves; where a single server fails, the stand-in for it."""
        stop = piece.start + len(piece.servers)
        try:
            return [(Part(piece.model, piece.window, piece.start, stop, piece.out), await self._fit(piece))]
        except Exception as error:
            if classify(error) is not None:  # a full disk, or a cluster that is away, is no server's fault
                raise
            if len(piece.servers) > 1:
                middle = len(piece.servers) // 2
                halves = (
                    self._piece(plan, piece.model, piece.window, piece.start, piece.servers[:middle]),
                    self._piece(plan, piece.model, piece.window, piece.start + middle, piece.servers[middle:]),
                )
                return [item for half in halves for item in await self._fitted(plan, half, failures)]
            failures.add(piece.servers[0], error)
        stand_in = self._piece(plan, STAND_IN, piece.window, piece.start, piece.servers)
        fitted = await self._fit(stand_in)
        return [(Part(piece.model, piece.window, piece.start, stop, stand_in.out, STAND_IN), fitted)]

    async def _fit(self, piece: Piece) -> Fitted:
        """A piece that is there already, from an earlier claim or another run of the forecast, is not fitted again."""
        if await asyncio.to_thread(Path(piece.out).exists):
            return Fitted(0.0, 0, 0)
        return await self._once.run(piece.out, lambda: self._place.fit(piece, self._policy.chunk_seconds))

    async def _store_results(
        self,
        claim: Claim,
        plan: Plan,
        judged: Judged,
        fitted: list[Fitted],
        *,
        settled: Sequence[Settled] = (),
        report: Mapping[str, Any] | None = None,
    ) -> None:
        stood_in = judging.stood_in(judged)
        emulated = claim.model == CANVAS and self._canvas.policy.emulated
        changed = {
            "filled_values": sum(piece.filled for piece in fitted),
            "capped_outliers": sum(piece.capped for piece in fitted),
            **({"emulated": True} if emulated else {}),
        }
        seconds = sum(piece.seconds for piece in fitted)
        ended = judging.columns(plan, judged, seconds, {**(report or {}), **changed})
        warnings = []
        if stood_in:
            warnings.append(f"{claim.model}: {stood_in} of {len(plan.servers)} servers were answered by {STAND_IN}")
        if emulated:
            warnings.append("canvas: AWS is emulated here; a local model answered, and its dollars are made up")
        if judged.scores is None:
            why = "the history is too short: nothing could be scored on"
            if "models_of" in (report or {}):
                why = "its model has seen all that it could be scored on"
            warnings.append(f"{claim.model}: {why}; it is unscored")
        reach("before_store")
        async with self._database.begin() as connection:
            kept = await stored_runs.end(connection, claim, RunStatus.SUCCEEDED, stage="done", **ended)
            if not kept:
                raise Lost
            if settled:
                await self._canvas.settle(connection, claim.run_id, 1, settled)
            await judging.keep(connection, claim.run_id, plan, judged)
            await stored_forecasts.settle(connection, claim.forecast_id, warnings)
            reach("before_commit")
        reach("after_commit")
        log.info("run %s (%s) succeeded", claim.run_id, claim.model)

    async def _end(self, claim: Claim, error: RunError) -> None:
        log.warning("run %s (%s) failed: %s", claim.run_id, claim.model, error.detail)
        reach("before_end")
        async with self._database.begin() as connection:
            if not await stored_runs.end(connection, claim, RunStatus.FAILED, error):
                log.info("run %s is no longer ours (epoch %d)", claim.run_id, claim.epoch)
                return
            if claim.model == CANVAS:
                await self._fall_back(connection, claim)
            await stored_forecasts.settle(connection, claim.forecast_id)
            reach("in_end")
        reach("after_end")

    async def _fall_back(self, connection: Connection, claim: Claim) -> None:
        """Where only a managed model was asked for, and it failed, `auto` answers, if the caller will have it."""
        forecast = await stored_forecasts.get(connection, claim.forecast_id)
        if forecast is None or not forecast.request.fallback or any(run.model != CANVAS for run in forecast.runs):
            return
        auto = Run.queued(claim.forecast_id, "auto", len(forecast.runs), forecast.runs[0].servers)
        await stored_runs.insert(connection, [auto])
        await self._queue.defer(connection, auto.id)

    async def _give_back(self, claim: Claim, why: str, in_seconds: float) -> None:
        """Back to the queue, as soon as the database takes it. Not a crash."""
        while True:
            try:
                async with self._database.begin() as connection:
                    if await stored_runs.hand_back(connection, claim, why, in_seconds):
                        await self._queue.defer(connection, claim.run_id, in_seconds=in_seconds)
                return
            except Exception as error:
                if not isinstance(classify(error), Unavailable):
                    raise
                await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _sweep(self) -> None:
        """Drop the work folders of forecasts that have ended."""
        for folder in await asyncio.to_thread(lambda: list(self._work.iterdir()) if self._work.exists() else []):
            if not _UUID.fullmatch(folder.name):
                continue
            async with self._database.connect() as connection:
                forecast = await stored_forecasts.get(connection, UUID(folder.name))
            if forecast is None or forecast.is_terminal:
                await asyncio.to_thread(shutil.rmtree, folder, True)


class _Failures:
    """Counts the servers a model could not fit; raises Fatal when it is the model that is at fault."""

    def __init__(self, model: str, servers: int) -> None:
        self._model = model
        self._servers = servers
        self._failed: set[str] = set()
        self._limit = max(3, min(50, servers // 10))

    def add(self, server: str, error: BaseException) -> None:
        self._failed.add(server)
        log.warning("%s cannot fit server %r: %s: %s", self._model, server, type(error).__name__, error)
        if len(self._failed) > self._limit or len(self._failed) == self._servers:
            raise Fatal(
                f"{self._model} failed on {len(self._failed)} of {self._servers} servers, the last time with: {error}",
                slug="model-failed",
            )


async def _all(work: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Every answer; the first failure stops the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]

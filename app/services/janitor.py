"""What managed runs leave on AWS: results left for others, the rest stopped, settled, removed, until nothing is left.

Runs that have ended are swept whatever their end. Paid jobs that have no live run, also those that a frozen worker made
after its run was cancelled, are found by the names of this installation and stopped; another installation's are not
touched. AutoML's own artifacts stay for a while, so that its model can be used again, and so does output that could not
be used. Safe to repeat and to double.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pyarrow.parquet as pq

from app import scratch
from app.aws.sagemaker import AutoMLJob, JobStatus, Listed, SageMaker, TransformJob
from app.canvas.requests import name_prefix, results_folder, results_key
from app.domain.run import RunStatus
from app.errors import Fatal, Transient
from app.failpoints import reach
from app.services.answers import Answers, Selection
from app.services.canvas import Canvas, Files, ours, purposes, spec_of, trainings
from app.storage import forecasts as stored_forecasts
from app.storage import managed
from app.storage.database import Database
from app.storage.managed import Managed

log = logging.getLogger(__name__)

WATCHED = timedelta(days=7)
"""How long names are looked for after they were given."""


class Janitor:
    def __init__(
        self,
        database: Database,
        canvas: Canvas,
        answers: Answers,
        sagemaker: SageMaker,
        files: Files,
        scratch_folder: Path,
    ) -> None:
        self._database, self._canvas, self._answers = database, canvas, answers
        self._sagemaker, self._files, self._scratch = sagemaker, files, scratch_folder

    async def sweep(self) -> None:
        """One round. What AWS does not let happen now is tried again in the next."""
        async with self._database.connect() as connection:
            left = await managed.left(connection)
            outlived = await managed.outlived(connection, self._canvas.policy.keep_days)
            orphaned = await managed.orphaned(connection)
        for state in left:
            await self._tried(self._clean(state), f"run {state.run_id}: not clean yet")
        for state in outlived:
            await self._tried(self._forget(state), f"run {state.run_id}: its artifacts are still there")
        for state in orphaned:
            await self._tried(self._remove_results(state), f"run {state.run_id}: its results are still there")
        async with self._database.begin() as connection:
            due = await managed.may_search(connection, self._canvas.policy.sweep_seconds)
        if due:
            await self._tried(self._stop_strays(), "could not look for stray jobs")

    async def tidy(self, run_id: UUID) -> None:
        """What there is to do for one run that has ended, at once rather than in the next round."""
        async with self._database.connect() as connection:
            state = await managed.get(connection, run_id)
        if state is not None and not state.live:
            await self._tried(self._clean(state), f"run {run_id}: not clean yet")

    async def _tried(self, work: Awaitable[None], failed: str) -> None:
        try:
            await work
        except (Transient, Fatal) as error:
            log.warning("%s: %s", failed, error.detail)

    async def _clean(self, state: Managed) -> None:
        spec = spec_of(state)
        async with self._database.connect() as connection:
            intents = await managed.intents(connection, state)
        jobs = [ours(spec, await self._sagemaker.automl(spec.training_name(one))) for one in trainings(state)]
        transforms = [ours(spec, await self._sagemaker.transform(spec.transform_name(one))) for one in purposes(state)]
        if not await self._stopped(jobs, transforms):
            reach("clean.stopping")
            return
        if any(not intent.created_on_aws and not intent.expired for intent in intents):
            return  # its call may still be under way
        billed = await self._canvas.bill(state, spec)
        async with self._database.begin() as connection:
            await self._canvas.settle(connection, state.run_id, state.attempt, billed)
            reach("clean.billed")
        reach("clean.settled")
        await self._leave_results(state)
        for training in state.facts["trainings"]:
            await self._sagemaker.delete_model(spec.training_name(training))
        reach("clean.deregistered")
        for purpose in purposes(state):
            await self._files.delete_prefix(spec.input_prefix(purpose))
            if "output_kept" not in state.facts:
                await self._files.delete_prefix(spec.output_prefix(purpose))
        reach("clean.emptied")
        async with self._database.begin() as connection:
            await managed.gone(connection, state.run_id)
        reach("clean.gone")

    async def _leave_results(self, state: Managed) -> None:
        """The results of a run that succeeded, as Parquet in the bucket, for those who read there."""
        async with self._database.connect() as connection:
            forecast = await stored_forecasts.get(connection, state.forecast_id)
        runs = [run for run in forecast.runs if run.id == state.run_id] if forecast else []
        if forecast is None or runs[0].status is not RunStatus.SUCCEEDED:
            return
        with scratch.folder(self._scratch) as folder:
            file = folder / "canvas.parquet"
            writer: pq.ParquetWriter | None = None
            async for table in self._answers.tables(forecast, runs, Selection()):
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                await asyncio.to_thread(writer.write_table, table)
            assert writer is not None  # a selection of nothing is a table too
            writer.close()
            await self._files.put_file(results_key(state.forecast_id), file)
        async with self._database.begin() as connection:
            await managed.results_left(connection, state.run_id)

    async def _remove_results(self, state: Managed) -> None:
        await self._files.delete_prefix(results_folder(state.forecast_id))
        async with self._database.begin() as connection:
            await managed.results_removed(connection, state.run_id)

    async def _forget(self, state: Managed) -> None:
        await self._files.delete_prefix(spec_of(state).folder)
        async with self._database.begin() as connection:
            await managed.forgotten(connection, state.run_id)

    async def _stopped(self, jobs: Sequence[AutoMLJob | None], transforms: Sequence[TransformJob | None]) -> bool:
        """Ask what still runs to stop; whether nothing does."""
        running = False
        for job in jobs:
            if job is not None and not job.status.is_terminal:
                running = True
                if job.status is not JobStatus.STOPPING:
                    await self._sagemaker.stop_automl(job.name)
        for transform in transforms:
            if transform is not None and not transform.status.is_terminal:
                running = True
                if transform.status is not JobStatus.STOPPING:
                    await self._sagemaker.stop_transform(transform.name)
        return not running

    async def _stop_strays(self) -> None:
        async with self._database.connect() as connection:
            installation = await managed.installation_id(connection)
        prefix, since = name_prefix(installation), datetime.now(UTC) - WATCHED
        jobs = await self._sagemaker.list_automl(prefix, since)
        await self._stop(installation, jobs, self._sagemaker.stop_automl)
        transforms = await self._sagemaker.list_transforms(prefix, since)
        await self._stop(installation, transforms, self._sagemaker.stop_transform)

    async def _stop(self, installation: str, lines: Sequence[Listed], stop: Callable[[str], Awaitable[None]]) -> None:
        """Those without a live run that say they are ours; what a frozen worker made late is noted, to be paid and
        removed."""
        async with self._database.connect() as connection:
            live, unmade = await managed.live_names(connection), await managed.unmade_names(connection)
        for line in lines:
            running = line.status is JobStatus.IN_PROGRESS
            if line.name in live or not (running or line.name in unmade):
                continue
            if (await self._sagemaker.tags(line.arn)).get("headroom:installation") != installation:
                log.warning("%s has a name like ours and is a stranger's; it is left alone", line.name)
                continue
            async with self._database.begin() as connection:
                await managed.found(connection, line.name)
            if running:
                log.error("%s has no live run; it is stopped", line.name)
                await stop(line.name)

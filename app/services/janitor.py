"""What managed runs leave on AWS: stopped, settled, removed, until nothing is left.

Runs that have ended are swept whatever their end. Paid jobs that have no live run, also those that a frozen worker made
after its run was cancelled, are found by the names of this installation and stopped; another installation's are not
touched. AutoML's own artifacts stay, so that its model can be used again. Safe to repeat and to double.
"""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.aws.sagemaker import AutoMLJob, JobStatus, SageMaker, TransformJob
from app.canvas.requests import name_prefix
from app.errors import Fatal, Transient
from app.failpoints import reach
from app.services.canvas import Canvas, Files, purposes, spec_of
from app.storage import ledger, managed
from app.storage import runs as stored_runs
from app.storage.database import Database
from app.storage.managed import Managed

log = logging.getLogger(__name__)

WATCHED = timedelta(days=7)
"""How long names are looked for after they were given."""


class Janitor:
    def __init__(self, database: Database, canvas: Canvas, sagemaker: SageMaker, files: Files, work: Path) -> None:
        self._database, self._canvas = database, canvas
        self._sagemaker, self._files, self._work = sagemaker, files, work

    async def sweep(self) -> None:
        """One round. What AWS does not let happen now is tried again in the next."""
        async with self._database.connect() as connection:
            left = await managed.left(connection)
        for state in left:
            try:
                await self._clean(state)
            except (Transient, Fatal) as error:
                log.warning("run %s: not clean yet: %s", state.run_id, error.detail)
        try:
            await self._stop_strays()
        except (Transient, Fatal) as error:
            log.warning("could not look for stray jobs: %s", error.detail)

    async def _clean(self, state: Managed) -> None:
        spec = spec_of(state)
        async with self._database.connect() as connection:
            intents = await managed.intents(connection, state)
        job = await self._sagemaker.automl(spec.name)
        transforms = [await self._sagemaker.transform(spec.transform_name(purpose)) for purpose in purposes(state)]
        if not await self._stopped(job, transforms):
            reach("clean.stopping")
            return
        if any(not intent.created_on_aws and not intent.expired for intent in intents):
            return  # its call may still be under way
        billed = await self._canvas.bill(state, spec, job)
        async with self._database.begin() as connection:
            balance = await ledger.settle(connection, state.run_id, state.attempt, billed)
            await stored_runs.book(connection, state.run_id, balance.settled)
            reach("clean.billed")
        reach("clean.settled")
        await self._sagemaker.delete_model(spec.name)
        reach("clean.deregistered")
        for purpose in purposes(state):
            await self._files.delete_prefix(spec.input_prefix(purpose))
            await self._files.delete_prefix(spec.output_prefix(purpose))
        reach("clean.emptied")
        async with self._database.begin() as connection:
            await managed.gone(connection, state.run_id)
        reach("clean.gone")

    async def _stopped(self, job: AutoMLJob | None, transforms: list[TransformJob | None]) -> bool:
        """Ask what still runs to stop; whether nothing does."""
        running = False
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
            prefix = name_prefix(await managed.installation_id(connection))
            live = await managed.live_names(connection)
        since = datetime.now(UTC) - WATCHED
        for line in await self._sagemaker.list_automl(prefix, since):
            if line.name not in live and line.status is JobStatus.IN_PROGRESS:
                log.error("job %s has no live run; it is stopped", line.name)
                await self._sagemaker.stop_automl(line.name)
        for line in await self._sagemaker.list_transforms(prefix, since):
            if line.name not in live and line.status is JobStatus.IN_PROGRESS:
                log.error("transform %s has no live run; it is stopped", line.name)
                await self._sagemaker.stop_transform(line.name)

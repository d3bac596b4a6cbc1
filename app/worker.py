"""The worker: Procrastinate hands it ticks, it carries runs; a reconciler re-defers what nobody ticked. Beside them
alerts are judged and delivered.

On SIGTERM or Ctrl-C it takes no more, hands back what it has, and ends within seconds.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from uuid import UUID

from procrastinate import App, exceptions
from procrastinate.jobs import DeleteJobCondition, Status
from procrastinate.worker import Worker

from app.services.runs import Runs
from app.settings import Settings
from app.storage.faults import classify
from app.storage.queue import TICK
from app.wiring import assemble

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds that runs have to end by themselves once the worker stops; then they are handed back."""

DELIVERIES_AT_ONCE = 4
"""A receiver that is slow holds up one of them."""

ALERTS_EVERY = 1.0
"""Seconds between two looks for alerts, where there were none."""

AWAY = 5.0
"""Seconds more after a failure, so that the log stays readable."""

RUNS_AT_ONCE = 8
"""Runs carried side by side; their pieces share the child processes."""


async def work(settings: Settings) -> None:
    """Carry runs until told to stop. A database that goes away is waited for."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with assemble(settings) as services:
        app = services.queue.app

        @app.task(name=TICK)
        async def tick(run_id: str) -> None:
            await services.runs.tick(UUID(run_id))

        alerts = services.alerts
        reconciling = [
            asyncio.create_task(_reconcile(app, services.runs, settings.lease_seconds / 3)),
            asyncio.create_task(_drain(alerts.evaluate, ALERTS_EVERY)),
            *(asyncio.create_task(_drain(alerts.deliver, ALERTS_EVERY)) for _ in range(DELIVERIES_AT_ONCE)),
            asyncio.create_task(_drain(alerts.forget, 3_600)),
        ]
        try:
            while not stopping.is_set():
                await _carry(app, stopping)
        finally:
            for task in reconciling:
                task.cancel()
            await asyncio.gather(*reconciling, return_exceptions=True)


async def _carry(app: App, stopping: asyncio.Event) -> None:
    """One life of a Procrastinate worker; it ends when we stop, or when its connections do."""
    try:
        async with app.open_async():
            worker = Worker(
                app,
                concurrency=RUNS_AT_ONCE,
                shutdown_graceful_timeout=GRACE,
                delete_jobs=DeleteJobCondition.ALWAYS,
                install_signal_handlers=False,
            )
            running = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]
            told = asyncio.create_task(stopping.wait())
            await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            worker.stop()  # type: ignore[no-untyped-call]
            await running
    except exceptions.ConnectorException as error:
        log.warning("the queue is away (%s); trying again", error)
        await asyncio.wait({asyncio.create_task(stopping.wait())}, timeout=1)


async def _reconcile(app: App, runs: Runs, every: float) -> None:
    """Again and again: tick what is overdue, forget the jobs of dead workers. Doubled, it does no harm."""
    while True:
        try:
            late = await runs.reconcile()
            if late:
                log.warning("%d runs were overdue; ticked again", late)
            for job in await app.job_manager.get_stalled_jobs():
                await app.job_manager.finish_job(job, Status.FAILED, delete_job=True)
        except Exception as error:
            if classify(error) is None:
                log.exception("reconciling failed by a fault of ours; trying again")
            else:
                log.warning("the database is away (%s); reconciling later", type(error).__name__)
        await asyncio.sleep(every)


async def _drain(one: Callable[[], Awaitable[bool]], every: float) -> None:
    """One after the other for as long as there are any; then look again after a while."""
    while True:
        try:
            while await one():
                pass
        except Exception as error:
            if classify(error) is None:
                log.exception("alerts failed by a fault of ours; trying again")
            else:
                log.warning("the database is away (%s); alerts wait", type(error).__name__)
            await asyncio.sleep(AWAY)
        await asyncio.sleep(every)

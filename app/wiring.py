"""Settings → database, stores, processes, services. The only place that assembles."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.compute import Compute, Processes
from app.domain.risk import Levels
from app.services.answers import Answers
from app.services.datasets import Datasets
from app.services.datasets import Limits as UploadLimits
from app.services.forecasts import Forecasts, Limits
from app.services.health import Health
from app.services.keys import Keys
from app.services.risk import RiskService
from app.services.runs import Policy, Runs
from app.settings import Settings
from app.storage.artifacts import FolderStore
from app.storage.database import Database
from app.storage.health import Vitals
from app.storage.keys import KeyRows
from app.storage.queue import Queue, application
from app.storage.results import Results


@dataclass(frozen=True)
class Services:
    """What the API and the worker ask for."""

    settings: Settings
    database: Database
    queue: Queue
    datasets: Datasets
    forecasts: Forecasts
    answers: Answers
    runs: Runs
    risk: RiskService
    keys: Keys
    health: Health


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[Services]:
    """Everything, on one pool of connections and one pool of child processes; both end with the block."""
    assert settings.database_url is not None, "the command line fills it in, from the embedded PostgreSQL if need be"
    database = Database(settings.database_url)
    compute = Processes(settings.compute_processes, settings.compute_memory_mb)
    try:
        yield _services(settings, database, compute)
    finally:
        compute.close()
        await database.close()


def _services(settings: Settings, database: Database, compute: Compute) -> Services:
    queue = Queue(application(database.url))
    store = FolderStore(settings.data_dir / "datasets")
    results = Results(database)
    forecasts = Forecasts(database, queue, Limits(work=settings.work_limit, queue=settings.queue_limit))
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        datasets=Datasets(database, store, compute, _upload_limits(settings), settings.data_dir / "uploads"),
        forecasts=forecasts,
        answers=Answers(forecasts, results),
        runs=Runs(database, queue, store, compute, _work(settings), _policy(settings)),
        risk=RiskService(database, results, levels=_levels(settings), country=settings.country),
        keys=Keys(KeyRows(database.engine)),
        health=Health(Vitals(database.engine), store.check),
    )


def _work(settings: Settings) -> Path:
    return settings.data_dir / "work"


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(bytes=settings.max_upload_mb << 20, columns=settings.max_columns, cells=settings.max_cells)


def _policy(settings: Settings) -> Policy:
    return Policy(
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
        chunk_seconds=settings.chunk_seconds,
        outlier_z=settings.outlier_z,
        country=settings.country,
    )


def _levels(settings: Settings) -> Levels:
    return Levels(
        very_high=settings.level_very_high, high=settings.level_high, underutilized=settings.level_underutilized
    )

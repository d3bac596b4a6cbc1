"""Settings → database, stores, processes, services. The only place that assembles."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.aws.s3 import S3, S3Store
from app.compute import Compute, Processes
from app.domain.cost import LIST_PRICES, Assumptions, PriceTable, microdollars
from app.domain.risk import Levels
from app.errors import CannotStart
from app.services.accuracy import Accuracies
from app.services.answers import Answers
from app.services.costs import Costs, Terms
from app.services.datasets import Datasets, S3Sources
from app.services.datasets import Limits as UploadLimits
from app.services.forecasts import Forecasts, Limits
from app.services.health import Health
from app.services.keys import Keys
from app.services.risk import RiskService
from app.services.runs import Policy, Runs
from app.settings import Settings
from app.storage.artifacts import FolderStore, Store
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
    accuracy: Accuracies
    runs: Runs
    risk: RiskService
    costs: Costs
    keys: Keys
    health: Health


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[Services]:
    """Everything, on one pool of connections and one pool of child processes; both end with the block."""
    assert settings.database_url is not None, "the command line fills it in, from the embedded PostgreSQL if need be"
    database = Database(settings.database_url)
    compute = Processes(settings.compute_processes, settings.compute_memory_mb)
    try:
        services = _services(settings, database, compute)
        await services.datasets.sweep()
        yield services
    finally:
        compute.close()
        await database.close()


def _services(settings: Settings, database: Database, compute: Compute) -> Services:
    queue = Queue(application(database.url))
    store = _store(settings)
    results = Results(database)
    forecasts = Forecasts(database, queue, Limits(work=settings.work_limit, queue=settings.queue_limit))
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        datasets=Datasets(
            database, store, compute, _upload_limits(settings), settings.data_dir / "uploads", _sources(settings)
        ),
        forecasts=forecasts,
        answers=Answers(forecasts, results),
        accuracy=Accuracies(database, forecasts, results, store, compute),
        runs=Runs(database, queue, store, compute, _work(settings), _policy(settings)),
        risk=RiskService(database, results, levels=_levels(settings), country=settings.country),
        costs=Costs(database, _terms(settings)),
        keys=Keys(KeyRows(database.engine)),
        health=Health(Vitals(database.engine), store.check),
    )


def _store(settings: Settings) -> Store:
    if settings.store == "folder":
        return FolderStore(settings.data_dir / "datasets")
    if settings.bucket is None:
        raise CannotStart("HEADROOM_STORE=s3 needs HEADROOM_BUCKET, the bucket that keeps the history.")
    return S3Store(S3(), settings.bucket, "datasets/", settings.data_dir / "cache")


def _sources(settings: Settings) -> S3Sources:
    allowed = [place.strip() for place in settings.s3_allowed.split(",") if place.strip()]
    return S3Sources(allowed, S3().fetch)


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


def _terms(settings: Settings) -> Terms:
    try:
        prices = PriceTable.of(settings.prices) if settings.prices else LIST_PRICES
    except ValueError as error:
        raise CannotStart(f"HEADROOM_PRICES cannot be used: {error}.") from error
    try:
        assumed = Assumptions.of(settings.cost_assumptions)
    except ValueError as error:
        raise CannotStart(f"HEADROOM_COST_ASSUMPTIONS cannot be used: {error}.") from error
    return Terms(settings.paid_runs, microdollars(settings.monthly_budget_usd), prices, assumed)


def _levels(settings: Settings) -> Levels:
    return Levels(
        very_high=settings.level_very_high, high=settings.level_high, underutilized=settings.level_underutilized
    )

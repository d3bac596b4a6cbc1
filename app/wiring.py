"""Settings → database, stores, processes, services. The only place that assembles."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.aws.account import Account
from app.aws.s3 import S3, Bucket, S3Store
from app.aws.sagemaker import RealSageMaker
from app.canvas.requests import ALGORITHMS, RESULTS
from app.compute import Compute, Nodes, Processes
from app.domain.cost import LIST_PRICES, Assumptions, PriceTable, microdollars
from app.domain.rightsizing import Rules
from app.domain.risk import Levels
from app.domain.run import RunError
from app.errors import CannotStart
from app.services.accuracy import Accuracies
from app.services.alerts import Alerts
from app.services.answers import Answers
from app.services.aws_check import AwsCheck, Setup
from app.services.by_hand import ByHand
from app.services.canvas import Canvas, CanvasPolicy
from app.services.comparisons import Comparisons
from app.services.costs import Costs, Terms
from app.services.datasets import Datasets, S3Sources
from app.services.datasets import Limits as UploadLimits
from app.services.explanations import Explanations
from app.services.fleets import Fleets, Planning
from app.services.forecasts import Forecasts, Limits
from app.services.health import Health
from app.services.janitor import Janitor
from app.services.keys import Keys
from app.services.placing import Elsewhere, Here
from app.services.profiles import ProfileService
from app.services.recommendations import Defaults, Recommendations
from app.services.replay import Means
from app.services.risk import RiskService
from app.services.risk_diff import DiffService
from app.services.rollups import RollupService
from app.services.runs import Policy, Runs
from app.services.scenarios import ScenarioService
from app.services.webhooks import Allowed, Webhooks
from app.settings import Settings
from app.storage.artifacts import FolderStore, Store
from app.storage.database import Database
from app.storage.datadir import make_folder
from app.storage.health import Vitals
from app.storage.keys import KeyRows
from app.storage.managed import installation_id
from app.storage.queue import Queue, application
from app.storage.results import Results

EMULATED_BUCKET = "headroom-emulated"
EMULATED_ROLE = "arn:aws:iam::123456789012:role/headroom-emulated"


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
    comparisons: Comparisons
    rollups: RollupService
    scenarios: ScenarioService
    risk_diff: DiffService
    profiles: ProfileService
    recommendations: Recommendations
    explanations: Explanations
    runs: Runs
    by_hand: ByHand
    risk: RiskService
    alerts: Alerts
    costs: Costs
    keys: Keys
    health: Health


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[Services]:
    """Everything, on one pool of connections and one pool of child processes; both end with the block."""
    assert settings.database_url is not None, "the command line fills it in, from the embedded PostgreSQL if need be"
    make_folder(settings.data_dir)
    database = Database(settings.database_url)
    nodes = _nodes(settings)
    compute = Processes(settings.compute_processes, settings.compute_memory_mb, settings.data_dir / "scratch")
    try:
        async with database.connect() as connection:
            installation = await installation_id(connection)
        services = _services(settings, database, compute, nodes, installation)
        await services.datasets.sweep()
        yield services
    finally:
        if nodes is not None:
            await nodes.close()
        compute.close()
        await database.close()


@asynccontextmanager
async def aws_check(settings: Settings) -> AsyncIterator[AwsCheck]:
    """Apart from the rest, which may not come up while something is wrong with AWS."""
    assert settings.database_url is not None, "as in assemble"
    database = Database(settings.database_url)
    policy, endpoint = _canvas(settings), settings.aws_endpoint_url
    prefixes = [f"{policy.prefix}/", RESULTS] + (["datasets/"] if settings.store == "s3" else [])
    setup = Setup(
        place=settings.aws,
        endpoint=endpoint,
        bucket=policy.bucket,
        role_arn=policy.role_arn,
        prefixes=tuple(prefixes),
        terms=policy.terms,
        cap=microdollars(settings.max_cost_usd),
        kms_key=policy.kms_key,
    )
    try:
        keys = Keys(KeyRows(database))
        yield AwsCheck(Account(endpoint_url=endpoint), RealSageMaker(endpoint_url=endpoint), keys, setup)
    finally:
        await database.close()


def _nodes(settings: Settings) -> Nodes | None:
    if settings.compute_url is None:
        return None
    from app.compute.cluster import Cluster  # loads Dask, which those without a cluster need not carry

    return Cluster(settings.compute_url, settings.compute_memory_mb)


def _services(
    settings: Settings, database: Database, compute: Compute, nodes: Nodes | None, installation: str
) -> Services:
    queue = Queue(application(database.url))
    store, work = _store(settings, installation), settings.data_dir / "work" / installation
    place = Elsewhere(compute, nodes) if nodes else Here(compute)
    results = Results(database)
    fleets = Fleets(database, results, _levels(settings))
    profiles = ProfileService(database, fleets, store, compute)
    aws = _aws(settings)
    canvas = Canvas(
        database,
        compute,
        aws.sagemaker if aws else None,
        aws.bucket if aws else None,
        work,
        _canvas(settings),
    )
    forecasts = Forecasts(database, queue, canvas, Limits(work=settings.work_limit, queue=settings.queue_limit))
    answers = Answers(forecasts, results)
    janitor = (
        Janitor(database, canvas, answers, aws.sagemaker, aws.bucket, settings.data_dir / "scratch") if aws else None
    )
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        datasets=Datasets(
            database, store, compute, _upload_limits(settings), settings.data_dir / "uploads", _sources(settings)
        ),
        forecasts=forecasts,
        answers=answers,
        accuracy=Accuracies(database, forecasts, results, store, compute),
        comparisons=Comparisons(database, results),
        rollups=RollupService(fleets),
        scenarios=ScenarioService(fleets, _planning(settings)),
        risk_diff=DiffService(fleets),
        profiles=profiles,
        recommendations=Recommendations(database, fleets, profiles, compute, _recommended(settings)),
        explanations=Explanations(database, answers, store, compute, settings.country, settings.outlier_z),
        runs=Runs(database, queue, store, compute, place, canvas, janitor, work, _policy(settings)),
        by_hand=ByHand(database, store, compute, settings.country, _levels(settings), settings.chunk_seconds),
        risk=RiskService(database, fleets, country=settings.country, planning=_planning(settings)),
        alerts=Alerts(database, fleets, Webhooks(Allowed.of(_listed(settings.webhook_allow)))),
        costs=Costs(database, _terms(settings)),
        keys=Keys(KeyRows(database)),
        health=Health(Vitals(database.engine), store.check),
    )


@dataclass(frozen=True)
class _Aws:
    """The clients of a place where AWS answers."""

    sagemaker: RealSageMaker
    bucket: Bucket


def _aws(settings: Settings) -> _Aws | None:
    policy = _canvas(settings)
    if policy.reason_off is not None:
        return None
    endpoint = settings.aws_endpoint_url
    return _Aws(RealSageMaker(endpoint_url=endpoint), Bucket(S3(endpoint_url=endpoint), policy.bucket))


def _canvas(settings: Settings) -> CanvasPolicy:
    emulated = settings.aws == "emulated"
    bucket = settings.bucket or (EMULATED_BUCKET if emulated else "")
    role = settings.role_arn or (EMULATED_ROLE if emulated else "")
    subnets, security_groups = _network(settings)
    return CanvasPolicy(
        reason_off=_reason_off(settings, bucket, role),
        bucket=bucket,
        role_arn=role,
        country=settings.country,
        outlier_z=settings.outlier_z,
        emulated=emulated,
        needs_owner=not emulated,
        terms=_terms(settings),
        training_seconds=settings.canvas_minutes * 60,
        call_seconds=5.0 if emulated else 300.0,
        algorithms=_algorithms(settings),
        kms_key=settings.kms_key,
        retrain=settings.canvas_retrain,
        keep_days=settings.canvas_keep_days,
        sweep_seconds=min(settings.canvas_sweep_seconds, 1.0) if emulated else settings.canvas_sweep_seconds,
        subnets=subnets,
        security_groups=security_groups,
        poll_seconds=min(settings.canvas_poll_seconds, 1.0) if emulated else settings.canvas_poll_seconds,
    )


def _algorithms(settings: Settings) -> tuple[str, ...]:
    named = _listed(settings.canvas_algorithms)
    if unknown := [name for name in named if name not in ALGORITHMS]:
        raise CannotStart(f"HEADROOM_CANVAS_ALGORITHMS: there is no {', '.join(unknown)}; {', '.join(ALGORITHMS)} are.")
    return named


def _network(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    subnets, groups = _listed(settings.subnets), _listed(settings.security_groups)
    if bool(subnets) != bool(groups):
        raise CannotStart("HEADROOM_SUBNETS and HEADROOM_SECURITY_GROUPS go together: set both, or neither.")
    return subnets, groups


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _reason_off(settings: Settings, bucket: str, role: str) -> RunError | None:
    if settings.aws == "off":
        return RunError("aws-unavailable", "Canvas is not set up in this installation (HEADROOM_AWS is off)")
    if settings.aws == "emulated" and settings.aws_endpoint_url is None:
        detail = "AWS is to be emulated, but AWS_ENDPOINT_URL does not say where (headroom run does; headroom emulator)"
        return RunError("aws-unavailable", detail)
    missing = [name for name, value in (("HEADROOM_BUCKET", bucket), ("HEADROOM_ROLE_ARN", role)) if not value]
    if missing:
        return RunError(
            "aws-unavailable", f"Canvas is not set up in this installation: {', '.join(missing)} is not set"
        )
    return None


def _store(settings: Settings, installation: str) -> Store:
    """Apart by installation: two databases may share a folder or a bucket."""
    if settings.store == "folder":
        return FolderStore(settings.data_dir / "datasets" / installation)
    if settings.bucket is None:
        raise CannotStart("HEADROOM_STORE=s3 needs HEADROOM_BUCKET, the bucket that keeps the history.")
    return S3Store(S3(), settings.bucket, f"datasets/{installation}/", settings.data_dir / "cache" / installation)


def _sources(settings: Settings) -> S3Sources:
    return S3Sources(list(_listed(settings.s3_allowed)), S3().fetch)


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(bytes=settings.max_upload_mb << 20, columns=settings.max_columns, cells=settings.max_cells)


def _policy(settings: Settings) -> Policy:
    return Policy(
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
        chunk_seconds=settings.chunk_seconds,
        outlier_z=settings.outlier_z,
        country=settings.country,
        levels=_levels(settings),
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


def _recommended(settings: Settings) -> Defaults:
    rules = Rules(settings.epsilon, settings.downsize_halvings, settings.level_underutilized)
    return Defaults(rules, microdollars(settings.server_usd_per_month))


def _levels(settings: Settings) -> Levels:
    return Levels(
        very_high=settings.level_very_high, high=settings.level_high, underutilized=settings.level_underutilized
    )


def _planning(settings: Settings) -> Planning:
    return Planning(lead_time_days=settings.lead_time_days, buffer_pct=settings.headroom_buffer_pct)


def replay_means(settings: Settings) -> Means:
    """How a replay computes: as a run of a service with these settings does."""
    return Means(
        country=settings.country,
        outlier_z=settings.outlier_z,
        seconds=settings.chunk_seconds,
        limits=_upload_limits(settings),
        levels=_levels(settings),
        rules=Rules(settings.epsilon, settings.downsize_halvings, settings.level_underutilized),
    )

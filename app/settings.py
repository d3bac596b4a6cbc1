"""Every setting, in one place. Only main, worker, cli and wiring read it; see docs/operations.md for the table."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_data_dir() -> Path:
    """`/var/lib/headroom` as root, else `$XDG_DATA_HOME/headroom` (`~/.local/share/headroom`)."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/headroom")
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "headroom"


class Settings(BaseSettings):
    """Read once, at start, from the environment (`HEADROOM_*`, `DATABASE_URL`, `COMPUTE_URL`)."""

    model_config = SettingsConfigDict(env_prefix="HEADROOM_", populate_by_name=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8000, ge=1, le=65535, description="port the API listens on")
    data_dir: Path = Field(default_factory=default_data_dir, description="history files and the embedded database")
    database_url: str | None = Field(
        None, validation_alias="DATABASE_URL", description="PostgreSQL 15+; without it the embedded one is started"
    )
    compute_url: str | None = Field(
        None,
        validation_alias="COMPUTE_URL",
        description="a Dask scheduler, whose nodes fit; without it processes here do",
    )
    compute_processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="child processes for fits"
    )
    compute_memory_mb: int = Field(8192, ge=256, description="address space of one child process")
    chunk_seconds: int = Field(900, ge=1, description="longest time one chunk of servers may take to fit")
    aws: Literal["off", "emulated", "aws"] = Field("off", description="where `canvas` runs")
    aws_endpoint_url: str | None = Field(
        None, validation_alias="AWS_ENDPOINT_URL", description="where AWS is, if not at AWS; `headroom run` sets it"
    )
    bucket: str | None = Field(None, description="S3 bucket for Canvas and for the history, if it is to be in S3")
    canvas_minutes: int = Field(20, ge=1, description="longest time that AutoML may train")
    canvas_poll_seconds: float = Field(60.0, gt=0, description="between two looks at a job on AWS")
    canvas_algorithms: str = Field(
        "", description="what AutoML trains, comma-separated: cnn-qr, deepar, prophet, npts, arima, ets; empty is all"
    )
    canvas_retrain: bool = Field(
        False, description="train once more, on the whole history, for the forecast: twice the price"
    )
    canvas_keep_days: float = Field(30.0, ge=0, description="how long a trained model stays, to be used again")
    canvas_sweep_seconds: float = Field(60.0, gt=0, description="between two searches of AWS for stray jobs")
    kms_key: str | None = Field(None, description="KMS key for what SageMaker writes and for its volumes")
    subnets: str = Field(
        "", description="private network of the jobs, comma-separated; with `HEADROOM_SECURITY_GROUPS`"
    )
    security_groups: str = Field("", description="security groups of the jobs, comma-separated")
    role_arn: str | None = Field(None, description="execution role that SageMaker assumes")
    store: Literal["folder", "s3"] = Field("folder", description="where the history files are kept")
    s3_allowed: str = Field("", description="buckets that POST /datasets may read, comma-separated `bucket[/prefix]`")
    max_cost_usd: float = Field(0.20, ge=0, allow_inf_nan=False, description="default cost cap of one forecast")
    monthly_budget_usd: float = Field(0.0, ge=0, allow_inf_nan=False, description="no paid run starts without one")
    paid_runs: bool = Field(True, description="the kill switch: off, and no paid run starts, whatever the budget")
    prices: dict[str, str | float] = Field(
        default_factory=dict, description="instance → dollars an hour, with `as_of`, instead of the list prices"
    )
    cost_assumptions: dict[str, str | float] = Field(
        default_factory=dict, description="what estimates assume where AWS says nothing; see docs/costs.md"
    )
    country: str = Field("US", min_length=2, max_length=2, description="whose holidays the models know")
    outlier_z: float = Field(6.0, ge=0, description="rolling z-score above which a value is capped; 0 turns it off")
    level_very_high: float = Field(90.0, description="risk level `very_high` above this max p90")
    level_high: float = Field(80.0, description="risk level `high` above this max p90")
    level_underutilized: float = Field(40.0, description="risk level `underutilized` below this mean p50")
    lead_time_days: float = Field(
        30.0, ge=0, le=36_500, description="days from an order to the room it brings, of servers that name none"
    )
    headroom_buffer_pct: float = Field(
        0.0, ge=0, le=100, description="points of headroom kept back from what counts as usable"
    )
    epsilon: float = Field(
        0.05, gt=0, le=0.5, description="breach probability that a recommended size may have, on each metric"
    )
    downsize_halvings: int = Field(2, ge=1, le=6, description="how often a recommended size may be half of the last")
    server_usd_per_month: float = Field(
        100.0, ge=0, le=10_000_000, description="price of a server whose dataset has no `usd_per_month` or `cost`"
    )
    max_upload_mb: int = Field(2048, ge=1, description="largest upload, compressed or not")
    max_columns: int = Field(1000, ge=3, description="most columns of an upload")
    max_cells: int = Field(400_000_000, ge=1, description="most rows × metrics of an upload")
    work_limit: int = Field(200_000_000, ge=1, description="most servers × horizon × models × quantiles of a forecast")
    webhook_allow: str = Field("", description="private hosts and networks that alerts may be sent to, comma-separated")
    queue_limit: int = Field(10_000, ge=1, description="most runs that may wait")
    lease_seconds: int = Field(30, ge=1, description="a run whose worker is silent this long is taken over")
    max_attempts: int = Field(3, ge=1, description="crashes of a worker on one run before it is given up")
    allowed_hosts: str = Field("", description="further Host names that may be used to reach the API, comma-separated")
    cors_origins: str = Field(
        "", description="origins of other sites whose pages may call the API, comma-separated `https://name[:port]`"
    )

"""The first tables, the unnesting view, the queue."""

import sqlalchemy as sa
from alembic import op
from procrastinate.schema import SchemaManager
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FORECAST_QUANTILES = """
CREATE VIEW forecast_quantiles AS
SELECT runs.forecast_id, results.run_id, runs.model, results.server_id,
       results.as_of + step.number * results.step AS timestamp,
       step.p10, step.p50, step.p90
FROM results
JOIN runs ON runs.id = results.run_id
CROSS JOIN LATERAL unnest(results.p10, results.p50, results.p90) WITH ORDINALITY AS step (p10, p50, p90, number)
"""

INSTALLATION_ID = """
INSERT INTO installation (id)
SELECT string_agg(substr('abcdefghijklmnopqrstuvwxyz234567', 1 + floor(random() * 32)::int, 1), '')
FROM generate_series(1, 4)
"""


def upgrade() -> None:
    op.execute("CREATE SEQUENCE revisions")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False, comment="first characters of the key, to tell keys apart"),
        sa.Column("hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the 256-bit key"),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("parent_id", sa.UUID(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False, comment="key of the Parquet artifact in the store"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the bytes that were uploaded"),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("servers", sa.Integer(), nullable=False),
        sa.Column("metrics", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("units", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attributes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("known_ahead", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("frequency", sa.Text(), nullable=False, comment="D or H"),
        sa.Column("start", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("end", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("quality", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["datasets.id"], name=op.f("fk_datasets_parent_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_index(
        "ix_datasets_newest",
        "datasets",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(op.f("ix_datasets_parent_id"), "datasets", ["parent_id"], unique=False)
    op.create_table(
        "installation",
        sa.Column("sole", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column(
            "id", sa.Text(), nullable=False, comment="4 characters, made at the first migration, part of AWS names"
        ),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("sole", name=op.f("ck_installation_one_row")),
        sa.PrimaryKeyConstraint("sole", name=op.f("pk_installation")),
    )
    op.create_table(
        "dataset_servers",
        sa.Column("dataset_id", sa.UUID(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("first_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column(
            "last_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="the server's own last row: as_of of its forecasts",
        ),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column(
            "counts",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="metric → values that are not missing",
        ),
        sa.Column("maxima", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="metric → largest value"),
        sa.Column(
            "attributes",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="attribute → text or number, the server's last one",
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_servers_dataset_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dataset_id", "server_id", name=op.f("pk_dataset_servers")),
    )
    op.create_table(
        "forecasts",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("dataset_id", sa.UUID(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column(
            "request", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="the body with its defaults"
        ),
        sa.Column(
            "quantiles",
            postgresql.ARRAY(sa.Float()),
            nullable=False,
            comment="levels asked for and 0.1, 0.5, 0.9, ascending",
        ),
        sa.Column("status", sa.Text(), nullable=False, comment="derived from the runs, written with their transitions"),
        sa.Column("warnings", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
        sa.Column("best_model", sa.Text(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("nextval('revisions')"), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_forecasts_dataset_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forecasts")),
    )
    op.create_index(op.f("ix_forecasts_dataset_id"), "forecasts", ["dataset_id"], unique=False)
    op.create_index(
        "ix_forecasts_metric_finished",
        "forecasts",
        ["status", "metric", sa.literal_column("finished_at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_forecasts_newest",
        "forecasts",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.Text(), nullable=False, comment="id of the API key, or empty where there are none"),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False, comment="of the body after defaults"),
        sa.Column("forecast_id", sa.UUID(), nullable=True, comment="what it made"),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["forecast_id"], ["forecasts.id"], name=op.f("fk_idempotency_keys_forecast_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_forecast_id"), "idempotency_keys", ["forecast_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("forecast_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False, comment="order in the request"),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=True),
        sa.Column("progress", sa.Float(), server_default="0", nullable=False),
        sa.Column("servers", sa.Integer(), server_default="0", nullable=False, comment="eligible ones"),
        sa.Column("fallback_servers", sa.Integer(), server_default="0", nullable=False),
        sa.Column("estimated_microusd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("actual_microusd", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "error",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="{code, detail} of a failed or skipped run",
        ),
        sa.Column(
            "scores", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="pooled over the reported windows"
        ),
        sa.Column("seconds", sa.Float(), nullable=True, comment="of work, all children"),
        sa.Column(
            "report",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="what preparation changed, what crossed, which weights",
        ),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False, comment="fence: one per claim"),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False, comment="workers that died on it"),
        sa.Column(
            "lease_until",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="the claim ends unless it is renewed; database clock",
        ),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("nextval('revisions')"), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["forecast_id"], ["forecasts.id"], name=op.f("fk_runs_forecast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("forecast_id", "model", name=op.f("uq_runs_forecast_id_model")),
    )
    op.create_index(
        "ix_runs_open", "runs", ["due_at"], unique=False, postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.create_table(
        "results",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column(
            "as_of",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="the server's last row; step k is as_of + k × step",
        ),
        sa.Column("step", sa.Interval(), nullable=False),
        sa.Column("p10", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("p50", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("p90", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column(
            "others",
            postgresql.ARRAY(sa.REAL()),
            nullable=True,
            comment="the further levels, one after the other, ascending",
        ),
        sa.Column(
            "fallback", sa.Text(), nullable=True, comment="the model that stood in, when the run's own could not"
        ),
        sa.Column("smape", sa.REAL(), nullable=True),
        sa.Column("mase", sa.REAL(), nullable=True),
        sa.Column("mae", sa.REAL(), nullable=True),
        sa.Column("rmse", sa.REAL(), nullable=True),
        sa.Column("wql", sa.REAL(), nullable=True),
        sa.Column("coverage", sa.REAL(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_results_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "server_id", name=op.f("pk_results")),
    )
    op.create_table(
        "run_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True, comment="null: the run was made"),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_events_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_events")),
    )
    op.create_index(op.f("ix_run_events_run_id"), "run_events", ["run_id"], unique=False)
    op.create_table(
        "run_paths",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("paths", sa.Integer(), nullable=False),
        sa.Column(
            "ranks", sa.LargeBinary(), nullable=False, comment="uint16 little-endian (paths, horizon): rank per step"
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="residuals, or autoregressive where there were too few"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_paths_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_paths")),
    )
    op.execute(FORECAST_QUANTILES)
    op.execute(INSTALLATION_ID)
    # Its text holds percent signs and many statements: it goes to the driver as it is.
    op.get_bind().connection.driver_connection.execute(SchemaManager.get_schema())  # type: ignore[union-attr]


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the first migration holds every table")

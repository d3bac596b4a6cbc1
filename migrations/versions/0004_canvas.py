"""Managed runs: what is intended and made on AWS, and runs that wait for it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column(
            "parked", sa.Boolean(), server_default=sa.false(), nullable=False, comment="running, waits for due_at"
        ),
    )
    op.create_table(
        "canvas_runs",
        sa.Column("run_id", sa.UUID(), nullable=False, comment="no foreign key: it outlives a deleted forecast"),
        sa.Column("forecast_id", sa.UUID(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column(
            "facts",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what the stages before found, and what a request is built from",
        ),
        sa.Column("gone_at", TIME, nullable=True, comment="nothing of it is left on AWS"),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_canvas_runs")),
    )
    op.create_index("ix_canvas_runs_left", "canvas_runs", ["created_at"], postgresql_where=sa.text("gone_at IS NULL"))
    op.create_table(
        "canvas_intents",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "purpose", sa.Text(), nullable=False, comment="automl, model, transform-forecast, transform-window-1"
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="on AWS; derived, so a repeat finds its own work"),
        sa.Column("spec_hash", sa.Text(), nullable=False, comment="of the request body"),
        sa.Column("not_after", TIME, nullable=False, comment="the call is not made later than this"),
        sa.Column("created_on_aws", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "attempt", "purpose", name=op.f("pk_canvas_intents")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: what is paid for must not be forgotten")

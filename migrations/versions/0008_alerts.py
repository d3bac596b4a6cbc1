"""Alerts: rules, forecasts that wait to be judged by them, which servers meet them, and the outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB
TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "alert_rules",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=True, comment="null: of any"),
        sa.Column("where", JSONB(), nullable=False, comment="attribute → the values of it that pass"),
        sa.Column("threshold", sa.Float(), nullable=True, comment="null: each server's own"),
        sa.Column("model", sa.Text(), nullable=True, comment="null: the best of each forecast"),
        sa.Column("condition", JSONB(), nullable=False, comment="as it was asked for; domain/alerts.py"),
        sa.Column("only_changes", sa.Boolean(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False, comment="signs, so it cannot be a hash; never shown again"),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True, comment="why it was switched off, or could not be judged last"),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rules")),
    )
    op.create_index("ix_alert_rules_newest", "alert_rules", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_table(
        "alert_evaluations",
        sa.Column("forecast_id", sa.UUID(), nullable=False),
        sa.Column(
            "family", sa.UUID(), nullable=False, comment="the first version of the dataset: judged one after the other"
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="fence: one per claim"),
        sa.Column("due_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("forecast_id", name=op.f("pk_alert_evaluations")),
        sa.UniqueConstraint("position", name=op.f("uq_alert_evaluations_position")),
        sa.ForeignKeyConstraint(
            ["forecast_id"],
            ["forecasts.id"],
            name=op.f("fk_alert_evaluations_forecast_id"),
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "alert_states",
        sa.Column("rule_id", sa.UUID(), nullable=False),
        sa.Column("family", sa.UUID(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("servers", JSONB(), nullable=False, comment="server that meets the rule → since when"),
        sa.Column("forecast_id", sa.UUID(), nullable=False, comment="the one that was judged last"),
        sa.PrimaryKeyConstraint("rule_id", "family", "metric", name=op.f("pk_alert_states")),
        sa.ForeignKeyConstraint(
            ["rule_id"], ["alert_rules.id"], name=op.f("fk_alert_states_rule_id"), ondelete="CASCADE"
        ),
    )
    op.create_table(
        "alert_deliveries",
        sa.Column("id", sa.UUID(), nullable=False, comment="the webhook-id: the same for each attempt"),
        sa.Column("rule_id", sa.UUID(), nullable=False),
        sa.Column(
            "forecast_id",
            sa.UUID(),
            nullable=True,
            comment="null: a test; no foreign key, for it outlives the forecast",
        ),
        sa.Column("body", sa.Text(), nullable=False, comment="what is signed and sent, to the byte"),
        sa.Column("status", sa.Text(), nullable=False, comment="pending, delivered or failed"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True, comment="HTTP status of the last attempt"),
        sa.Column("last_error", sa.Text(), nullable=True, comment="why the last attempt did not deliver"),
        sa.Column("due_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_deliveries")),
        sa.UniqueConstraint("rule_id", "forecast_id", name=op.f("uq_alert_deliveries_rule_id_forecast_id")),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name=op.f("ck_alert_deliveries_status")),
        sa.ForeignKeyConstraint(
            ["rule_id"], ["alert_rules.id"], name=op.f("fk_alert_deliveries_rule_id"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_alert_deliveries_newest", "alert_deliveries", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index(
        "ix_alert_deliveries_due", "alert_deliveries", ["due_at"], postgresql_where=sa.text("status = 'pending'")
    )


def downgrade() -> None:
    for name in ("alert_deliveries", "alert_states", "alert_evaluations", "alert_rules"):
        op.drop_table(name)

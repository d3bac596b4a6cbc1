"""The risk of each server at its own threshold, stored with the results: lists are pages of an index."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB
TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "run_risks",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("rules", JSONB(), nullable=False, comment="what the run's risk was judged by; domain/risk.py"),
        sa.Column("threshold", sa.Float(), nullable=True, comment="of all its servers; null: they differ"),
        sa.Column("as_of", TIME, nullable=False, comment="the newest of its servers"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_risks")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_risks_run_id"), ondelete="CASCADE"),
    )
    op.create_table(
        "risks",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False, comment="the server's own, else its unit's"),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("max_p90", sa.Float(), nullable=False),
        sa.Column("mean_p50", sa.Float(), nullable=False),
        sa.Column("breach_probability", sa.Float(), nullable=False),
        sa.Column("expected_breach_days", sa.Float(), nullable=False),
        sa.Column(
            "runway_conservative",
            sa.Float(),
            nullable=True,
            comment="days; null: not in the horizon. Not null: at risk",
        ),
        sa.Column("runway_expected", sa.Float(), nullable=True, comment="days"),
        sa.Column("first_breach_p10", TIME, nullable=True),
        sa.Column("first_breach_p50", TIME, nullable=True),
        sa.Column("headroom_pct", sa.Float(), nullable=False),
        sa.Column("severity", sa.Float(), nullable=True),
        sa.Column("business_unit", sa.Text(), nullable=True),
        sa.Column("region", sa.Text(), nullable=True),
        sa.Column("criticality", sa.Text(), nullable=True),
        sa.Column("by_runway", sa.Integer(), nullable=False, comment="place in the run's list so sorted, ties settled"),
        sa.Column("by_breach_probability", sa.Integer(), nullable=False),
        sa.Column("by_max_p90", sa.Integer(), nullable=False),
    )
    for sort in ("by_runway", "by_breach_probability", "by_max_p90"):
        op.create_index(f"ix_risks_{sort}", "risks", ["run_id", sort])
    op.create_index("ix_risks_by_server_id", "risks", ["run_id", sa.text('server_id COLLATE "C"')], unique=True)
    # The rows of `risks` come and go with that of their run. A foreign key would be checked for each of 100,000.
    op.execute(
        """
        CREATE FUNCTION forget_risks() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM risks WHERE run_id = OLD.run_id;
            RETURN NULL;
        END $$
        """
    )
    op.execute("CREATE TRIGGER forget_risks AFTER DELETE ON run_risks FOR EACH ROW EXECUTE FUNCTION forget_risks()")


def downgrade() -> None:
    op.drop_table("risks")
    op.drop_table("run_risks")
    op.execute("DROP FUNCTION forget_risks()")

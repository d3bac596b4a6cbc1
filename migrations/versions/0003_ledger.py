"""The ledger of what paid runs may cost and have cost. Lines are added, never changed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

REFUSE = """
CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()
"""


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("forecast_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False, comment="id of the API key, or empty where there are none"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="reserved, settled, released or overrun"),
        sa.Column("purpose", sa.Text(), nullable=False, comment="what was paid for; `run` is the whole attempt"),
        sa.Column("amount_microusd", sa.BigInteger(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False, comment="how the amount came about, for people"),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="jobs, seconds and prices behind it",
        ),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("amount_microusd >= 0", name=op.f("ck_ledger_amount")),
        sa.CheckConstraint("kind IN ('reserved', 'settled', 'released', 'overrun')", name=op.f("ck_ledger_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
        sa.UniqueConstraint("run_id", "attempt", "kind", "purpose", name=op.f("uq_ledger_run_id_attempt_kind_purpose")),
    )
    op.create_index(op.f("ix_ledger_created_at"), "ledger", ["created_at"], unique=False)
    op.execute(REFUSE)
    op.execute(APPEND_ONLY)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not thrown away")

"""What results are worth, per server: the sums behind scores, an ensemble's weights, and when a level shifted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

REALS = postgresql.ARRAY(sa.REAL())


def upgrade() -> None:
    op.add_column(
        "results",
        sa.Column("tally", REALS, comment="per stretch of the horizon the five sums that scores are made of"),
    )
    op.add_column(
        "results", sa.Column("weights", REALS, comment="of an ensemble's members, in the order of the run's report")
    )
    op.add_column(
        "results",
        sa.Column("shifted_at", postgresql.TIMESTAMP(timezone=True), comment="when the level shifted lately"),
    )


def downgrade() -> None:
    for name in ("shifted_at", "weights", "tally"):
        op.drop_column("results", name)

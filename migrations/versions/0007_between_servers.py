"""How servers go up and down together: what the total of a group needs beside the template of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "run_paths", sa.Column("between", sa.REAL(), comment="correlation of two servers on one date, where known")
    )


def downgrade() -> None:
    op.drop_column("run_paths", "between")

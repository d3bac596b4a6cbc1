"""Managed runs: the pace at which AWS is searched, and what is kept there for a while."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "installation",
        sa.Column(
            "swept_at",
            postgresql.TIMESTAMP(timezone=True),
            comment="when AWS was last searched for strays: one worker at a time, at a pace",
        ),
    )
    op.drop_index("ix_canvas_runs_left", table_name="canvas_runs")
    op.create_index(
        "ix_canvas_runs_left", "canvas_runs", ["created_at"], postgresql_where=sa.text("stage <> 'forgotten'")
    )


def downgrade() -> None:
    op.drop_index("ix_canvas_runs_left", table_name="canvas_runs")
    op.create_index("ix_canvas_runs_left", "canvas_runs", ["created_at"], postgresql_where=sa.text("gone_at IS NULL"))
    op.drop_column("installation", "swept_at")

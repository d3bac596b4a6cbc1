"""Runs Headroom's migrations on the connection that `app.storage.migrate` hands over, or on a URL (`-x url=…`)."""

from alembic import context
from sqlalchemy import Connection, create_engine

from app.storage.migrate import sqlalchemy_url
from app.storage.tables import metadata


def ours(name: str | None, kind: str, _parents: object) -> bool:
    """Procrastinate's tables are its own, and an index on a collation is not read back as it was made: a check leaves
    them out."""
    return name != "ix_risks_by_server_id" and not (kind == "table" and (name or "").startswith("procrastinate_"))


def run(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=metadata, include_name=ours, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with create_engine(sqlalchemy_url(context.get_x_argument(as_dictionary=True)["url"])).connect() as connection:
        run(connection)

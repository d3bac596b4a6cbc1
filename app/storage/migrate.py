"""Brings a database to the newest schema; safe when several processes start at once."""

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, OperationalError

from app.errors import CannotStart

MIGRATIONS = Path(__file__).parents[2] / "migrations"
SCHEMES = ("postgresql", "postgres")
_LOCK = 0x48454144  # one advisory lock for all who migrate


def sqlalchemy_url(url: str) -> URL:
    """A plain `postgresql://` URL as SQLAlchemy wants it, on psycopg 3. Raises CannotStart for any other."""
    wanted = "It must be a URL of PostgreSQL, such as postgresql://user:password@host:5432/headroom."
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):  # neither is shown: they quote the password
        raise CannotStart(f"DATABASE_URL cannot be read as a URL. {wanted}") from None
    if found.drivername not in SCHEMES:
        raise CannotStart(f"DATABASE_URL begins with {found.drivername}://. {wanted}")
    return found.set(drivername="postgresql+psycopg")


def config() -> Config:
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    return settings


def upgrade(url: str) -> None:
    """Apply what is missing. Waits for another process that is at it; a lock on a table is waited for 5 s only.

    Raises CannotStart when the database cannot be reached.
    """
    engine = create_engine(sqlalchemy_url(url))
    try:
        with engine.connect() as guard, engine.connect() as connection:
            guard.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text("SET lock_timeout = '5s'"))
            connection.commit()
            settings = config()
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
    except OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        where = engine.url.render_as_string(hide_password=True)
        raise CannotStart(f"The database at {where} cannot be reached: {error.orig}".strip()) from error
    finally:
        engine.dispose()

"""Migrations make what the tables say, also when several processes migrate at once."""

import sys
from subprocess import PIPE, Popen

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command

from app.errors import CannotStart
from app.storage.migrate import config, sqlalchemy_url, upgrade


def test_from_nothing_they_make_the_tables(empty_url: str) -> None:
    upgrade(empty_url)
    engine = sa.create_engine(sqlalchemy_url(empty_url))
    with engine.connect() as connection:
        settings = config()
        settings.attributes["connection"] = connection
        command.check(settings)  # raises where the tables of app.storage.tables differ
    engine.dispose()


def test_processes_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    script = "import sys; from app.storage.migrate import upgrade; upgrade(sys.argv[1])"
    processes = [Popen([sys.executable, "-c", script, empty_url], stderr=PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT count(*) FROM installation").fetchone() == (1,)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://user:secret@host/headroom", "begins with mysql://"),
        ("sqlite:///headroom.db", "begins with sqlite://"),
        ("postgresql+psycopg://user:secret@host/headroom", "begins with postgresql+psycopg://"),
        ("host=somewhere password=secret", "cannot be read"),
        ("postgresql://user:secret@host:port/headroom", "cannot be read"),
    ],
)
def test_a_database_of_another_kind_is_refused(url: str, said: str) -> None:
    with pytest.raises(CannotStart) as refused:
        upgrade(url)
    assert said in refused.value.detail
    assert "postgresql://user:password@host" in refused.value.detail
    assert "secret" not in refused.value.detail


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_both_names_of_postgresql_are_taken(scheme: str) -> None:
    url = sqlalchemy_url(f"{scheme}://user:secret@host/headroom?connect_timeout=1")
    assert (url.drivername, url.host, url.query["connect_timeout"]) == ("postgresql+psycopg", "host", "1")

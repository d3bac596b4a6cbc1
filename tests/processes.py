"""Headroom in processes of its own, and how tests look at what they do."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import psycopg

from app.settings import Settings

Seen = TypeVar("Seen")

HEADROOM = (sys.executable, "-m", "app")
_ROOT = Path(__file__).parents[1]


@contextmanager
def process(
    settings: Settings, command: Sequence[str], failpoints: str = "", **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A command under these settings and failpoints, killed in the end; its log is `{last word}.log` in data_dir."""
    fields = Settings.model_fields
    set_by_hand = {
        str(fields[name].validation_alias or f"HEADROOM_{name.upper()}"): str(getattr(settings, name))
        for name in settings.model_fields_set
    }
    environment = os.environ | set_by_hand | {"HEADROOM_FAILPOINTS": failpoints} | variables
    with (settings.data_dir / f"{command[-1]}.log").open("ab") as log:
        started = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextmanager
def worker(settings: Settings, failpoints: str = "", **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`headroom worker`."""
    with process(settings, [*HEADROOM, "worker"], failpoints, **variables) as started:
        yield started


def eventually(look: Callable[[], Seen], what: str, seconds: float = 120) -> Seen:
    """The first truthy look. Polls a state that another process brings about; fails loudly when it never comes."""
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        if seen := look():
            return seen
        sleep(0.05)
    raise AssertionError(f"{what} did not happen in {seconds} s")


def query(settings: Settings, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement, in a transaction of its own."""
    assert settings.database_url
    with psycopg.connect(settings.database_url) as connection:
        ran = connection.execute(statement, values)  # type: ignore[arg-type]
        return ran.fetchall() if ran.description is not None else []

"""Folders for the time of one task; what a process that died left of them is swept by the next.

A folder is locked as long as its maker lives: the kernel drops the lock with the process, even at kill -9.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def claim(parent: Path) -> tuple[Path, int]:
    """A new folder in `parent`, and the descriptor that keeps it from being swept as long as it is open."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / uuid4().hex
        folder.mkdir(mode=0o700)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else another process swept it before it was locked
            return folder, lock
        os.close(lock)


@contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for the time of the block."""
    made, lock = claim(parent)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the folders that nobody holds any more."""
    if not parent.is_dir():
        return
    for folder in parent.iterdir():
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)

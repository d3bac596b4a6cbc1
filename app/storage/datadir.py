"""The data folder: making it, and making sure that one Headroom at a time runs on it.

Left out: what lies in it. History files are the artifact store's, `pg18/` is the embedded PostgreSQL's.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from app.errors import CannotStart


def make_folder(folder: Path) -> None:
    """Make `folder` where it is missing: for its owner only, but as root passable, as the database is not root.

    A folder that is there already keeps its mode. Raises `CannotStart` where it cannot be made or used.
    """
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise CannotStart(
            f"The data folder {folder} cannot be made: {error.strerror}. "
            "Choose another with HEADROOM_DATA_DIR, or make it and give it to the user that runs Headroom."
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise CannotStart(
            f"The data folder {folder} may not be read and written by this user. "
            "Run Headroom as the user that it belongs to, or choose another with HEADROOM_DATA_DIR."
        )


def open_lock(path: Path) -> int:
    """A new descriptor to flock. Each call is a party of its own, also within one process; exec closes it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"{path} cannot be opened: {error.strerror}. "
            "Run Headroom as the user that the data folder belongs to, or choose another with HEADROOM_DATA_DIR."
        ) from error


class DataDirLock:
    """Held by the one `headroom run` of a data folder. The kernel drops it with the process, even at kill -9."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises `CannotStart`, naming the folder and the process that has it."""
        make_folder(self.data_dir)
        descriptor = open_lock(self.data_dir / "headroom.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode().strip() or "not known yet"
            os.close(descriptor)
            raise CannotStart(
                f"The data folder {self.data_dir} is in use by another Headroom (process {holder}). "
                "Stop that one, or choose another folder with HEADROOM_DATA_DIR."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

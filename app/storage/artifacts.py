"""Where history files are kept: a small protocol, and its form in a folder. The one in S3 is app/aws/s3.py.

A key is written once and never changes; what stands under it is whole, or not there.
"""

import asyncio
import errno
import os
import re
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from app.errors import InsufficientStorage, NotFound

# A dot goes before what has not arrived.
_KEY = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*(/\.?[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Store(Protocol):
    async def put(self, key: str, file: Path) -> None:
        """Keep a local file under a new key. The file may be moved: it is the store's from here on.

        Raises InsufficientStorage.
        """
        ...

    async def local(self, key: str) -> Path:
        """A local file with these contents, to be read only. Raises NotFound."""
        ...

    async def delete(self, key: str) -> None:
        """Forget it; a key that is not there is none the worse."""
        ...

    async def exists(self, key: str) -> bool: ...

    async def keys(self, before: datetime) -> list[str]:
        """Every key whose file was written before this time, with those of puts that broke off."""
        ...

    async def require(self, size: int) -> None:
        """Raises InsufficientStorage when so many bytes more would not fit."""
        ...

    async def check(self) -> None:
        """Raises when files cannot be written and read."""
        ...


class FolderStore:
    """Files in a folder of this machine, renamed into place once they are safe on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, key: str, file: Path) -> None:
        await asyncio.to_thread(self._put, self._path(key), file)

    async def local(self, key: str) -> Path:
        path = self._path(key)
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"The store has no file {key}.")
        return path

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._path(key).is_file)

    async def keys(self, before: datetime) -> list[str]:
        return await asyncio.to_thread(self._keys, before.timestamp())

    async def require(self, size: int) -> None:
        free = await asyncio.to_thread(self._free)
        if size > free:
            raise no_room(f"{size >> 20:,} MB are needed, {free >> 20:,} MB are free")

    async def check(self) -> None:
        await asyncio.to_thread(self._check)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a store")
        return self._folder / key

    def _put(self, path: Path, file: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._move(file, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room("the disk is full") from error
            raise

    def _move(self, file: Path, path: Path) -> None:
        arriving = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            try:
                os.rename(file, arriving)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copyfile(file, arriving)
            _sync(arriving)
            os.rename(arriving, path)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def _keys(self, before: float) -> list[str]:
        found = []
        for path in self._folder.rglob("*"):
            key = path.relative_to(self._folder).as_posix()
            with suppress(FileNotFoundError):  # another process removes it just now
                if path.is_file() and path.stat().st_mtime < before and _KEY.fullmatch(key):
                    found.append(key)
        return sorted(found)

    def _free(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._folder).free

    def _check(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        probe = self._folder / f".probe.{uuid4().hex}"
        try:
            probe.write_bytes(b"?")
            if probe.read_bytes() != b"?":
                raise OSError(errno.EIO, "what was written cannot be read", str(probe))
        finally:
            probe.unlink(missing_ok=True)


def no_room(why: str) -> InsufficientStorage:
    return InsufficientStorage(f"The store has no room left: {why}. Nothing was kept of this request.")


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, safely on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

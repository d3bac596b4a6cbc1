"""Datasets: added, continued by newer rows, listed, deleted, and written out for the Canvas screens.

An upload is received into a workspace of its own, checked in a limited child process, put into the store, and only
then made known by its row. What breaks off leaves a workspace, or a file that no row names; both are swept.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

import numpy as np

from app import scratch
from app.compute import ChildDied, Compute, TooSlow
from app.domain.dataset import Contents, Dataset, Limits, Schema
from app.domain.panel import Panel
from app.errors import Complaint, Conflict, Forbidden, Invalid, NotFound, TooLarge
from app.services import canvas_file
from app.services.ingest import artifact, ingest
from app.storage import datasets as stored
from app.storage.artifacts import Store
from app.storage.database import Database
from app.storage.panels import load_panel

__all__ = ["Datasets", "Limits", "S3Object", "S3Sources", "Sent"]

log = logging.getLogger(__name__)

ON_ITS_WAY = timedelta(hours=1)
"""How long a file of the store may wait for the row that names it; an upload takes minutes."""

_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class S3Object:
    """What a caller names as the source."""

    bucket: str
    key: str


@dataclass(frozen=True)
class Sent:
    """An upload as it was received: a local file with its SHA-256, or an object to fetch."""

    source: Path | S3Object
    name: str
    sha256: str = ""
    schema: Schema = field(default_factory=Schema)


class Fetch(Protocol):
    async def __call__(self, bucket: str, key: str, target: Path, limit: int) -> None: ...


@dataclass(frozen=True)
class S3Sources:
    """Which objects callers may name (`bucket` or `bucket/prefix`), and how they are fetched."""

    allowed: Sequence[str]
    fetch: Fetch

    def permits(self, source: S3Object) -> bool:
        for place in self.allowed:
            bucket, _, prefix = place.partition("/")
            if source.bucket == bucket and source.key.startswith(prefix):
                return True
        return False


class Datasets:
    """`folder` holds the workspaces of uploads; best on the same disk as the store, so that a file need only move."""

    def __init__(
        self,
        database: Database,
        store: Store,
        compute: Compute,
        limits: Limits,
        folder: Path,
        s3: S3Sources | None = None,
    ) -> None:
        self._database, self._store, self._compute = database, store, compute
        self.limits, self._folder, self._s3 = limits, folder, s3

    @asynccontextmanager
    async def workspace(self) -> AsyncIterator[Path]:
        """A folder for one upload, gone at the end of the block; if this process is killed, at the next sweep."""
        await self.sweep()
        with scratch.folder(self._folder) as folder:
            yield folder

    async def sweep(self) -> None:
        """Remove what processes that died have left: their workspaces, and files of the store that no row names.

        What cannot be removed now is removed by a later sweep.
        """
        await asyncio.to_thread(scratch.sweep, self._folder)
        try:
            await self._sweep_store()
        except Exception as error:
            log.warning("could not look for files that no dataset names: %s: %s", type(error).__name__, error)

    async def _sweep_store(self) -> None:
        old = await self._store.keys(datetime.now(UTC) - ON_ITS_WAY)
        if not old:
            return
        async with self._database.connect() as connection:
            named = await stored.named(connection, old)
        for key in old:
            if key not in named:
                log.info("%s is named by no dataset; it is removed", key)
                await self._store.delete(key)

    async def add(self, sent: Sent, workspace: Path, parent_id: UUID | None = None) -> Dataset:
        """A new dataset; with a parent, the parent's rows and these.

        Raises Invalid with every complaint, TooLarge, NotFound for the parent, Forbidden for a source that may not
        be named, InsufficientStorage.
        """
        parent = await self.get(parent_id) if parent_id else None
        source, sha256 = await self._received(sent, workspace)
        history, facts = workspace / "history.parquet", workspace / "facts.parquet"
        size = (await asyncio.to_thread(source.stat)).st_size
        await self._store.require(size)
        contents = await self._ingested(
            source, history, facts, sent.schema, await self._store.local(parent.location) if parent else None
        )
        dataset_id = uuid4()
        location = f"{dataset_id}.parquet"
        await self._store.put(location, history)
        servers = await asyncio.to_thread(artifact.read_facts, facts)
        try:
            async with self._database.begin() as connection:
                if parent_id and await stored.hold(connection, parent_id) is None:
                    raise _unknown(parent_id)
                dataset = await stored.insert(
                    connection,
                    dataset_id=dataset_id,
                    parent_id=parent_id,
                    name=sent.name,
                    location=location,
                    sha256=sha256,
                    contents=contents,
                )
                await stored.copy_servers(connection, dataset_id, servers)
        except Exception:
            # A commit whose answer was lost may have happened: the file goes only when the row is known not to be.
            async with self._database.connect() as connection:
                made = await stored.get(connection, dataset_id)
            if made is not None:
                return made
            await self._store.delete(location)
            raise
        return dataset

    async def get(self, dataset_id: UUID) -> Dataset:
        async with self._database.connect() as connection:
            dataset = await stored.get(connection, dataset_id)
        if dataset is None:
            raise _unknown(dataset_id)
        return dataset

    async def newest(self, before: tuple[datetime, UUID] | None, limit: int) -> list[Dataset]:
        """Newest first; `before` is the (created_at, id) of the last one seen."""
        async with self._database.connect() as connection:
            return await stored.newest(connection, before, limit)

    async def delete(self, dataset_id: UUID) -> None:
        """Raises Conflict while a forecast uses it. Versions made from it stay."""
        async with self._database.begin() as connection:
            dataset = await stored.lock(connection, dataset_id)
            if dataset is None:
                raise _unknown(dataset_id)
            if await stored.is_used(connection, dataset_id):
                raise Conflict("A forecast uses this dataset. Delete its forecasts first.")
            await stored.delete(connection, dataset_id)
        await self._store.delete(dataset.location)

    async def canvas_file(self, dataset_id: UUID, metric: str, country: str, before: int = 0) -> Iterator[bytes]:
        """The CSV for a manual import into Canvas, in pieces, without the targets of each server's last `before` steps.

        Raises Invalid for a metric that is not there.
        """
        dataset = await self.get(dataset_id)
        _check_metric(dataset, metric)
        ends = None
        if before:
            cut = before * dataset.contents.frequency.step
            async with self._database.connect() as connection:
                servers = await stored.servers(connection, dataset_id)
            ends = {
                server.server_id: np.datetime64(server.last_at.replace(tzinfo=None), "s") - cut for server in servers
            }
        return canvas_file.pieces(await self._store.local(dataset.location), metric, country, ends)

    async def history(self, dataset_id: UUID, metric: str, server_id: str) -> Panel:
        """One metric of one server, as it was uploaded. Raises Invalid for a metric or a server that is not there."""
        dataset = await self.get(dataset_id)
        _check_metric(dataset, metric)
        async with self._database.connect() as connection:
            known = await stored.servers(connection, dataset_id, [server_id])
        if not known:
            detail = f"The dataset has no server {server_id!r}."
            raise Invalid(detail, errors=[Complaint("?server_id", "unknown-server", detail)])
        path = await self._store.local(dataset.location)
        return await asyncio.to_thread(load_panel, path, metric, [server_id])

    async def _received(self, sent: Sent, workspace: Path) -> tuple[Path, str]:
        match sent.source:
            case Path():
                return sent.source, sent.sha256
            case S3Object() as source:
                fetch = self._fetch_of(source)
                target = workspace / "upload"
                await fetch(source.bucket, source.key, target, self.limits.bytes)
                return target, await asyncio.to_thread(_sha256, target)

    def _fetch_of(self, source: S3Object) -> Fetch:
        """Nothing is called before the place has been found to be well-formed and allowed."""
        if not _BUCKET.fullmatch(source.bucket) or "://" in source.key or not source.key or "\0" in source.key:
            detail = "Name an S3 object by its bucket and key alone: no address, no scheme, no host."
            raise Invalid(detail, errors=[Complaint("/s3", "s3-uri", detail)], slug="s3-uri")
        if self._s3 is None or not self._s3.permits(source):
            raise Forbidden(
                "Datasets may not be read from that place in S3. HEADROOM_S3_ALLOWED lists those that may be named.",
                slug="s3-not-allowed",
            )
        return self._s3.fetch

    async def _ingested(
        self, source: Path, history: Path, facts: Path, schema: Schema, parent: Path | None
    ) -> Contents:
        try:
            return await self._compute.run(
                ingest, source, history, facts, schema, self.limits, parent, seconds=self.limits.seconds
            )
        except ChildDied as died:
            raise TooLarge(f"The file could not be read within the limits: {died}. Send it in parts.") from died
        except TooSlow as slow:
            raise TooLarge(f"The file could not be read in {self.limits.seconds:,.0f} s. Send it in parts.") from slow


def _check_metric(dataset: Dataset, metric: str) -> None:
    """Raises Invalid for one that is not there."""
    metrics = dataset.contents.metrics
    if metric not in metrics:
        detail = f"The dataset has no metric {metric!r}; it has {', '.join(metrics)}."
        raise Invalid(detail, errors=[Complaint("?metric", "unknown-metric", detail)])


def _unknown(dataset_id: UUID) -> NotFound:
    return NotFound(f"There is no dataset {dataset_id}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A Dask cluster as a place to run tasks: `COMPUTE_URL=tls://scheduler:8786`.

Dask carries a task to a node that is free, and to another one when that node is lost. On the node the task runs in
a child process as it would here (processes), with the same limits, so that one that dies, hangs or outgrows its
memory takes nothing with it that shares the node. The connection is made by the first task, and again when it broke.

    Cluster.run ── scheduler ── node: _contained ── Processes.run ── child: the function
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing import current_process
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import dask
from distributed import Client, KilledWorker, Reschedule, Security, Worker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError

from app.compute._contract import Answer, ChildDied
from app.compute.processes import Processes
from app.errors import CannotStart, Unavailable

_CONNECT = 5.0
"""Seconds in which a scheduler answers, or is away."""

_AHEAD = 2
"""Tasks sent for each that can run: the next is there when one ends, and the scheduler holds no more than that."""

_LOOK = 0.5
"""Seconds between two looks: at how large the cluster is; on a node, at whether a task is still wanted."""


class Cluster:
    """The nodes behind one scheduler. A child of theirs has `memory_mb` of address space, as one here has."""

    def __init__(self, url: str, memory_mb: int) -> None:
        if urlsplit(url).scheme not in ("tcp", "tls") or not urlsplit(url).netloc:
            raise CannotStart(f"COMPUTE_URL is {url!r}; a Dask scheduler is at tls://host:port or tcp://host:port.")
        self._security = _certificates() if url.startswith("tls:") else None
        # What travels is the history of a chunk of servers; Dask would have it loaded by the nodes, and warns.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})
        self._url, self._memory_mb = url, memory_mb
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._turns, self._first, self._freed = 0, asyncio.Lock(), asyncio.Event()

    async def run(self, function: Callable[..., Answer], *args: object, seconds: float) -> Answer:
        client = await self._connected()
        key = f"{function.__name__}-{uuid4().hex}"
        future = client.submit(_contained, key, function, args, seconds, self._memory_mb, key=key, pure=False)
        try:
            answer: Answer = await future
            return answer
        except KilledWorker as killed:
            raise ChildDied(f"each node that had the task was lost, the last one {killed.last_worker}") from None
        except FutureCancelledError:
            raise self._away() from None
        finally:
            # Where it still runs, the node sees that nobody wants it, and kills the child.
            future.release()  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._first:  # of those that wait; it looks for all of them, who come after it in order
            while self._turns >= _AHEAD * await self._threads():
                self._freed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), _LOOK)
            self._turns += 1
        try:
            yield
        finally:
            self._turns -= 1
            self._freed.set()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]

    async def _threads(self) -> int:
        """Tasks that the nodes can run at once, as the scheduler said within the last seconds; never none."""
        client = await self._connected()
        threads = int(client.scheduler_info().get("total_threads", 0))
        if not threads:
            raise Unavailable(f"The Dask scheduler at {self._url} has no nodes just now.")
        return threads

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None or self._client.status == "closed":
                self._client = await self._connect()
            if self._client.status != "running":  # it lost the scheduler, and looks for it
                raise self._away()
            return self._client

    async def _connect(self) -> Client:
        client = Client(  # type: ignore[no-untyped-call]
            self._url,
            security=self._security,
            asynchronous=True,
            timeout=_CONNECT,
            set_as_default=False,
            name="headroom",
        )
        try:
            await client
        except OSError as error:
            raise self._away(error.__cause__) from error
        except asyncio.CancelledError:
            await client.close()  # type: ignore[no-untyped-call]
            raise
        return client

    def _away(self, why: BaseException | None = None) -> Unavailable:
        reason = f" ({why})" if why else ""
        return Unavailable(f"The Dask scheduler at {self._url} cannot be reached just now{reason}.")


def _certificates() -> Security:
    """As Dask's own settings name them. Raises CannotStart where they are missing or cannot be read."""
    security = Security()  # type: ignore[no-untyped-call]
    try:
        found = security.get_connection_args("client")["ssl_context"]  # type: ignore[no-untyped-call]
    except OSError as error:
        raise CannotStart(f"The certificates for COMPUTE_URL cannot be used: {error}.") from error
    if found is None:
        names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"))
        raise CannotStart(f"COMPUTE_URL is tls://, which needs certificates: set {names}.")
    return security


async def _contained(
    key: str, function: Callable[..., Answer], args: tuple[object, ...], seconds: float, memory_mb: int
) -> Answer:
    """On a node: the function in a child process, killed once nobody waits for its answer any more."""
    node = get_worker()
    children = await _Children.of(node, memory_mb)
    running = asyncio.create_task(children.run(function, *args, seconds=seconds))
    try:
        while not running.done():
            if node.state.tasks[key].state != "executing":
                raise Reschedule  # nobody hears it, unless the scheduler changed its mind meanwhile
            await asyncio.wait({running}, timeout=_LOOK)
        return running.result()
    finally:
        running.cancel()


class _Children(WorkerPlugin):
    """The child processes of a node, as many as it has threads, from the first task to the node's end."""

    @classmethod
    async def of(cls, node: Worker, memory_mb: int) -> Processes:
        name = f"headroom-{memory_mb}"
        if name not in node.plugins:
            await node.plugin_add(cls(memory_mb), name, catch_errors=False)
        found = node.plugins[name]
        assert isinstance(found, cls)
        return found.processes

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb

    def setup(self, worker: Worker) -> None:
        # Under its nanny a node is a daemon, which may have no children; these end with it by themselves.
        current_process().daemon = False
        scratch = Path(worker.local_directory) / "headroom"
        self.processes = Processes(worker.state.nthreads, self._memory_mb, scratch)

    def teardown(self, worker: Worker) -> None:
        self.processes.close()

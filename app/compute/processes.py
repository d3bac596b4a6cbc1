"""Child processes of this one, limited in memory and time.

A child that dies, hangs or outgrows its memory fails its own task and no other. The pool comes to life with the
first task, so a process that never runs one pays nothing.
"""

import asyncio
import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from app.compute._contract import Answer, ChildDied, TooSlow
from app.scratch import claim, sweep

_PR_SET_PDEATHSIG = 1


class Processes:
    """Spawned children of this process; they die with it.

    Each has a temporary folder of its own in `scratch`: what a killed one leaves there, the next one removes.
    """

    def __init__(self, processes: int, memory_mb: int, scratch: Path) -> None:
        self._scratch = scratch
        sweep(scratch)
        # Children are the parallelism: one thread each, or they would fight over the cores.
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = "1"
        self._pool = ProcessPool(
            max_workers=processes,
            context=get_context("spawn"),
            initializer=_confine,
            initargs=(memory_mb << 20, scratch),
        )

    async def run(self, function: Callable[..., Answer], *args: object, seconds: float) -> Answer:
        try:
            return await asyncio.wrap_future(self._pool.schedule(function, args=args, timeout=seconds))
        except ProcessExpired as expired:
            _kill_group(expired.pid)
            raise ChildDied(f"the child process died ({_cause(expired.exitcode)})") from None
        except MemoryError:
            raise ChildDied("the child process ran out of its memory") from None
        except TimeoutError:
            raise TooSlow(f"the task took longer than {seconds:g} s") from None

    def close(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        sweep(self._scratch)


def _confine(memory: int, scratch: Path) -> None:
    """In the child: a memory limit, an end with the parent, and grandchildren (Stan) and files that end with it."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with suppress(OSError):  # a disk that is full is for the task to meet
        sweep(scratch)
        folder, _ = claim(scratch)  # held until this process is gone
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _kill_group(pid: int | None) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _cause(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"

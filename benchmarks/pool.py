"""Two processes that forecast, and what that took: seconds of the clock and of the processors, and memory.

What a contender imports is loaded before the clock runs, and nobody's loading counts. CPU is that of the tasks with
all processes that they started and waited for; memory is what these two and theirs held at one time, what they share
counted once (PSS), beside what they held before.
"""

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import psutil

from benchmarks.processes import Watch

PROCESSES = 2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Pool:
    """`pool(function, arguments)` answers in order, and adds up what the tasks took."""

    def __init__(self, executor: ProcessPoolExecutor, watch: Watch) -> None:
        self._executor, self._watch = executor, watch
        self._began = time.perf_counter()
        self.cpu = 0.0

    def __call__(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        going = [self._executor.submit(_counted, function, each) for each in arguments]
        answers = []
        for future in going:
            answer, used = future.result()
            self.cpu += used
            answers.append(answer)
        return answers

    @property
    def wall(self) -> float:
        return time.perf_counter() - self._began

    @property
    def memory(self) -> int:
        return self._watch.peak


@contextmanager
def pool(imports: tuple[str, ...]) -> Iterator[Pool]:
    """The clock runs from the beginning of the block."""
    os.environ.update(dict.fromkeys(THREADS, "1"))  # each process one thread: two in all, for everyone
    context = get_context("spawn")
    ready = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, _load, (imports, ready)) as executor:
        list(executor.map(abs, range(PROCESSES)))  # each task starts a process, which has loaded what it needs then
        children = psutil.Process().children()
        with Watch({str(child.pid): child for child in children}) as watch:
            yield Pool(executor, watch)


def _load(imports: tuple[str, ...], ready: Any) -> None:
    for name in imports:
        import_module(name)
    ready.wait()


def _counted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    before = _used()
    answer = function(*arguments)
    return answer, _used() - before


def _used() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)

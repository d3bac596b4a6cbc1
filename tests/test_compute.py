"""Child processes: an answer, an error, a death, a hang, a bomb; one never takes the others with it."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from app.compute import ChildDied, Processes, TooSlow


def double(number: int) -> int:
    return 2 * number


def fail() -> None:
    raise ValueError("as it said")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang_with_grandchild(pid_file: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    with open(pid_file, "w") as file:
        file.write(str(child.pid))
    time.sleep(600)


def bomb() -> int:
    return len(bytearray(8 << 30))


@pytest.fixture(scope="module")
def compute() -> Iterator[Processes]:
    pool = Processes(2, memory_mb=1024)
    yield pool
    pool.close()


async def test_answers_and_errors_come_back(compute: Processes) -> None:
    assert await compute.run(double, 21, seconds=60) == 42
    with pytest.raises(ValueError, match="as it said"):
        await compute.run(fail, seconds=60)


async def test_a_child_that_dies_fails_its_own_task_only(compute: Processes) -> None:
    doomed, *others = await asyncio.gather(
        compute.run(die, seconds=60),
        *(compute.run(double, n, seconds=60) for n in range(10)),
        return_exceptions=True,
    )
    assert isinstance(doomed, ChildDied)
    assert "SIGSEGV" in str(doomed)
    assert others == [2 * n for n in range(10)]


async def test_a_child_over_its_memory_fails(compute: Processes) -> None:
    with pytest.raises(ChildDied, match="memory"):
        await compute.run(bomb, seconds=60)


async def test_a_hang_is_killed_with_its_grandchildren(compute: Processes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "pid"
    with pytest.raises(TooSlow):
        await compute.run(hang_with_grandchild, str(file), seconds=3)
    grandchild = int(file.read_text())
    with_it = psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE
    assert not with_it
    assert await compute.run(double, 1, seconds=60) == 2

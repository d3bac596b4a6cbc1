"""Child processes: an answer, an error, a death, a hang, a bomb; one never takes the others with it."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.compute import ChildDied, Processes, TooSlow
from tests.tasks import bomb, die, double, fail, hang_with_grandchild


def litter(then: str) -> str:
    folder = tempfile.mkdtemp()
    if then == "die":
        Path(os.environ["LITTER"]).write_text(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def compute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    pool = Processes(2, 1024, tmp_path_factory.mktemp("scratch"))
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


async def test_what_a_child_leaves_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, it cannot clean up; another one's temporary files are not touched."""
    monkeypatch.setenv("LITTER", str(tmp_path / "said"))
    first, second = (Processes(1, 1024, tmp_path / "scratch") for _ in range(2))
    try:
        kept = Path(await first.run(litter, "live", seconds=60))
        with pytest.raises(ChildDied):
            await second.run(litter, "die", seconds=60)
        left = Path((tmp_path / "said").read_text())
        assert kept.parents[1] == left.parents[1] == tmp_path / "scratch"
        second.close()
        assert not await first.run(os.path.exists, str(left), seconds=60)
        assert await first.run(os.path.exists, str(kept), seconds=60)
    finally:
        first.close()
        second.close()
    assert list((tmp_path / "scratch").iterdir()) == []


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

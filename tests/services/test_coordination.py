"""Many or one alone through a gate; work that several want is done once, and stops when nobody waits."""

import asyncio

import pytest

from app.services.coordination import Gate, Once


async def test_a_gate_lets_many_through_or_one_alone() -> None:
    gate, inside, seen = Gate(), set[str](), list[frozenset[str]]()
    release = asyncio.Event()

    async def through(name: str, alone: bool) -> None:
        async with gate.alone() if alone else gate.shared():
            inside.add(name)
            seen.append(frozenset(inside))
            await release.wait()
            inside.remove(name)

    first = [asyncio.create_task(through(name, False)) for name in "ab"]
    await asyncio.sleep(0)
    then = [asyncio.create_task(through(name, name == "c")) for name in "cd"]
    release.set()
    await asyncio.gather(*first, *then)
    assert frozenset("ab") in seen
    assert all(together == {"c"} for together in seen if "c" in together)
    assert len(seen) == 4


async def test_work_that_two_want_is_done_once() -> None:
    once, calls, go = Once[int](), [], asyncio.Event()

    async def work() -> int:
        calls.append(1)
        await go.wait()
        return 7

    both = [asyncio.create_task(once.run("k", work)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    go.set()
    assert await both[1] == 7
    assert len(calls) == 1


async def test_work_that_nobody_waits_for_stops() -> None:
    once, stopped, begun = Once[int](), asyncio.Event(), asyncio.Event()

    async def work() -> int:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return 0

    alone = asyncio.create_task(once.run("k", work))
    await begun.wait()
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    await asyncio.wait_for(stopped.wait(), 5)

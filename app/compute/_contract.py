"""What heavy work asks of the place where it runs. It knows nothing of what the tasks are."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

Answer = TypeVar("Answer")


class ChildDied(Exception):
    """The process that had the task ended without an answer: out of memory, a crash in native code, or killed."""


class TooSlow(Exception):
    """The task ran past its time and was killed."""


class Compute(Protocol):
    async def run(self, function: Callable[..., Answer], *args: object, seconds: float) -> Answer:
        """The answer of an importable function, called elsewhere with picklable arguments.

        Raises what the function raised, ChildDied or TooSlow; Unavailable where the place is away for now.
        Cancelling the wait kills the child that has the task.
        """
        ...


class Nodes(Compute, Protocol):
    """Compute on other machines: what a task needs has to travel, so it is made ready only when its turn comes."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Waits until a node will soon be free for one task more, and holds that turn for as long as the block."""
        ...

    async def close(self) -> None:
        """Give up what still runs."""
        ...

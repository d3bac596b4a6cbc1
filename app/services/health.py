"""Whether this process can do its work: the parts it needs, each asked on its own and within seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from app.storage.health import Vitals

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a part has to answer."""


@dataclass(frozen=True)
class Queue:
    """Unfinished runs by status, and how many seconds the one that waits longest is overdue."""

    runs: Mapping[str, int]
    overdue_seconds: float


class Health:
    """`store` raises when the history files cannot be written and read."""

    def __init__(self, vitals: Vitals, store: Callable[[], Awaitable[None]]) -> None:
        self._vitals = vitals
        self._parts = {"database": vitals.database, "store": store, "queue": vitals.queue}

    async def parts(self) -> dict[str, bool]:
        """Each part by name, and whether it works."""
        return dict(zip(self._parts, await asyncio.gather(*map(self._works, self._parts)), strict=True))

    async def queue(self) -> Queue:
        return Queue(*await self._vitals.depth())

    async def _works(self, part: str) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._parts[part]()
        except Exception as error:  # whatever is wrong with a part, the answer is the same: it does not work
            log.warning("%s does not work: %s", part, type(error).__name__)
            return False
        return True

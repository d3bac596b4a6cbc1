"""Where a piece is fitted: in a child process here, or on a node of a cluster.

On a cluster the history goes to the node with the task and the quantiles come back with the answer, so a node needs
neither the data folder nor the store; reading the one and writing the other stay here.
"""

import asyncio
from typing import Protocol

from app.compute import Compute, Nodes
from app.services.fitting import Fitted, Piece, fit, history, keep, predicted


class Place(Protocol):
    async def fit(self, piece: Piece, seconds: float) -> Fitted:
        """Once it is done, `piece.out` is there. Raises what the fit raised, and as Compute.run."""
        ...


class Here:
    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def fit(self, piece: Piece, seconds: float) -> Fitted:
        return await self._compute.run(fit, piece, seconds=seconds)


class Elsewhere:
    def __init__(self, compute: Compute, nodes: Nodes) -> None:
        self._compute, self._nodes = compute, nodes

    async def fit(self, piece: Piece, seconds: float) -> Fitted:
        async with self._nodes.turn():
            past = await self._compute.run(history, piece, seconds=seconds)
            values, fitted = await self._nodes.run(predicted, piece, past, seconds=seconds)
        await asyncio.to_thread(keep, piece, values)
        return fitted

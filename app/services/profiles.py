"""The profiles of load of a forecast's servers: their history read and grouped in a child, the last few kept.

What profiles are is domain/profiles.py's. A history never changes, so neither do its profiles.
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import numpy as np

from app.compute import Compute
from app.domain import profiles, risk
from app.domain.panel import Array
from app.domain.profiles import Profiles
from app.services.fleets import Fleet, Fleets, Limits, Question, Recent, known_thresholds
from app.storage import datasets
from app.storage.artifacts import Store
from app.storage.database import Database
from app.storage.panels import load_panel

SECONDS = 300.0
_KEPT = 8


class ProfileService:
    def __init__(self, database: Database, fleets: Fleets, store: Store, compute: Compute) -> None:
        self._database, self._fleets, self._store, self._compute = database, fleets, store, compute
        self._made: Recent[tuple[UUID, str], Profiles] = Recent(_KEPT)

    async def answer(self, question: Question) -> tuple[Fleet, Profiles]:
        """Of the forecast asked for. Raises what a question of risk raises."""
        fleet = await self._fleets.of(question)
        return fleet, await self.of(fleet)

    async def of(self, fleet: Fleet) -> Profiles:
        """Those of the servers of a forecast, by the metric that it is of."""
        key = (fleet.forecast.request.dataset_id, fleet.metric)
        return await self._made.get(key, lambda: self._make(fleet))

    async def _make(self, fleet: Fleet) -> Profiles:
        async with self._database.connect() as connection:
            dataset = await datasets.get(connection, fleet.forecast.request.dataset_id)
            servers = await datasets.servers(connection, fleet.forecast.request.dataset_id)
        assert dataset is not None, "a forecast keeps its dataset"
        limits = dict(zip(fleet.matrix.server_ids, known_thresholds(fleet, Limits()).tolist(), strict=True))
        full = [
            _full(fleet.unit, limits.get(server.server_id, np.nan), server.maxima.get(fleet.metric, np.nan))
            for server in servers
        ]
        path = await self._store.local(dataset.location)
        names = [server.server_id for server in servers]
        return await self._compute.run(_grouped, path, fleet.metric, names, np.array(full, np.float64), seconds=SECONDS)


def _full(unit: str, threshold: float, maximum: float) -> float:
    """What counts as 100 % of a server: of an absolute metric its threshold, else the most that it ever had."""
    if unit in risk.DEFAULT_THRESHOLD:
        return 100.0 if unit == "percent" else 1.0
    return next((known for known in (threshold, maximum) if known > 0), np.nan)


def _grouped(path: Path, metric: str, servers: Sequence[str], full: Array) -> Profiles:
    """In a child."""
    return profiles.profiles(load_panel(path, metric, servers), full)

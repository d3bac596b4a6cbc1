"""Why a server's forecast is what it is: the parts that its p50 adds up from.

Nothing of it is kept. The history is read again, prepared as for the fit, and the regression of `structural` fitted to
the server and to others like it, in a child; whatever model made the p50, what this does not explain is `other`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from app import forecasters
from app.compute import ChildDied, Compute, TooSlow
from app.domain.dataset import Server
from app.domain.explanation import Explanation, Parts, explanation
from app.domain.forecast import Forecast
from app.domain.preparation import prepare
from app.errors import Complaint, Invalid, NotFound, Unavailable
from app.services import judging
from app.services.answers import Answers, Selection
from app.services.fitting import Source
from app.storage.artifacts import Store
from app.storage.database import Database

PEERS, NEAR = 200, 1_000
"""Servers that the calendar is learnt from, the most alike of so many next to each other in the dataset: those that
lie apart would have to be read from all over the file."""

SECONDS = 60.0


@dataclass(frozen=True)
class Explained:
    """`timestamps` (horizon) as they are shown; `peers` other servers took part."""

    forecast: Forecast
    server_id: str
    model: str
    timestamps: tuple[str, ...]
    peers: int
    explanation: Explanation


class Explanations:
    def __init__(
        self, database: Database, answers: Answers, store: Store, compute: Compute, country: str, outlier_z: float
    ) -> None:
        self._database, self._answers = database, answers
        self._store, self._compute = store, compute
        self._country, self._outlier_z = country, outlier_z

    async def of(self, forecast_id: UUID, server_id: str, model: str | None) -> Explained:
        """By the best model unless one is named. Raises NotFound, Invalid, ForecastNotReady, NoResults."""
        forecast, runs = await self._answers.chosen(forecast_id, Selection(() if model is None else (model,)))
        plan = await judging.planned(self._database, self._store, forecast_id, self._country)
        if plan is None:
            raise NotFound(f"There is no forecast {forecast_id}.")
        if server_id not in plan.servers:
            detail = f"The forecast has no server {server_id!r}."
            raise Invalid(detail, errors=[Complaint("?server_id", "unknown-server", detail)])
        found = await self._answers.server(runs[0], server_id)
        learnt_from = alike(plan.eligible, plan.servers.index(server_id))
        horizon = forecast.request.horizon
        task = (_parts, plan.source, learnt_from, server_id, horizon, self._outlier_z)
        try:
            parts = await self._compute.run(*task, seconds=SECONDS)
        except (ChildDied, TooSlow) as died:
            raise Unavailable(f"The explanation could not be worked out: {died}. Try again.") from died
        stored = found.values[0, :, found.levels.index(0.5)]
        p50 = np.array([float(str(value)) for value in stored])  # as the quantiles are shown
        return Explained(
            forecast=forecast,
            server_id=server_id,
            model=runs[0].model,
            timestamps=tuple(found.frequency.show(time) for time in found.times()[0]),
            peers=len(learnt_from) - 1,
            explanation=explanation(parts, p50),
        )


def alike(servers: Sequence[Server], place: int) -> list[str]:
    """The server at `place` and up to PEERS - 1 others: of those near it, the ones with most attributes in common, of
    these the nearest."""
    start = max(0, min(place - NEAR // 2, len(servers) - NEAR))
    near = range(start, min(start + NEAR, len(servers)))
    own = servers[place].attributes.items()
    order = sorted(near, key=lambda i: (i != place, -len(own & servers[i].attributes.items()), abs(i - place)))
    return [servers[i].server_id for i in order[:PEERS]]


def _parts(source: Source, servers: Sequence[str], server_id: str, horizon: int, outlier_z: float) -> Parts:
    """In a child."""
    panel, _ = prepare(source.panel(servers), outlier_z)
    return forecasters.explainer().explain(panel, horizon, panel.servers.index(server_id))

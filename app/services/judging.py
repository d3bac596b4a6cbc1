"""From what a run works on to its judged results in the database: what every run shares, whoever fitted it.

It leaves out the fitting and the claim under which a worker does it (runs), AWS (canvas) and the files of a person
(by_hand).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np

from app.domain import risk, tally
from app.domain.dataset import Dataset, Server, Unit
from app.domain.forecast import Forecast
from app.domain.panel import MIN_VALUES, Frequency, Times
from app.domain.risk import Levels
from app.errors import Fatal, NotFound
from app.services import fleets
from app.services.fitting import Assessed, Case, Judged, Part, Source, Yardstick
from app.storage import datasets as stored_datasets
from app.storage import forecasts as stored_forecasts
from app.storage import results as stored_results
from app.storage import risk_rows
from app.storage.artifacts import Store
from app.storage.database import Connection, Database
from app.storage.results import SCORES, ResultMatrix
from app.storage.risk_rows import GROUPS, Standing


@dataclass(frozen=True)
class Plan:
    """What a run works on: the servers that are `eligible`, and the back-test `windows` that their history allows."""

    forecast: Forecast
    dataset: Dataset
    source: Source
    eligible: tuple[Server, ...]
    windows: int

    @cached_property
    def servers(self) -> tuple[str, ...]:
        return tuple(server.server_id for server in self.eligible)

    @cached_property
    def longest(self) -> int:
        """Rows of the server that has most."""
        return _longest(self.eligible)


async def planned(database: Database, store: Store, forecast_id: UUID, country: str) -> Plan | None:
    """None when the forecast is gone. Raises Fatal when this process cannot reach the history."""
    async with database.connect() as connection:
        forecast = await stored_forecasts.get(connection, forecast_id)
        if forecast is None:
            return None
        request = forecast.request
        dataset = await stored_datasets.get(connection, request.dataset_id)
        assert dataset is not None  # a foreign key holds it
        servers = await stored_datasets.servers(connection, request.dataset_id, request.server_ids)
    eligible = tuple(server for server in servers if server.counts.get(request.metric, 0) >= MIN_VALUES)
    try:
        history = await store.local(dataset.location)
    except NotFound:
        raise Fatal(
            "This process's store does not have the history. Workers share the API's data folder, or use "
            "HEADROOM_STORE=s3.",
            slug="history-missing",
        ) from None
    return Plan(
        forecast=forecast,
        dataset=dataset,
        source=Source(str(history), request.metric, dataset.contents.units[request.metric], country),
        eligible=eligible,
        windows=max(0, (_longest(eligible) - MIN_VALUES) // request.horizon),
    )


def _longest(servers: Sequence[Server]) -> int:
    return max((server.rows for server in servers), default=0)


def case(plan: Plan, model: str, parts: Sequence[Part], rules: Levels) -> Case:
    """What the judge is given; `rules` are those of the levels of risk."""
    request, contents = plan.forecast.request, plan.dataset.contents
    return Case(
        model=model,
        source=plan.source,
        servers=plan.servers,
        horizon=request.horizon,
        levels=request.levels,
        windows=plan.windows,
        reported=min(request.backtest_windows, plan.windows),
        parts=tuple(parts),
        seed=plan.forecast.id.int % 2**32,
        period=tally.period(contents.frequency),
        yardstick=yardstick(plan.eligible, request.metric, plan.source.unit, contents.frequency, rules),
    )


def yardstick(
    servers: Sequence[Server], metric: str, unit: Unit, frequency: Frequency, rules: Levels
) -> Yardstick | None:
    """Each server's own threshold; None where one has none, for then nobody is answered without `threshold=`."""
    thresholds = fleets.own_thresholds(servers, unit)
    if np.isnan(thresholds).any():
        return None
    lower, upper = fleets.bounds(servers, metric, unit)
    return Yardstick(thresholds, lower, upper, frequency, rules)


def columns(plan: Plan, judged: Judged, seconds: float, report: Mapping[str, Any]) -> dict[str, Any]:
    """What the row of a run that succeeded says of its results."""
    return {
        "servers": len(plan.servers),
        "fallback_servers": stood_in(judged),
        "scores": asdict(judged.scores) if judged.scores else None,
        "seconds": round(judged.seconds + seconds, 3),
        "report": {
            **report,
            "windows": plan.windows,
            "crossed_quantiles": judged.crossed,
            "level_shifts": int(np.count_nonzero(~np.isnat(judged.shifted_at))),
            "weights": judged.weights,
            "members": None if judged.weights is None else list(judged.weights),
            "paths": judged.template.source,
        },
    }


def stood_in(judged: Judged) -> int:
    """Servers that another model answered for."""
    return sum(name is not None for name in judged.fallback)


async def keep(connection: Connection, run_id: UUID, plan: Plan, judged: Judged) -> None:
    """The results and the risk that follows from them, in the caller's transaction."""
    found = ResultMatrix(
        server_ids=plan.servers,
        as_of=judged.as_of,
        frequency=plan.dataset.contents.frequency,
        levels=plan.forecast.request.levels,
        values=judged.values,
        fallback=judged.fallback,
        scores={name: judged.per_server[name].astype(np.float32) for name in SCORES},
        tally=judged.tally,
        weights=judged.server_weights,
        shifted_at=judged.shifted_at,
    )
    await stored_results.write(connection, run_id, found)
    await stored_results.write_template(connection, run_id, judged.template)
    if judged.assessed is not None:
        await keep_risk(connection, run_id, plan.eligible, plan.source.unit, judged.as_of, judged.assessed)


async def keep_risk(
    connection: Connection, run_id: UUID, servers: Sequence[Server], unit: Unit, as_of: Times, assessed: Assessed
) -> None:
    """What lists are read from; `as_of` (servers,). In the caller's transaction."""
    thresholds = assessed.by.thresholds
    standing = Standing(risk.judged_by(assessed.by.rules, unit), fleets.shared(thresholds), as_of.max())
    names = [server.server_id for server in servers]
    groups = {name: fleets.texts(servers, name) for name in GROUPS}
    await risk_rows.write(connection, run_id, standing, names, thresholds, assessed.risk, groups)

"""A database that holds datasets, forecasts and runs with results, as the tests of the risk answer say."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import sqlalchemy as sa

from app.domain import paths
from app.domain.dataset import Contents, Quality, Server, Unit
from app.domain.forecast import ForecastRequest
from app.domain.panel import Frequency
from app.domain.paths import Template
from app.domain.risk import Levels, Outlook, assess
from app.services import judging
from app.services.fitting import Assessed
from app.storage import datasets, forecasts, results
from app.storage.database import Connection, Database
from app.storage.results import SCORES, ResultMatrix
from app.storage.tables import forecasts as forecast_rows
from app.storage.tables import runs as run_rows

START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2022, 12, 31, tzinfo=UTC)
DAYS = 1096
HORIZON = 10
# server: p50 of every day; p10 and p90 lie 5 below and above.
MEDIANS = {"SRV-1": 60.0, "SRV-2": 86.0, "SRV-3": 95.0, "SRV-4": 20.0, "SRV-5": 82.0}
WHERE = {"SRV-1": "eu", "SRV-2": "us", "SRV-3": "eu", "SRV-4": "us", "SRV-5": "us"}


class World:
    """What the tests put into the database: datasets, forecasts, runs with results."""

    def __init__(self, database: Database, *, stored: bool = True) -> None:
        """`stored`: the risk of a run is stored with its results, as the service does it, where that can be."""
        self.database = database
        self.stored = stored

    async def dataset(
        self,
        *,
        unit: Unit = Unit.PERCENT,
        metric: str = "cpu_p95",
        names: Sequence[str] = tuple(MEDIANS),
        maximum: float = 99.0,
        frequency: Frequency = Frequency.DAILY,
        **attributes: Any,
    ) -> UUID:
        """Five servers; `attributes` maps a name to a value for all, or to a value per server."""
        new = uuid4()
        contents = Contents(
            rows=DAYS * len(MEDIANS),
            servers=len(MEDIANS),
            metrics=(metric,),
            units={metric: unit},
            attributes=("region",),
            known_ahead=(),
            frequency=frequency,
            start=START,
            end=END,
            quality=Quality(0, 0, 0, 0),
        )
        servers = [
            Server(
                name,
                START,
                END,
                DAYS,
                {metric: DAYS - 400 if name == "SRV-4" else DAYS},
                {metric: maximum},
                {"region": WHERE.get(name, "eu")}
                | {
                    key: value[name] if isinstance(value, dict) else value
                    for key, value in attributes.items()
                    if not isinstance(value, dict) or name in value
                },
            )
            for name in names
        ]
        async with self.database.begin() as connection:
            await datasets.insert(
                connection, dataset_id=new, parent_id=None, name="test", location="-", sha256="-", contents=contents
            )
            await datasets.copy_servers(connection, new, servers)
        return new

    async def forecast(
        self,
        dataset: UUID,
        models: Sequence[str] = ("auto",),
        *,
        metric: str = "cpu_p95",
        status: str = "succeeded",
        run_status: str = "succeeded",
        medians: dict[str, float] = MEDIANS,
        finished_at: datetime = END,
        found: ResultMatrix | None = None,
        template: Template | None = None,
    ) -> UUID:
        """Results are `found`, else those of `medians`; every further model's are 1 higher."""
        new = uuid4()
        horizon = HORIZON if found is None else found.values.shape[1]
        request = ForecastRequest(dataset, metric, horizon, models=tuple(models))
        done = status == "succeeded"
        async with self.database.begin() as connection:
            await forecasts.insert(connection, new, request, status, [])
            await connection.execute(
                sa.update(forecast_rows)
                .where(forecast_rows.c.id == new)
                .values(best_model=models[0] if done else None, finished_at=finished_at if done else None)
            )
            for position, model in enumerate(models):
                run = uuid4()
                await connection.execute(
                    sa.insert(run_rows).values(
                        id=run,
                        forecast_id=new,
                        position=position,
                        model=model,
                        status=run_status,
                        scores={"coverage": 0.81},
                    )
                )
                if run_status == "succeeded":
                    whole = found or matrix(medians)
                    whole = replace(whole, values=whole.values + position)
                    joint = template or paths.autoregressive(HORIZON, 0.9)
                    await results.write(connection, run, whole)
                    await results.write_template(connection, run, joint)
                    if self.stored:
                        await self._judged(connection, run, dataset, metric, whole, joint)
        return new

    async def _judged(
        self, connection: Connection, run: UUID, dataset: UUID, metric: str, found: ResultMatrix, template: Template
    ) -> None:
        of = await datasets.get(connection, dataset)
        assert of is not None
        unit, frequency = of.contents.units[metric], found.frequency
        servers = await datasets.servers(connection, dataset, found.server_ids)
        by = judging.yardstick(servers, metric, unit, frequency, Levels())
        if by is not None:
            outlook = Outlook(found.values, found.levels, found.as_of, frequency, unit, by.lower, by.upper)
            assessed = Assessed(by, assess(outlook, by.thresholds, template, by.rules))
            await judging.keep_risk(connection, run, servers, unit, found.as_of, assessed)


def matrix(medians: dict[str, float]) -> ResultMatrix:
    """Quantiles as MEDIANS says; SRV-2 by a fallback, SRV-1 a day behind the others."""
    middle = np.array(list(medians.values()))[:, None, None]
    values = np.broadcast_to(middle + np.array([-5, 0, 5]), (len(medians), HORIZON, 3)).astype(np.float32)
    behind = [name == "SRV-1" for name in medians]
    return ResultMatrix(
        server_ids=tuple(medians),
        as_of=np.datetime64("2022-12-31T00:00:00", "s") - np.array(behind) * np.timedelta64(1, "D"),
        frequency=Frequency.DAILY,
        levels=(0.1, 0.5, 0.9),
        values=values,
        fallback=tuple("seasonal_naive" if name == "SRV-2" else None for name in medians),
        scores={name: np.where(np.array(behind), np.nan, 0.75).astype(np.float32) for name in SCORES},
    )

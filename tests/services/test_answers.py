"""A whole selection is read in parts that stay small, however far the forecast looks."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from app.domain.forecast import Forecast, ForecastRequest
from app.domain.panel import Frequency
from app.domain.run import Run
from app.services.answers import VALUES, Answers, Selection
from app.storage.database import Database
from app.storage.results import SCORES, ResultMatrix, Results, write
from app.storage.tables import datasets, forecasts, runs

LEVELS = (0.1, 0.5, 0.9)


async def a_forecast(database: Database, horizon: int, models: tuple[str, ...]) -> Forecast:
    """Rows for results to belong to, and what they stand for."""
    dataset_id, forecast_id = uuid4(), uuid4()
    request = ForecastRequest(dataset_id=dataset_id, metric="cpu", horizon=horizon, models=models)
    made = tuple(Run.queued(forecast_id, model, position, 1) for position, model in enumerate(models))
    async with database.begin() as connection:
        await connection.execute(
            sa.insert(datasets).values(
                id=dataset_id, name="n", location="l", sha256="s", rows=1, servers=1, metrics=["cpu"], units={},
                attributes=[], known_ahead=[], frequency="H", start=sa.func.now(), end=sa.func.now(), quality={},
            )
        )  # fmt: skip
        await connection.execute(
            sa.insert(forecasts).values(
                id=forecast_id, dataset_id=dataset_id, metric="cpu", request={}, quantiles=list(LEVELS), status="queued"
            )
        )
        for run in made:
            await connection.execute(
                sa.insert(runs).values(
                    id=run.id, forecast_id=forecast_id, position=run.position, model=run.model, status="queued"
                )
            )
    now = datetime.now(UTC)
    return Forecast(forecast_id, request, "succeeded", (), None, made, 1, now, now)


async def fill(database: Database, run_id: UUID, servers: int, horizon: int) -> None:
    start = np.datetime64("2024-01-01", "s")
    found = ResultMatrix(
        server_ids=tuple(f"srv-{number:04}" for number in range(servers)),
        as_of=np.full(servers, start),
        frequency=Frequency.HOURLY,
        levels=LEVELS,
        values=np.arange(servers * horizon * 3, dtype=np.float32).reshape(servers, horizon, 3),
        fallback=(None,) * servers,
        scores={name: np.full(servers, np.nan, np.float32) for name in SCORES},
    )
    async with database.begin() as connection:
        await write(connection, run_id, found)


@pytest.mark.parametrize(
    ("servers", "horizon", "models"), [(40, 2_200, ("auto",)), (40, 1_000, ("auto", "structural")), (600, 1, ("auto",))]
)
async def test_no_part_is_large_and_none_is_missing(
    database_url: str, servers: int, horizon: int, models: tuple[str, ...]
) -> None:
    database = Database(database_url)
    forecast = await a_forecast(database, horizon, models)
    for run in forecast.runs:
        await fill(database, run.id, servers, horizon)
    answers = Answers(None, Results(database))  # type: ignore[arg-type]  # forecasts are not asked for here
    parts = [part async for part in answers.tables(forecast, forecast.runs, Selection())]
    assert len(parts) > 1
    assert max(part.num_rows for part in parts) * len(LEVELS) <= VALUES
    whole = pa.concat_tables(parts)
    assert whole.num_rows == servers * horizon * len(models)
    assert whole.group_by(["server_id", "model", "timestamp"]).aggregate([]).num_rows == whole.num_rows
    assert whole.column("server_id").to_pylist() == sorted(whole.column("server_id").to_pylist())
    await database.close()


async def test_a_server_is_never_split(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.answers.VALUES", 10)
    database = Database(database_url)
    forecast = await a_forecast(database, 20, ("auto",))
    await fill(database, forecast.runs[0].id, 3, 20)
    answers = Answers(None, Results(database))  # type: ignore[arg-type]  # forecasts are not asked for here
    parts = [part async for part in answers.tables(forecast, forecast.runs, Selection())]
    assert [part.num_rows for part in parts] == [20, 20, 20]
    await database.close()

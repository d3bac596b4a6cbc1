"""Results go in by binary COPY and come out as the same arrays, by the view too."""

from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from app.domain.panel import Frequency
from app.domain.paths import autoregressive
from app.storage.database import Database
from app.storage.results import SCORES, ResultMatrix, Results, write, write_template
from app.storage.tables import datasets, forecasts, runs


async def a_run(database: Database, levels: tuple[float, ...]) -> UUID:
    """A run without a life, for results to belong to."""
    dataset_id, forecast_id, run_id = uuid4(), uuid4(), uuid4()
    async with database.begin() as connection:
        await connection.execute(
            sa.insert(datasets).values(
                id=dataset_id, name="n", location="l", sha256="s", rows=1, servers=1, metrics=["cpu"], units={},
                attributes=[], known_ahead=[], frequency="D", start=sa.func.now(), end=sa.func.now(), quality={},
            )
        )  # fmt: skip
        await connection.execute(
            sa.insert(forecasts).values(
                id=forecast_id, dataset_id=dataset_id, metric="cpu", request={}, quantiles=list(levels), status="queued"
            )
        )
        await connection.execute(
            sa.insert(runs).values(id=run_id, forecast_id=forecast_id, position=0, model="auto", status="queued")
        )
    return run_id


def a_matrix(levels: tuple[float, ...], frequency: Frequency, servers: int, horizon: int) -> ResultMatrix:
    random = np.random.default_rng(7)
    ids = sorted([f"srv-{number:04d}" for number in range(servers - 1)] + ['Ünïcode \' "<img>"'])
    return ResultMatrix(
        server_ids=tuple(ids),
        as_of=np.datetime64("2022-12-31T05:00:00", "s") + np.arange(servers) * frequency.step,
        frequency=frequency,
        levels=levels,
        values=np.sort(random.normal(50, 20, (servers, horizon, len(levels))).astype(np.float32), axis=-1),
        fallback=tuple("seasonal_naive" if number % 3 == 0 else None for number in range(servers)),
        scores={
            name: np.where(random.random(servers) < 0.3, np.nan, random.random(servers)).astype("f4") for name in SCORES
        },
        tally=random.random((servers, 2, 5)).astype("f4"),
        weights=random.random((servers, 3)).astype("f4"),
        shifted_at=np.where(
            np.arange(servers) % 4 == 0, np.datetime64("2022-11-30T07:00:00", "s"), np.datetime64("NaT")
        ),
    )


@pytest.mark.parametrize("levels", [(0.1, 0.5, 0.9), (0.05, 0.1, 0.5, 0.9, 0.975)])
@pytest.mark.parametrize("frequency", list(Frequency))
async def test_results_come_back_as_they_went_in(
    database_url: str, levels: tuple[float, ...], frequency: Frequency
) -> None:
    database = Database(database_url)
    run_id = await a_run(database, levels)
    put = a_matrix(levels, frequency, servers=1_205, horizon=9)
    async with database.begin() as connection:
        await write(connection, run_id, put)
    got = await Results(database).matrix(run_id)
    assert got.server_ids == put.server_ids
    assert got.fallback == put.fallback
    assert (got.frequency, got.levels) == (frequency, levels)
    np.testing.assert_array_equal(got.as_of, put.as_of)
    np.testing.assert_array_equal(got.values, put.values)
    for name in SCORES:
        np.testing.assert_array_equal(got.scores[name], put.scores[name])
    np.testing.assert_array_equal(got.weights, put.weights)
    np.testing.assert_array_equal(got.shifted_at, put.shifted_at)
    tally = await Results(database).tally(run_id)
    assert tally is not None
    assert tally[0] == put.server_ids
    np.testing.assert_array_equal(tally[1], put.tally)
    some = await Results(database).some(run_id, first=put.server_ids[10], limit=3)
    assert some is not None
    assert some.server_ids == put.server_ids[10:13]
    await database.close()


async def test_what_is_not_known_of_results_stays_unknown(database_url: str) -> None:
    database = Database(database_url)
    run_id = await a_run(database, (0.1, 0.5, 0.9))
    put = a_matrix((0.1, 0.5, 0.9), Frequency.DAILY, servers=3, horizon=2)
    async with database.begin() as connection:
        await write(connection, run_id, replace(put, tally=None, weights=None, shifted_at=None))
    got = await Results(database).matrix(run_id)
    np.testing.assert_array_equal(got.values, put.values)
    assert got.weights is None
    assert got.shifted_at is not None
    assert np.isnat(got.shifted_at).all()
    assert await Results(database).tally(run_id) is None
    await database.close()


async def test_the_view_unnests_them(database_url: str) -> None:
    database = Database(database_url)
    run_id = await a_run(database, (0.1, 0.5, 0.9))
    put = a_matrix((0.1, 0.5, 0.9), Frequency.HOURLY, servers=2, horizon=3)
    async with database.begin() as connection:
        await write(connection, run_id, put)
        rows = (
            await connection.execute(
                sa.text(
                    'SELECT * FROM forecast_quantiles WHERE run_id = :run ORDER BY server_id COLLATE "C", timestamp'
                ),
                {"run": run_id},
            )
        ).all()
    assert len(rows) == 6
    assert rows[4].server_id == put.server_ids[1]
    assert rows[4].model == "auto"
    assert np.datetime64(rows[4].timestamp.replace(tzinfo=None), "s") == put.times()[1, 1]
    assert [rows[4].p10, rows[4].p50, rows[4].p90] == pytest.approx(put.values[1, 1].tolist())
    await database.close()


async def test_a_path_template_comes_back(database_url: str) -> None:
    database = Database(database_url)
    run_id = await a_run(database, (0.1, 0.5, 0.9))
    template = autoregressive(12)
    async with database.begin() as connection:
        await write_template(connection, run_id, template)
    got = await Results(database).template(run_id)
    assert got is not None
    np.testing.assert_array_equal(got.ranks, template.ranks)
    assert await Results(database).template(uuid4()) is None
    await database.close()

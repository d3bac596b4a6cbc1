"""The ledger: it balances, nothing in it changes, and a budget for three is enough for three."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from app.domain.cost import Balance, Kind, Settled
from app.storage import ledger
from app.storage.database import Connection, Database
from app.storage.tables import ledger as lines

BUDGET = 1_000_000


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def reserve(
    connection: Connection,
    run_id: UUID,
    amount: int = 200_000,
    *,
    budget: int = BUDGET,
    attempt: int = 0,
    forecast_id: UUID | None = None,
    model: str = "canvas",
) -> bool:
    return await ledger.reserve(
        connection,
        run_id=run_id,
        forecast_id=forecast_id or uuid4(),
        model=model,
        owner="",
        attempt=attempt,
        amount=amount,
        monthly_budget=budget,
    )


async def line_count(database: Database) -> int:
    async with database.connect() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(lines)) or 0


async def backdate(database: Database, run_id: UUID, kind: Kind, days: int) -> None:
    """As if the line had been written then; the trigger would refuse it, so it is out of the way for once."""
    async with database.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE ledger DISABLE TRIGGER append_only"))
        await connection.execute(
            sa.update(lines)
            .where(lines.c.run_id == run_id, lines.c.kind == kind)
            .values(created_at=sa.func.now() - timedelta(days=days))
        )
        await connection.execute(sa.text("ALTER TABLE ledger ENABLE TRIGGER append_only"))


async def test_what_is_left_is_released(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        assert await reserve(connection, run)
        open_ = await ledger.balance(connection, run)
        assert (open_.held, open_.committed) == (200_000, 200_000)
        closed = await ledger.settle(
            connection, run, 0, [Settled("automl", 90_000), Settled("transform-forecast", 10_001)]
        )
        assert closed == Balance(reserved=200_000, settled=100_001, released=99_999)
        assert (closed.held, closed.committed) == (0, 100_001)
        assert await ledger.month_committed(connection) == 100_001


async def test_what_passes_the_reservation_is_an_overrun_of_the_purpose_that_passed_it(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)
        closed = await ledger.settle(
            connection, run, 0, [Settled("automl", 150_000), Settled("transform-forecast", 70_000)]
        )
        assert closed == Balance(reserved=200_000, settled=220_000, overrun=20_000)
        assert closed.held == 0
        overrun = (await connection.execute(sa.select(lines).where(lines.c.kind == Kind.OVERRUN))).one()
        assert (overrun.purpose, overrun.amount_microusd) == ("transform-forecast", 20_000)
        assert await ledger.month_committed(connection) == 220_000


async def test_a_repeat_changes_nothing(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        assert await reserve(connection, run)
        assert await reserve(connection, run, 777)
        first = await ledger.settle(connection, run, 0, [Settled("automl", 50_000)])
        assert await ledger.settle(connection, run, 0, [Settled("automl", 60_000)]) == first
        assert await ledger.release(connection, run, 0) == first
    assert await line_count(database) == 3


async def test_a_released_attempt_is_closed_and_the_next_one_is_another(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)
        assert await ledger.release(connection, run, 0) == Balance(reserved=200_000, released=200_000)
        with pytest.raises(ledger.NotOpen):
            await reserve(connection, run)
        assert await reserve(connection, run, attempt=1)
        assert (await ledger.balance(connection, run)).held == 200_000


async def test_a_cost_that_turns_up_after_the_release_is_booked_as_an_overrun(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)
        await ledger.release(connection, run, 0)
        late = await ledger.settle(connection, run, 0, [Settled("automl", 30_000)])
        assert late == Balance(reserved=200_000, settled=30_000, released=200_000, overrun=30_000)
        later = await ledger.settle(connection, run, 0, [Settled("automl", 30_000), Settled("transform-forecast", 5)])
        assert (later.overrun, later.held) == (30_005, 0)


async def test_nothing_is_settled_that_was_never_reserved(database: Database) -> None:
    async with database.begin() as connection:
        with pytest.raises(ledger.NotOpen):
            await ledger.settle(connection, uuid4(), 0, [Settled("automl", 1)])


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger SET amount_microusd = 0", "DELETE FROM ledger", "TRUNCATE ledger"]
)
async def test_no_line_changes(database: Database, statement: str) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        async with database.begin() as connection:
            await connection.execute(sa.text(statement))
    async with database.connect() as connection:
        assert (await ledger.balance(connection, run)).reserved == 200_000


@pytest.mark.parametrize(
    "wrong", [{"amount_microusd": -1}, {"kind": "gift"}, {"kind": "reserved"}], ids=["negative", "kind", "twice"]
)
async def test_the_table_itself_refuses_what_must_not_be(database: Database, wrong: dict[str, object]) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)
    row = {
        "run_id": run, "forecast_id": run, "model": "canvas", "owner": "", "attempt": 0, "kind": "settled",
        "purpose": "run", "amount_microusd": 1, "basis": "",
    }  # fmt: skip
    with pytest.raises(sa.exc.IntegrityError):
        async with database.begin() as connection:
            await connection.execute(sa.insert(lines).values(**row | wrong))


async def test_of_two_hundred_at_once_a_budget_for_three_lets_three_in(database: Database) -> None:
    async def try_it() -> bool:
        async with database.begin() as connection:
            return await reserve(connection, uuid4(), budget=3 * 200_000 + 199_999)

    assert sum(await asyncio.gather(*(try_it() for _ in range(200)))) == 3
    assert await line_count(database) == 3


async def test_settled_at_once_by_many_it_is_settled_once(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run)

    async def try_it(amount: int) -> Balance:
        async with database.begin() as connection:
            return await ledger.settle(connection, run, 0, [Settled("automl", amount)])

    balances = await asyncio.gather(*(try_it(amount) for amount in range(1_000, 1_020)))
    assert len(set(balances)) == 1
    assert balances[0].held == 0


@pytest.mark.parametrize(("budget", "amount"), [(0, 0), (0, 1), (199_999, 200_000)])
async def test_without_room_in_the_budget_nothing_is_reserved(database: Database, budget: int, amount: int) -> None:
    async with database.begin() as connection:
        assert not await reserve(connection, uuid4(), amount, budget=budget)
    assert await line_count(database) == 0


async def test_money_given_back_makes_room_again_and_an_overrun_takes_it(database: Database) -> None:
    first, second = uuid4(), uuid4()
    async with database.begin() as connection:
        assert await reserve(connection, first, BUDGET)
        assert not await reserve(connection, second, 1)
        await ledger.release(connection, first, 0)
        assert await reserve(connection, second, BUDGET - 10)
        await ledger.settle(connection, second, 0, [Settled("automl", BUDGET - 5)])
        assert not await reserve(connection, uuid4(), 6)
        assert await reserve(connection, uuid4(), 5)


async def test_last_months_reservation_given_back_makes_no_room_in_this_month(database: Database) -> None:
    run = uuid4()
    async with database.begin() as connection:
        await reserve(connection, run, BUDGET)
    await backdate(database, run, Kind.RESERVED, days=32)
    async with database.begin() as connection:
        assert await ledger.month_committed(connection) == 0
        await ledger.release(connection, run, 0)
        assert await ledger.month_committed(connection) == 0
        await ledger.settle(connection, run, 0, [Settled("automl", 7)])
        assert await ledger.month_committed(connection) == 7


async def test_totals_by_forecast_model_and_day(database: Database) -> None:
    forecasts, runs = [uuid4(), uuid4()], [uuid4(), uuid4(), uuid4()]
    async with database.begin() as connection:
        await reserve(connection, runs[0], 100, forecast_id=forecasts[0])
        await reserve(connection, runs[1], 200, forecast_id=forecasts[1])
        await reserve(connection, runs[2], 400, forecast_id=forecasts[1], model="other")
        await ledger.settle(connection, runs[1], 0, [Settled("automl", 250)])
    await backdate(database, runs[0], Kind.RESERVED, days=2)
    async with database.connect() as connection:
        by_forecast = await ledger.totals(connection, None, None, "forecast")
        assert [(total.group, total.balance) for total in by_forecast] == [
            (str(forecasts[1]), Balance(reserved=600, settled=250, overrun=50)),
            (str(forecasts[0]), Balance(reserved=100)),
        ]
        assert await ledger.totals(connection, None, None, "forecast", limit=1) == by_forecast[:1]
        rest = await ledger.totals(connection, None, None, "forecast", before=by_forecast[0].position)
        assert rest == by_forecast[1:]

        by_model = await ledger.totals(connection, None, None, "model")
        assert {total.group: total.balance.reserved for total in by_model} == {"other": 400, "canvas": 300}

        now = (await connection.execute(sa.select(sa.func.now()))).scalar_one()
        today, before_yesterday = (str((now - timedelta(days=days)).date()) for days in (0, 2))
        by_day = await ledger.totals(connection, None, None, "day")
        assert {total.group: total.balance.reserved for total in by_day} == {today: 600, before_yesterday: 100}

        midnight = datetime.combine(now.date(), datetime.min.time(), UTC)
        assert await ledger.total(connection, midnight, None) == Balance(reserved=600, settled=250, overrun=50)
        until = midnight - timedelta(microseconds=1)
        assert await ledger.total(connection, None, until) == Balance(reserved=100)
        assert await ledger.totals(connection, None, until, "model") == [
            ledger.Total("canvas", Balance(reserved=100), by_forecast[1].position)
        ]

"""The models compared within groups: by stretch of the horizon, by an attribute of the servers, and on one server why.

It pools what a run keeps per server (domain/tally). It leaves out the comparison of the whole, which a run keeps as its
scores (answers), and what came later (accuracy).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import tally
from app.domain.dataset import as_text
from app.domain.forecast import Forecast
from app.domain.run import Run
from app.domain.tally import Pooled
from app.errors import Complaint, Invalid
from app.storage import datasets as stored_datasets
from app.storage.database import Database
from app.storage.results import Reals, Results

MONTH = "month"

Tally = tuple[tuple[str, ...], Reals]


@dataclass(frozen=True)
class Group:
    """`name`: the number of a stretch of the horizon, whose steps (from 1) are `first` … `last`; or the value of an
    attribute, None for servers that have none. `models` by name, in the order of the forecast's ranking; None: the run
    kept no sums."""

    name: str | None
    first: int | None
    last: int | None
    models: dict[str, Pooled | None]


class Comparisons:
    def __init__(self, database: Database, results: Results) -> None:
        self._database, self._results = database, results

    async def by(self, name: str, forecast: Forecast, runs: Sequence[Run]) -> list[Group]:
        """By `month`, or by an attribute of the dataset. Raises Invalid for what is neither."""
        async with self._database.connect() as connection:
            dataset = await stored_datasets.get(connection, forecast.request.dataset_id)
            assert dataset is not None  # a foreign key holds it
            if name != MONTH and name not in dataset.contents.attributes:
                raise _unknown(name, dataset.contents.attributes)
            servers = await stored_datasets.servers(connection, dataset.id) if name != MONTH else []
        sums = {run.model: await self._results.tally(run.id) for run in runs}
        if name == MONTH:
            period = tally.period(dataset.contents.frequency)
            return await asyncio.to_thread(_by_month, sums, forecast.request.horizon, period)
        values = {server.server_id: _text(server.attributes.get(name)) for server in servers}
        return await asyncio.to_thread(_by_value, sums, values)


def why(run: Run, weights: Mapping[str, float] | None, fallback: str | None, *, tested: bool) -> str | None:
    """On whose word a server's forecast stands; None where the run's model alone answers for it.

    `tested`: whether a back-test of this server could be scored. An older server has more windows than a younger one.
    """
    if not weights:
        return fallback and f"{fallback} stands in: {run.model} could not be fitted to this server."
    most = max(weights, key=weights.__getitem__)
    share = f"{most} has {weights[most]:.2f} of the weight"
    stands_in = f" {fallback} stands in for a member that could not be fitted to this server." if fallback else ""
    windows = int(str((run.report or {}).get("windows", 0)))
    if not windows:
        return f"{share}: the history is too short for a back-test, so the members' usual shares stand.{stands_in}"
    earlier = "the one earlier window" if windows == 1 else f"{windows} earlier windows"
    if not tested:
        rest = "the fleet's: this server's history is too short, or lacks the values, for a score of its own"
    elif windows == 1:
        rest = "the server's own and the fleet's"
    else:
        rest = "the fleet's and, as far back as its history reaches, the server's own"
    return f"{share}, by the losses in {earlier}, {rest}.{stands_in}"


def _by_month(sums: Mapping[str, Tally | None], horizon: int, period: int) -> list[Group]:
    return [
        Group(
            str(number + 1),
            start + 1,
            min(start + period, horizon),
            {model: its and tally.pool(its[1][:, number : number + 1]) for model, its in sums.items()},
        )
        for number, start in enumerate(tally.starts(horizon, period))
    ]


def _by_value(sums: Mapping[str, Tally | None], values: Mapping[str, str | None]) -> list[Group]:
    """Groups by name, those without one last."""
    rows: dict[str, dict[str | None, list[int]]] = {}
    for model, its in sums.items():
        rows[model] = {}
        for row, server in enumerate(its[0] if its else ()):
            rows[model].setdefault(values[server], []).append(row)
    names = sorted({name for its in rows.values() for name in its}, key=lambda name: (name is None, name))
    return [
        Group(
            name,
            None,
            None,
            {
                model: its and tally.pool(its[1][np.array(rows[model].get(name, []), np.int64)])
                for model, its in sums.items()
            },
        )
        for name in names
    ]


def _text(value: str | float | None) -> str | None:
    return None if value is None else as_text(value)


def _unknown(name: str, attributes: Sequence[str]) -> Invalid:
    has = ", ".join(attributes) or "none"
    detail = f"{name!r} is neither server_id nor month nor an attribute of the dataset; its attributes: {has}."
    return Invalid(detail, errors=[Complaint("?by", "unknown-attribute", detail)])

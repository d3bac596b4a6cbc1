"""Who is set side by side: Headroom's models, what could be installed instead, and what figures are held against."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from app import forecasters
from app.domain.fleet import Fleet
from app.domain.panel import Array, Panel
from benchmarks import headroom, oracle, peers
from benchmarks.pool import PROCESSES, Pool

HEADROOM, PEER, REFERENCE = "Headroom", "peer", "reference"

CALENDAR = "holidays.countries"
"""What the calendar of Headroom and of its peers loads with the first holiday that is asked for."""

AT_ONCE = 8
"""Servers of a task of a peer that goes server by server."""


@dataclass(frozen=True)
class Contender:
    """`forecast` answers p10, p50 and p90 (servers, horizon, 3); `imports` is what its processes load before."""

    name: str
    kind: str
    imports: tuple[str, ...]
    forecast: Callable[[Pool, Panel, int], Array]


def headrooms() -> list[Contender]:
    """Every local model that is installed; a run of each with one reported back-test."""

    def made(model: str) -> Contender:
        who = headroom.members(model, PROCESSES)
        return Contender(model, HEADROOM, ("benchmarks.headroom", CALENDAR, *_modules(who)), partial(_headroom, model))

    return [made(model) for model in sorted(forecasters.names(), key=lambda name: (name != "auto", name))]


def installed_instead() -> list[Contender]:
    found = [
        Contender(name, PEER, ("benchmarks.peers", CALENDAR, library), partial(_server_by_server, forecast))
        for name, (forecast, library) in peers.PER_SERVER.items()
    ]
    if "autogluon" in forecasters.names():
        found.append(Contender(peers.AUTOGLUON, PEER, ("benchmarks.peers",), _whole_fleet))
    return found


def held_against(made: Fleet, past: Panel) -> list[Contender]:
    """For the reference fleet alone: what could be known of it, and the mean of four equal weekdays."""

    def given(name: str, values: Array) -> Contender:
        return Contender(name, REFERENCE, (), lambda pool, past, horizon: values)

    return [given(name, values) for name, values in oracle.references(made, past)]


def _modules(models: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"app.forecasters.{model}" for model in models)


def _headroom(model: str, pool: Pool, past: Panel, horizon: int) -> Array:
    return headroom.forecast(past, horizon, model, pool)


def _server_by_server(forecast: Callable[[Panel, int], Array], pool: Pool, past: Panel, horizon: int) -> Array:
    some = np.array_split(np.arange(len(past)), -(-len(past) // AT_ONCE))
    return np.concatenate(pool(forecast, [(past.take(rows), horizon) for rows in some]))


def _whole_fleet(pool: Pool, past: Panel, horizon: int) -> Array:
    answer: Array = pool(peers.autogluon, [(past, horizon)])[0]
    return answer

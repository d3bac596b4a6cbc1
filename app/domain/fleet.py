"""The reference fleet: made-up servers of a bank, whose every cause is known.

A server is of one archetype and belongs to one business unit; a metric of it is

    mean  = (level + trend + shifts) · (1 + weekday + year + events), within 0 … 100
    value = mean · (1 + noise), within 0 … 100, but for a few outliers and missing values

with `level` the level on the last day, so that a fleet of any length ends alike. All parameters stand here and
were fixed, by what simple forecasts score on cpu_p95 (tests/domain/test_fleet.py), before any model was tuned
on the fleet. It leaves out real data, and anything between two days.
"""

from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import ndtri

from app.domain import calendar
from app.domain.panel import Array, Index, Times

SERVERS, START, END, SEED = 120, date(2022, 1, 1), date(2025, 12, 31), 42
COUNTRY = "US"


@dataclass(frozen=True)
class Archetype:
    """What servers of one kind have in common; effects are shares of the server's own level.

    `weekday` runs from Monday to Sunday; `year` is the height of the yearly wave and `busiest` the part of the
    year at which it peaks; `end_of_quarter` the lift on the last day of a quarter, a little less on the days
    before; `holiday` the dip; `noise` the standard deviation and `persistence` the correlation of the noise
    from one day to the next.
    """

    name: str
    share: float
    weekday: tuple[float, float, float, float, float, float, float]
    year: float
    busiest: float
    end_of_quarter: float
    holiday: float
    noise: float
    persistence: float


ARCHETYPES = (
    Archetype("web", 0.35, (0.05, 0.06, 0.06, 0.05, 0.02, -0.10, -0.14), 0.12, 0.92, 0.05, 0.10, 0.088, 0.45),
    Archetype("database", 0.25, (0.05, 0.05, 0.04, 0.04, 0.03, -0.09, -0.12), 0.08, 0.88, 0.15, 0.12, 0.070, 0.55),
    Archetype("application", 0.25, (0.09, 0.10, 0.09, 0.08, 0.04, -0.18, -0.22), 0.07, 0.15, 0.14, 0.24, 0.080, 0.45),
    Archetype("batch", 0.15, (0.12, -0.04, -0.04, -0.02, 0.12, -0.02, -0.12), 0.05, 0.50, 0.28, 0.04, 0.102, 0.25),
)


@dataclass(frozen=True)
class Metric:
    """How a metric differs from the load that the archetypes describe; all but `median` and `spread` are factors.

    Levels are log-normal around `median` percent with the log standard deviation `spread`, at most `highest`.
    `sawtooth` is the share of servers on which the metric piles up and is cleaned away.
    """

    name: str
    median: float
    spread: float
    highest: float
    rhythm: float
    growth: float
    noise: float
    sawtooth: float


METRICS = (
    Metric("cpu_p95", 46.0, 0.26, 74.0, 1.0, 1.0, 1.0, 0.0),
    Metric("mem_p95", 58.0, 0.22, 84.0, 0.25, 0.7, 0.3, 0.1),
    Metric("disk_p95", 52.0, 0.30, 80.0, 0.02, 1.5, 0.08, 0.6),
    Metric("net_p95", 30.0, 0.45, 70.0, 1.3, 1.2, 1.4, 0.0),
)

BUSINESS_UNITS = {
    "retail_banking": 0.26,
    "payments": 0.20,
    "corporate_banking": 0.14,
    "markets": 0.14,
    "risk": 0.10,
    "finance": 0.08,
    "wealth": 0.08,
}
CLOSING_UNITS = ("markets", "risk", "finance")
"""Units that close their books at the end of a quarter: their lift is half as large again."""

REGIONS = {"us-east": 0.4, "us-west": 0.2, "eu-central": 0.25, "ap-south": 0.15}
CRITICALITIES = {"critical": 0.2, "high": 0.3, "medium": 0.35, "low": 0.15}

GREAT_HOLIDAYS = ("Thanksgiving Day", "Christmas Day", "New Year's Day")
"""Holidays whose dip is twice that of the others."""

GROWTH_PER_YEAR = (0.04, 0.07)
"""Mean and standard deviation of a server's growth, as a share of its level."""

SHIFTS_PER_YEAR, SHIFT_SIZE = 0.2, 0.15
"""How often a server's level jumps (a migration, a new release), and the standard deviation of the jump."""

OUTLIER_RATE, MISSING_RATE = 0.002, 0.004
OUTAGES_PER_YEAR, OUTAGE_DAYS = 0.5, 8
"""How often all metrics of a server are missing for a while, and the longest while."""

BURST_RATE, BURST_SIZE = 0.05, 2.5
"""Heavy tails: on this share of days the noise is so many times as strong."""


@dataclass(frozen=True)
class Fleet:
    """Who the servers are. `archetype` indexes ARCHETYPES; the attributes are text, all (servers,)."""

    seed: int
    times: Times
    servers: NDArray[np.str_]
    archetype: Index
    business_unit: NDArray[np.str_]
    region: NDArray[np.str_]
    criticality: NDArray[np.str_]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.servers), len(self.times)

    def of_archetype(self, parameter: str) -> Array:
        """A parameter of each server's archetype: (servers, …)."""
        return np.array([getattr(archetype, parameter) for archetype in ARCHETYPES])[self.archetype]


@dataclass(frozen=True)
class Parts:
    """What one metric is made of: float64 (servers, steps), but for `level`, (servers, 1).

    `noise` is relative to the mean; `noise_scale` and `persistence`, (servers,), are its standard deviation and
    its correlation from one day to the next. With `mean` they are all that an oracle may know.
    """

    level: Array
    trend: Array
    shifts: Array
    weekday: Array
    year: Array
    events: Array
    noise: Array
    noise_scale: Array
    persistence: Array

    @cached_property
    def mean(self) -> Array:
        """What was to be expected, without noise."""
        base = np.maximum(self.level + self.trend + self.shifts, 0.2 * self.level)
        return np.clip(base * (1 + self.weekday + self.year + self.events), 0, 100)


@dataclass(frozen=True, eq=False)
class Observed:
    """What monitoring saw of a metric: `values` (servers, steps), and where it saw nothing."""

    values: Array
    missing: NDArray[np.bool_]


def make(servers: int = SERVERS, start: date = START, end: date = END, seed: int = SEED) -> Fleet:
    """The servers and the days of a fleet, before any metric."""
    if servers < 1:
        raise ValueError(f"a fleet needs at least one server, not {servers}")
    if end < start:
        raise ValueError(f"the fleet would end on {end}, before it starts on {start}")
    random = np.random.default_rng(seed)
    width = max(4, len(str(servers)))
    return Fleet(
        seed=seed,
        times=np.arange(np.datetime64(start), np.datetime64(end + timedelta(days=1))).astype("datetime64[s]"),
        servers=np.array([f"SRV-{number:0{width}}" for number in range(1, servers + 1)]),
        archetype=_quota(random, servers, [archetype.share for archetype in ARCHETYPES]),
        business_unit=_assigned(random, servers, BUSINESS_UNITS),
        region=_assigned(random, servers, REGIONS),
        criticality=_assigned(random, servers, CRITICALITIES),
    )


def parts(fleet: Fleet, metric: str) -> Parts:
    """What a metric of the fleet is made of. Raises KeyError for a metric that the fleet has not."""
    number, shape = {each.name: (number, each) for number, each in enumerate(METRICS)}[metric]
    random = np.random.default_rng([fleet.seed, number])
    servers = fleet.shape[0]

    def varied(parameter: str) -> Array:
        """Each server's own strength of an effect of its archetype: (servers, 1)."""
        return (fleet.of_archetype(parameter) * random.uniform(0.6, 1.4, servers))[:, None]

    level = _levels(random, servers, shape)
    before_end = (fleet.times[-1] - fleet.times).astype(np.float64) / (365.25 * 86_400)
    growth = shape.growth * np.clip(random.normal(*GROWTH_PER_YEAR, (servers, 1)), -0.1, 0.25)
    weekly = fleet.of_archetype("weekday") * random.uniform(0.6, 1.4, (servers, 1))
    phase = calendar.day_of_year(fleet.times) - fleet.of_archetype("busiest")[:, None]
    year = varied("year") * np.cos(2 * np.pi * (phase - random.normal(0, 0.04, (servers, 1))))
    scale = shape.noise * varied("noise")[:, 0]
    return Parts(
        level=level,
        trend=level * (np.exp(-growth * before_end) - 1 + _sawtooth(fleet, random, shape.sawtooth)),
        shifts=level * _shifts(fleet, random),
        weekday=shape.rhythm * weekly[:, calendar.weekday(fleet.times)],
        year=shape.rhythm * year,
        events=shape.rhythm * _events(fleet, varied("end_of_quarter"), varied("holiday")),
        noise=_noise(fleet, random, scale),
        noise_scale=scale,
        persistence=fleet.of_archetype("persistence"),
    )


def as_known(made: Parts, days: int) -> Parts:
    """The parts as who knows them all could know them after so many days: later shifts have not happened."""
    shifts = made.shifts.copy()
    shifts[:, days:] = shifts[:, days - 1 : days]
    return replace(made, shifts=shifts)


def observe(fleet: Fleet) -> dict[str, Observed]:
    """Every metric with its noise, outliers and missing values; the same fleet, the same values."""
    random = np.random.default_rng([fleet.seed, 1_000])
    outage = _outages(fleet, random)
    seen = {}
    for metric in METRICS:
        values = _with_outliers(parts(fleet, metric.name), random)
        seen[metric.name] = Observed(values, outage | (random.random(values.shape, dtype=np.float32) < MISSING_RATE))
    return seen


def _levels(random: Generator, servers: int, metric: Metric) -> Array:
    """Levels at even steps of their distribution, shuffled: small fleets have their idle and their full servers too."""
    at = (random.permutation(servers) + random.random(servers)) / servers
    levels: Array = np.minimum(metric.median * np.exp(metric.spread * ndtri(at)), metric.highest)[:, None]
    return levels


def _shifts(fleet: Fleet, random: Generator) -> Array:
    """Jumps of the level, as a share of it, 0 after the last one."""
    jumps = random.random(fleet.shape, dtype=np.float32) < SHIFTS_PER_YEAR / 365
    size = np.zeros(fleet.shape)
    size[jumps] = np.clip(random.normal(0, SHIFT_SIZE, jumps.sum()), -0.3, 0.3)
    return size[:, ::-1].cumsum(axis=1)[:, ::-1]


def _sawtooth(fleet: Fleet, random: Generator, share: float) -> Array:
    """What piles up between two clean-ups, as a share of the level, around 0; on some servers only."""
    servers, steps = fleet.shape
    period = random.integers(30, 180, (servers, 1))
    height = random.uniform(0.1, 0.35, (servers, 1)) * (random.random((servers, 1)) < share)
    return height * (((np.arange(steps) + random.integers(0, 180, (servers, 1))) % period) / period - 0.5)


def _events(fleet: Fleet, end_of_quarter: Array, holiday: Array) -> Array:
    """The lift that grows towards the last day of a quarter, and the dips of holidays."""
    left = calendar.days_to_quarter_end(fleet.times)
    closing = np.where(calendar.end_of_quarter(fleet.times), 1 - 0.05 * left, 0)
    depth = np.zeros(len(fleet.times))
    for name, days in calendar.holidays(fleet.times, COUNTRY).items():
        depth = np.maximum(depth, days * (2 if name in GREAT_HOLIDAYS else 1))
    closes = np.where(np.isin(fleet.business_unit, CLOSING_UNITS), 1.5, 1.0)[:, None]
    return closes * end_of_quarter * closing - holiday * depth


def _noise(fleet: Fleet, random: Generator, scale: Array) -> Array:
    """First-order autoregressive noise with heavy tails and standard deviation `scale`."""
    shocks = random.standard_normal(fleet.shape)
    shocks *= np.where(random.random(fleet.shape, dtype=np.float32) < BURST_RATE, BURST_SIZE, 1)
    shocks *= scale[:, None] / np.sqrt(1 + BURST_RATE * (BURST_SIZE**2 - 1))
    for number, archetype in enumerate(ARCHETYPES):
        rows, persistence = fleet.archetype == number, archetype.persistence
        shocks[rows, 1:] *= np.sqrt(1 - persistence**2)
        _carry_over(shocks, rows, persistence)
    return shocks


def _carry_over(shocks: Array, rows: NDArray[np.bool_], persistence: float) -> None:
    """Each day keeps its share of the day before, in place."""
    own = shocks[rows].T.copy()
    for step in range(1, len(own)):
        own[step] += persistence * own[step - 1]
    shocks[rows] = own.T


def _with_outliers(made: Parts, random: Generator) -> Array:
    """Mean and noise with a few outliers, half of them peaks and half drops, to two decimals."""
    values = made.mean * (1 + made.noise)
    server, step = np.nonzero(random.random(values.shape, dtype=np.float32) < OUTLIER_RATE)
    peak = random.random(len(server)) < 0.5
    values[server, step] *= np.where(peak, random.uniform(1.3, 1.8, len(server)), random.uniform(0.1, 0.5, len(server)))
    return np.clip(values, 0, 100).round(2)


def _outages(fleet: Fleet, random: Generator) -> NDArray[np.bool_]:
    """Days on which a server sent nothing: bool (servers, steps)."""
    servers, steps = fleet.shape
    outage = np.zeros(fleet.shape, dtype=np.bool_)
    number = random.poisson(OUTAGES_PER_YEAR / 365 * servers * steps)
    server, first = random.integers(0, servers, number), random.integers(0, steps, number)
    day = np.arange(OUTAGE_DAYS)
    silent = (day < random.integers(1, OUTAGE_DAYS + 1, (number, 1))) & (first[:, None] + day < steps)
    outage[np.repeat(server, silent.sum(axis=1)), (first[:, None] + day)[silent]] = True
    return outage


def _quota(random: Generator, servers: int, shares: list[float]) -> Index:
    """Indices into the shares, as many of each as it has of the whole, shuffled."""
    bounds = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(bounds, (random.permutation(servers) + 0.5) / servers).astype(np.int64)


def _assigned(random: Generator, servers: int, shares: dict[str, float]) -> NDArray[np.str_]:
    return np.array(list(shares))[_quota(random, servers, list(shares.values()))]

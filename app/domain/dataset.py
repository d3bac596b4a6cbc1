"""A dataset: an immutable, checked panel of servers, and what its columns mean.

It holds the facts that are kept beside the history. It leaves out the history itself, which is a Parquet artifact.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import numpy as np

from app.domain.panel import Array, Frequency

SERVER_NAMES = ("server_id", "item_id", "unique_id")
TIME_NAMES = ("timestamp", "ds", "date")
NUMERIC_ATTRIBUTES = ("capacity", "threshold", "lead_time_days")
"""Numeric columns that describe a server; every other numeric column is a metric."""
TEXT_ATTRIBUTES = ("business_unit", "region", "criticality")
"""Always attributes, even where the codes used for them happen to be numbers."""

PRICE_ATTRIBUTES = ("usd_per_month", "cost")
"""Where the price of a server is looked for, in this order. Numeric columns that are not declared to be attributes are
metrics, these too."""

_PERCENT_NAMES = ("cpu", "mem", "disk", "net", "util")
_PERCENT_CEILING = 150.0
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")


class Unit(StrEnum):
    """What a metric is measured in, as far as it bounds a forecast."""

    """What the values of a metric are measured in."""

    PERCENT = "percent"  # of a capacity: quantiles lie in [0, max(100, the server's past maximum)]
    RATIO = "ratio"  # the same as a fraction: [0, max(1, past maximum)]
    ABSOLUTE = "absolute"  # anything else: bounded below by 0 when the server never was negative


@dataclass(frozen=True)
class Schema:
    """What the caller says about the columns; what is not said is judged by name and content.

    A column that it names must be there, but for `optional` ones.
    """

    units: dict[str, Unit] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    known_ahead: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()

    @property
    def named(self) -> frozenset[str]:
        return frozenset((*self.units, *self.attributes, *self.known_ahead))

    def contradictions(self) -> list[str]:
        """Columns that were given two roles."""
        roles = (*self.units, *self.attributes, *self.known_ahead)
        return sorted({name for name in roles if roles.count(name) > 1})


@dataclass(frozen=True)
class Limits:
    """Bounds on one upload."""

    bytes: int
    columns: int
    cells: int
    seconds: float = 900.0


@dataclass(frozen=True)
class Quality:
    """`missing` cells of metrics in rows that are there; `gaps` are rows that are not there, between a server's
    first and last. A server is constant, or short, when one of its metrics is: the warnings say which."""

    missing: int
    gaps: int
    constant_servers: int
    short_servers: int
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Quality":
        return cls(**{**body, "warnings": tuple(body["warnings"])})


@dataclass(frozen=True)
class Contents:
    """What reading an upload found: all of a dataset but its identity. Times are UTC."""

    rows: int
    servers: int
    metrics: tuple[str, ...]
    units: dict[str, Unit]
    attributes: tuple[str, ...]
    known_ahead: tuple[str, ...]
    frequency: Frequency
    start: datetime
    end: datetime
    quality: Quality


@dataclass(frozen=True)
class Dataset:
    id: UUID
    parent_id: UUID | None
    name: str
    location: str
    sha256: str
    contents: Contents
    created_at: datetime


@dataclass(frozen=True)
class Server:
    """One server of a dataset; `counts` and `maxima` by metric (no maximum where there is no value)."""

    server_id: str
    first_at: datetime
    last_at: datetime
    rows: int
    counts: dict[str, int]
    maxima: dict[str, float]
    attributes: dict[str, str | float]


def judged_unit(name: str, smallest: float, largest: float) -> Unit:
    """Of an undeclared metric: percent by name when all values lie in 0 to 150, else absolute."""
    inside = smallest >= 0 and largest <= _PERCENT_CEILING
    return Unit.PERCENT if sounds_like_percent(name) and inside else Unit.ABSOLUTE


def sounds_like_percent(name: str) -> bool:
    return name.lower().startswith(_PERCENT_NAMES)


def bounds(unit: Unit, values: Array) -> tuple[Array, Array]:
    """Lower and upper bound of every quantile of each server, from values (servers, steps) with NaN for missing."""
    highest = np.fmax.reduce(values, axis=1, initial=-np.inf)
    lowest = np.fmin.reduce(values, axis=1, initial=np.inf)
    match unit:
        case Unit.PERCENT | Unit.RATIO:
            full = 100.0 if unit is Unit.PERCENT else 1.0
            return np.zeros(len(values)), np.maximum(full, highest)
        case Unit.ABSOLUTE:
            return np.where(lowest >= 0, 0.0, -np.inf), np.full(len(values), np.inf)


def as_text(value: str | float) -> str:
    """An attribute as it is compared and shown: of a number no digit more than it needs, 50 and not 50.0."""
    return value if isinstance(value, str) else spellings(str(value))[-1]


def spellings(asked: str) -> tuple[str, ...]:
    """How an attribute may be written that is asked for: a whole number also with .0, and, last, without it.

    A numeric column comes out of most tools as 50.0 as soon as one of its cells is empty. Nothing else is taken for the
    same: 1.10 and 1.1 may be two versions.
    """
    whole = asked.removesuffix(".0")
    return (f"{whole}.0", whole) if _WHOLE.fullmatch(whole) else (asked,)


def first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of some accepted names that a file has as a column."""
    return next((name for name in names if name in columns), None)

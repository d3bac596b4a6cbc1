"""What is odd about a checked frame, though it is taken: counted, and told in sentences.

Everything is per server over sorted rows, by segments, never a loop over rows.
"""

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.dataset import PRICE_ATTRIBUTES, Quality, Unit, sounds_like_percent
from app.domain.panel import MIN_VALUES, Array, Frequency, Index
from app.services.ingest.checks import Frame
from app.services.ingest.columns import Flags, quoted

FROZEN = {Frequency.DAILY: 28, Frequency.HOURLY: 168}
"""Equal values in a row that no live sensor gives."""
OFF = {Frequency.DAILY: 14, Frequency.HOURLY: 48}
"""Zeros, or missing values, at the end of a history that make a server look switched off."""
_FAR = 1_000.0
_RARE = 0.01
_NEARLY_PERCENT = 400.0
_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Segments:
    """Per-server reductions over the rows of a frame: `starts` and `ends` (exclusive) are rows (servers,)."""

    starts: Index
    ends: Index

    def sum(self, flags: Flags) -> Index:
        return np.add.reduceat(flags, self.starts, dtype=np.int64)

    def max(self, values: Array) -> Array:
        """NaN where a server has no value."""
        return np.fmax.reduceat(values, self.starts)

    def min(self, values: Array) -> Array:
        return np.fmin.reduceat(values, self.starts)

    def last(self, flags: Flags) -> Index:
        """The last flagged row of each server; -1 where there is none."""
        return np.maximum.reduceat(np.where(flags, np.arange(len(flags)), -1), self.starts)


@dataclass(frozen=True)
class Metric:
    """One metric of every server: how many values, and the largest (NaN where there is none): (servers,)."""

    counts: Index
    maxima: Array


def assess(
    frame: Frame,
    units: dict[str, Unit],
    ahead: tuple[str, ...],
    last_row: Index,
    declared: Container[str] = (),
) -> tuple[Quality, dict[str, Metric]]:
    """`last_row` is the row that ends each server's history; what comes after holds known-ahead columns only.

    `declared` metrics are such because somebody said so.
    """
    segments = segments_of(frame)
    within = _within(frame, segments, last_row) if ahead else None
    constant: list[Flags] = []
    short = np.zeros(len(frame.servers), np.bool_)
    missing = 0
    warnings: list[str] = []
    metrics: dict[str, Metric] = {}
    for name, unit in units.items():
        values = frame.numbers[name]
        has = np.isfinite(values)
        counts, highest, lowest = segments.sum(has), segments.max(values), segments.min(values)
        metrics[name] = Metric(counts, highest)
        missing += int((~has if within is None else ~has & within).sum())
        is_short = counts < MIN_VALUES
        is_constant = (counts > 1) & (highest == lowest)
        short = short | is_short
        constant.append(is_constant)
        tell = _Teller(frame.servers, name, warnings)
        tell(is_short, f"fewer than {MIN_VALUES} values: no forecast")
        if name not in declared and _describes(name, counts, is_constant):
            warnings.append(_undeclared(name))
        else:
            tell(is_constant, "it never changes")
        if unit is not Unit.ABSOLUTE:
            _tell_of_rows(tell, frame, segments, values, has, last_row, is_constant | is_short)
        _tell_of_values(warnings, name, unit, values)
    ended = frame.step[last_row]
    early = ended < ended.max()
    if early.any():
        warnings.append(f"{_count(early, frame.servers)} end before the last time of the dataset.")
    span = ended - frame.step[segments.starts] + 1
    gaps = int((span - (last_row - segments.starts + 1)).sum())
    quality = Quality(missing, gaps, _constant_servers(constant), int(short.sum()), tuple(warnings))
    return quality, metrics


def _describes(name: str, counts: Index, is_constant: Flags) -> bool:
    """Whether a metric seems to be a fact of the servers instead: it changes on none, and is no measure by its name."""
    return bool(is_constant.any() and (is_constant | (counts < 2)).all()) and not sounds_like_percent(name)


def _undeclared(name: str) -> str:
    says = f"{name}: read as a metric, as every numeric column is that nobody declared, but it changes on no server. "
    if name in PRICE_ATTRIBUTES:
        return says + (
            "If it is a price, name it in `schema.attributes`: savings (`GET /risk/recommendations`) read prices there "
            "alone, and want a forecast of every metric."
        )
    return says + "If it describes the servers, name it in `schema.attributes`."


def _constant_servers(constant: list[Flags]) -> int:
    """Servers with a metric that never changes. One that changes on few servers is a fact of them, not a measurement
    (the size of a machine, the samples of a day), and makes none constant, unless there is nothing else."""
    measured = [flags for flags in constant if flags.mean() <= 0.5]
    return int(np.logical_or.reduce(measured or constant).sum())


def segments_of(frame: Frame) -> Segments:
    starts = frame.starts
    return Segments(starts, np.append(starts[1:], len(frame)))


class _Teller:
    """Writes one sentence about the servers that are flagged."""

    def __init__(self, servers: tuple[str, ...], metric: str, warnings: list[str]) -> None:
        self._servers, self._metric, self._warnings = servers, metric, warnings

    def __call__(self, flagged: Flags, what: str) -> None:
        if flagged.any():
            self._warnings.append(f"{self._metric}: {what}: {_count(flagged, self._servers)}.")


def _tell_of_rows(
    tell: _Teller, frame: Frame, segments: Segments, values: Array, has: Flags, last_row: Index, known: Flags
) -> None:
    """Sensors that froze, servers that went silent or were switched off."""
    off = OFF[frame.frequency]
    last_value = segments.last(has)
    silent = (last_value >= 0) & (frame.step[last_row] - frame.step[last_value] >= off)
    tell(silent & ~known, f"no value in the last {off} steps or more")
    last_nonzero = segments.last(has & (values != 0))
    zeros = (last_value >= 0) & (frame.step[last_value] - frame.step[np.maximum(last_nonzero, 0)] >= off)
    tell(zeros & (last_nonzero >= 0) & ~known, f"only zeros in the last {off} steps or more, as if switched off")
    length = FROZEN[frame.frequency]
    changes = np.flatnonzero((np.diff(values) != 0) | (np.diff(frame.server) != 0)) + 1
    first = np.concatenate([[0], changes])
    long = (np.diff(np.append(first, len(values))) >= length) & (values[first] != 0)
    frozen = np.zeros(len(frame.servers), np.bool_)
    frozen[frame.server[first[long]]] = True
    tell(frozen & ~known, f"the same value {length} times or more in a row, as if the sensor froze")


def _tell_of_values(warnings: list[str], name: str, unit: Unit, values: Array) -> None:
    """Values that a person should look at before believing a forecast of them."""
    low, high, negative = np.nanmin(values), np.nanmax(values), int((values < 0).sum())
    if unit is not Unit.ABSOLUTE:
        if negative:
            warnings.append(f"{name}: {negative:,} negative values, though its unit is {unit}.")
        if unit is Unit.PERCENT and high <= 1:
            warnings.append(f"{name}: read as percent, but no value is above 1; declare it a ratio if it is one.")
        return
    if sounds_like_percent(name) and high <= _NEARLY_PERCENT:
        says = f"{name}: read as absolute, since its values go from {low:g} to {high:g}; declare it percent if it is."
        warnings.append(says)
    if 0 < negative < _RARE * len(values):
        warnings.append(f"{name}: {negative:,} negative values among positive ones.")
    sample = np.abs(values[:: len(values) // _SAMPLE + 1])
    usual = float(np.nanquantile(sample, 1 - _RARE)) if np.isfinite(sample).any() else 0.0
    far = int(((values > _FAR * usual) | (values < -_FAR * usual)).sum()) if usual > 0 else 0
    if far:
        warnings.append(
            f"{name}: {far:,} values lie over {_FAR:,.0f} times beyond 99 % of all; the largest is {high:g}."
        )


def _within(frame: Frame, segments: Segments, last_row: Index) -> Flags:
    """Rows of the history, not of what is only known ahead."""
    ends = np.repeat(last_row, segments.ends - segments.starts)
    within: NDArray[np.bool_] = np.arange(len(frame)) <= ends
    return within


def _count(flagged: Flags, servers: tuple[str, ...]) -> str:
    """`3 of 250 servers ('a', 'b', 'c')`."""
    total = int(flagged.sum())
    shown = ", ".join(quoted(servers[place]) for place in np.flatnonzero(flagged)[:3])
    more = ", …" if total > 3 else ""
    return f"{total:,} of {len(servers):,} servers ({shown}{more})"

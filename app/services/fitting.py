"""What a run does in child processes: fit one model to a chunk of servers, and judge all that was fitted.

It holds plain functions of picklable values, so that a child on this machine or another can call them. It leaves
out who calls them, in what order, and what happens when one dies (runs).
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from app import forecasters
from app.domain import risk, shifts
from app.domain.dataset import Unit, bounds
from app.domain.evaluation import Scores, Trial, judge, seasonal_scale
from app.domain.panel import MIN_VALUES, Array, Frequency, Panel, Times
from app.domain.paths import Template, template
from app.domain.preparation import prepare
from app.domain.risk import Levels, Outlook, Risk
from app.failpoints import reach
from app.storage.panels import load_panel

Values = np.ndarray[Any, np.dtype[np.float32]]


SERVERS_AT_ONCE = 500
"""Histories read at once where no model needs more: bounds the memory of a child, however large the fleet."""


class BadModelOutput(Exception):
    """A model answered with something that is not a forecast."""


@dataclass(frozen=True)
class Source:
    """Where a child reads the history of one metric."""

    path: str
    metric: str
    unit: Unit
    country: str

    def panel(self, servers: Sequence[str]) -> Panel:
        return load_panel(Path(self.path), self.metric, servers, self.country)


@dataclass(frozen=True)
class Piece:
    """One fit: a model, the history of some servers as it stood before a window (0: all of it)."""

    model: str
    window: int
    source: Source
    start: int
    """place of the first of `servers` among all of the run's"""
    servers: tuple[str, ...]
    horizon: int
    levels: tuple[float, ...]
    outlier_z: float
    out: str
    """file that gets float32 (servers, horizon, levels), NaN for a server with too little history"""


@dataclass(frozen=True)
class Fitted:
    """What a fit took and changed: seconds, values filled into gaps, outliers capped."""

    seconds: float
    filled: int
    capped: int


def fit(piece: Piece) -> Fitted:
    """Fit, predict, and leave the quantiles in `piece.out`, whole or not at all."""
    began = time.perf_counter()
    values, fitted = predicted(piece, history(piece))
    keep(piece, values)
    return replace(fitted, seconds=time.perf_counter() - began)


def history(piece: Piece) -> Panel:
    """What the fit may know, without the servers' bounds."""
    return _read(piece.source, piece.servers).before(piece.window * piece.horizon)


@lru_cache(maxsize=1)
def _read(source: Source, servers: tuple[str, ...]) -> Panel:
    """Kept for the next piece: most often the same servers before another window."""
    return source.panel(servers)


def predicted(piece: Piece, past: Panel) -> tuple[Values, Fitted]:
    """The quantiles, as `piece.out` gets them. It touches no file of Headroom's: any machine can do it."""
    began = time.perf_counter()
    for server in piece.servers:
        reach(f"fit.{piece.model}.{server}")
    lower, upper = bounds(piece.source.unit, past.values)
    past = replace(past, lower=lower, upper=upper)
    enough = np.flatnonzero(past.counts() >= MIN_VALUES)
    values = np.full((len(piece.servers), piece.horizon, len(piece.levels)), np.nan, np.float32)
    filled = capped = 0
    if len(enough):
        prepared, changes = prepare(past.take(enough), piece.outlier_z)
        model = forecasters.member(piece.model).fit(prepared, piece.horizon)
        quantiles = model.predict(piece.horizon, piece.levels)
        with np.errstate(over="ignore"):
            kept = quantiles.astype(np.float32)  # as it will be stored: what is finite before need not be after
        if kept.shape != values[enough].shape or not np.isfinite(kept).all():
            raise BadModelOutput(f"{piece.model} gave values that are missing or not finite")
        values[enough] = kept
        filled, capped = int(changes.filled.sum()), int(changes.capped.sum())
    return values, Fitted(time.perf_counter() - began, filled, capped)


def keep(piece: Piece, values: Values) -> None:
    unfinished = f"{piece.out}.{os.getpid()}"
    with open(unfinished, "wb") as file:
        np.save(file, values, allow_pickle=False)
    os.replace(unfinished, piece.out)


@dataclass(frozen=True)
class Part:
    """A finished piece as the judge reads it: its place in (window, servers), and the model that really made it."""

    model: str
    window: int
    start: int
    stop: int
    path: str
    stand_in: str | None = None


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What a run's servers are judged against where nobody asks otherwise: each one's threshold and the bounds of the
    metric, (servers,), and the rules of the levels."""

    thresholds: Array
    lower: Array
    upper: Array
    frequency: Frequency
    rules: Levels


@dataclass(frozen=True, eq=False)
class Assessed:
    """The risk of a run's servers, and what it was judged against."""

    by: Yardstick
    risk: Risk


@dataclass(frozen=True)
class Case:
    """All that was fitted for one run. `windows` back-tests, of which the newest `reported` are scored."""

    model: str
    source: Source
    servers: tuple[str, ...]
    horizon: int
    levels: tuple[float, ...]
    windows: int
    reported: int
    parts: tuple[Part, ...]
    seed: int
    period: int = 30
    """steps of a stretch of the horizon that scores are told apart by"""
    yardstick: Yardstick | None = None
    """None: the risk is not asked for, or some server has no threshold"""


@dataclass(frozen=True)
class Judged:
    """What a run stores: float32 (servers, horizon, levels), per-server scores, the pooled ones, the path template.

    `weights` are means over the servers, `server_weights` (servers, members) each one's own, None but of an ensemble.
    `shifted_at` (servers,): when the level shifted lately, NaT where it did not. `assessed` is None where nothing
    was to be judged against.
    """

    values: Values
    as_of: Times
    fallback: tuple[str | None, ...]
    per_server: dict[str, Array]
    scores: Scores | None
    template: Template
    crossed: int
    weights: dict[str, float] | None
    server_weights: Values | None
    tally: Values
    shifted_at: Times
    assessed: Assessed | None
    seconds: float


@dataclass(frozen=True)
class _Past:
    """What the judge needs of the history: `actual` (windows, servers, horizon); the seasonal scale and the bounds by
    the history before each origin, (1 + windows, servers); `as_of` and `shifted_at` (servers,)."""

    actual: Array
    scale: Array
    lower: Array
    upper: Array
    as_of: Times
    shifted_at: Times


def _past(case: Case) -> _Past:
    """Read some servers at a time: a whole fleet's history weighs many times what is needed of it."""
    windows, servers = case.windows, len(case.servers)
    past = _Past(
        actual=np.empty((windows, servers, case.horizon)),
        scale=np.empty((1 + windows, servers)),
        lower=np.empty((1 + windows, servers)),
        upper=np.empty((1 + windows, servers)),
        as_of=np.empty(servers, "datetime64[s]"),
        shifted_at=np.empty(servers, "datetime64[s]"),
    )
    for start in range(0, servers, SERVERS_AT_ONCE):
        some = slice(start, start + SERVERS_AT_ONCE)
        panel = case.source.panel(case.servers[some])
        past.as_of[some], past.shifted_at[some] = panel.as_of, shifts.shifted_at(panel)
        for w in range(1 + windows):
            before = panel.before(w * case.horizon)
            past.scale[w, some] = seasonal_scale(before, panel.frequency.season)
            past.lower[w, some], past.upper[w, some] = bounds(case.source.unit, before.values)
            if w > 0:
                past.actual[w - 1, some] = panel.window(w, case.horizon)
    return past


def judge_run(case: Case) -> Judged:
    """Put the pieces together, weigh the members of an ensemble, calibrate, score, and draw the path template."""
    began = time.perf_counter()
    past = _past(case)

    def trial(model: str) -> Trial:
        raw = np.full((1 + case.windows, len(case.servers), case.horizon, len(case.levels)), np.nan)
        for part in case.parts:
            if part.model == model:
                raw[part.window, part.start : part.stop] = np.load(part.path, allow_pickle=False)
        return Trial(case.levels, raw, past.actual, past.scale, past.lower, past.upper, case.reported)

    forecaster = forecasters.load(case.model) if case.model in forecasters.names() else None
    weights: dict[str, float] | None = None
    server_weights: Values | None = None
    if isinstance(forecaster, forecasters.Ensemble):
        members = forecaster.members(len(case.servers))
        combined = forecaster.combine({member: trial(member) for member in members})
        whole = combined.trial
        weights = {name: float(weight) for name, weight in zip(members, combined.weights.mean(axis=1), strict=True)}
        server_weights = combined.weights.T.astype(np.float32)
    else:
        whole = trial(case.model)
    verdict = judge(whole, calibrate=forecaster is not None, period=case.period)
    fallback: list[str | None] = [None] * len(case.servers)
    for part in case.parts:
        if part.stand_in and part.window == 0:
            fallback[part.start : part.stop] = [part.stand_in] * (part.stop - part.start)
    values = verdict.values.astype(np.float32)
    paths = template(verdict.normal_scores, case.horizon, seed=case.seed, as_of=past.as_of)
    return Judged(
        values=values,
        as_of=past.as_of,
        fallback=tuple(fallback),
        per_server=verdict.per_server,
        scores=verdict.scores,
        template=paths,
        crossed=verdict.crossed,
        weights=weights,
        server_weights=server_weights,
        tally=verdict.tally.astype(np.float32),
        shifted_at=past.shifted_at,
        assessed=_assessed(case, values, past.as_of, paths),
        seconds=time.perf_counter() - began,
    )


def _assessed(case: Case, values: Values, as_of: Times, paths: Template) -> Assessed | None:
    """By the values as they will be stored, so that a later judgement of those comes to the same."""
    by = case.yardstick
    if by is None:
        return None
    outlook = Outlook(values, case.levels, as_of, by.frequency, case.source.unit, by.lower, by.upper)
    return Assessed(by, risk.assess(outlook, by.thresholds, paths, by.rules))

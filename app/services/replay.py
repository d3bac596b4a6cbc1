"""A replay: the risk answers that Headroom would have given in the past, each scored on what came.

At each origin the history is cut off there, written as a dataset's file, and taken through the same functions in child
processes as a run of the service (fitting.fit, fitting.judge_run), then judged as every risk answer is (risk.assess).
It leaves out the scores (domain/replay.py), and whatever needs a database: nothing here is kept.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app import forecasters
from app.compute import ChildDied, Compute, TooSlow
from app.domain import rightsizing, risk, tally
from app.domain.dataset import Contents, Limits, Schema
from app.domain.panel import MIN_VALUES, Array, Panel
from app.domain.quantiles import BASE
from app.domain.replay import QUIET_DAYS, Cases, Downsized, first_over, joined, straight_line
from app.domain.rightsizing import Prospect, Rules
from app.domain.risk import Levels, Outlook
from app.errors import Complaint, Invalid
from app.services.fitting import Case, Judged, Part, Piece, Source, judge_run
from app.services.fitting import fit as fit_piece
from app.services.ingest import ingest
from app.storage.panels import ROW_GROUP, TIME, layout_of, load_panel

STAND_IN = "seasonal_naive"
SEED = 1


@dataclass(frozen=True)
class Question:
    """What is replayed. `origins` are days, each the last that is known; `untrue` names a column and the value that it
    has in rows that are no truth: models see them, scores do not."""

    metric: str
    thresholds: tuple[float, ...]
    origins: tuple[np.datetime64, ...]
    horizon: int = 90
    model: str = "auto"
    untrue: tuple[str, float] | None = None


@dataclass(frozen=True)
class Means:
    """How it is computed, as the settings say for a service. `seconds`: of one task in a child process."""

    country: str
    outlier_z: float
    seconds: float
    limits: Limits
    levels: Levels
    rules: Rules


@dataclass(frozen=True)
class Replayed:
    cases: Cases
    downsized: Downsized


def month_ends(contents: Contents, count: int, horizon: int) -> tuple[np.datetime64, ...]:
    """The last `count` ends of a month that at least `horizon` steps of the file come after."""
    last = np.datetime64(contents.end.replace(tzinfo=None), "s") - horizon * contents.frequency.step
    months = last.astype("datetime64[D]").astype("datetime64[M]") + 1 - np.arange(count + 1)
    ends = months.astype("datetime64[D]") - 1
    fitting = [end for end in ends if end <= last.astype("datetime64[D]") and end >= _first_day(contents)]
    return tuple(sorted(fitting)[-count:])


def _first_day(contents: Contents) -> np.datetime64:
    return np.datetime64(contents.start.replace(tzinfo=None), "D")


async def read(file: Path, folder: Path, schema: Schema, compute: Compute, means: Means) -> tuple[Path, Contents]:
    """The history file of an upload, made in `folder`. Raises as an upload is refused."""
    history, facts = folder / "history.parquet", folder / "facts.parquet"
    contents = await compute.run(ingest, file, history, facts, schema, means.limits, None, seconds=means.limits.seconds)
    return history, contents


async def replay(
    history: Path,
    contents: Contents,
    question: Question,
    folder: Path,
    compute: Compute,
    means: Means,
    progress: Callable[[str], None] = lambda line: None,
) -> Replayed:
    """Every case of every origin, in order. Raises Invalid for a metric, a column or a model that there is not."""
    _check(contents, question)
    whole = await asyncio.to_thread(load_panel, history, question.metric, None, means.country)
    true = whole.values
    if question.untrue is not None:
        column, value = question.untrue
        marks = await asyncio.to_thread(load_panel, history, column)
        true = np.where(marks.values[:, : whole.steps] == value, np.nan, true)
    cases: list[Cases] = []
    recommended = breached = 0
    for origin in question.origins:
        place = folder / str(origin)
        place.mkdir()
        source = Source(str(place / "history.parquet"), question.metric, contents.units[question.metric], means.country)
        await asyncio.to_thread(_cut, history, Path(source.path), origin, contents, question.horizon)
        past = await asyncio.to_thread(load_panel, Path(source.path), source.metric, None, source.country)
        answers = await _answered(past, source, place, question, compute, means, origin)
        if answers is None:
            progress(f"{origin}: no server has {MIN_VALUES} values by then")
            continue
        for threshold in question.thresholds:
            found, size = _scored(answers, whole, true, origin, threshold, means)
            cases.append(found)
            recommended, breached = recommended + size[0], breached + size[1]
            progress(f"{origin}, threshold {threshold:g}: {len(found)} servers, {int(found.breached.sum())} breached")
    if not sum(map(len, cases)):
        raise Invalid(f"No server was below a threshold for {QUIET_DAYS} days at any origin: nothing can be scored.")
    return Replayed(joined(cases), Downsized(means.rules.epsilon, recommended, breached))


@dataclass(frozen=True, eq=False)
class _Answers:
    """What was forecast of the servers of `past`, and what a straight line and seasonal naive would have said."""

    past: Panel
    judged: Judged
    line: Array
    naive: Array
    unit: str


async def _answered(
    past: Panel, source: Source, folder: Path, question: Question, compute: Compute, means: Means, origin: np.datetime64
) -> _Answers | None:
    """Of the servers that are there to the origin and have values enough; None where none is."""
    current = past.as_of.astype("datetime64[D]") == origin
    past = past.take(np.flatnonzero(current & (past.counts() >= MIN_VALUES)))
    if not len(past):
        return None
    forecaster = forecasters.load(question.model)
    members = forecaster.members(len(past)) if isinstance(forecaster, forecasters.Ensemble) else (question.model,)
    longest = int((past.last - past.first + 1).max())
    windows = min(1 + forecaster.earlier_windows, max(0, (longest - MIN_VALUES) // question.horizon))
    pieces = [
        piece
        for model in members
        for piece in _pieces(model, past.servers, windows, source, question.horizon, means.outlier_z, folder)
    ]
    parts = [part for made in await asyncio.gather(*(_fit(piece, compute, means) for piece in pieces)) for part in made]
    if STAND_IN not in members:
        naive = next(_pieces(STAND_IN, past.servers, 0, source, question.horizon, means.outlier_z, folder))
        await _fit(naive, compute, means)
    case = Case(
        model=question.model,
        source=source,
        servers=past.servers,
        horizon=question.horizon,
        levels=BASE,
        windows=windows,
        reported=min(1, windows),
        parts=tuple(parts),
        seed=SEED,
        period=tally.period(past.frequency),
    )
    judged = await compute.run(judge_run, case, seconds=means.seconds)
    naive_values = np.concatenate([np.load(path) for path in _files(folder, STAND_IN)])
    return _Answers(past, judged, straight_line(past, question.horizon, BASE), naive_values, str(source.unit))


def _scored(
    answers: _Answers, whole: Panel, true: Array, origin: np.datetime64, threshold: float, means: Means
) -> tuple[Cases, tuple[int, int]]:
    """The cases of one origin and threshold; how many downsizes were recommended, and how many would have breached."""
    past, judged = answers.past, answers.judged
    horizon, per_day = judged.values.shape[1], past.frequency.per_day
    rows = np.searchsorted(np.array(whole.servers), np.array(past.servers))
    shift = int((past.start - whole.start) // past.frequency.step)
    columns = past.future_columns(horizon) + shift
    inside = columns < whole.steps
    came = np.where(inside, true[rows[:, None], np.minimum(columns, whole.steps - 1)], np.nan)
    limits = np.full(len(past), threshold)

    def outlook(values: NDArray[np.floating[Any]]) -> Outlook:
        return Outlook(values, BASE, past.as_of, past.frequency, answers.unit, past.lower, past.upper)

    view = outlook(judged.values)
    found = risk.assess(view, limits, judged.template, means.levels)
    line, naive = (
        risk.assess(outlook(values), limits, judged.template, means.levels).breach_probability
        for values in (np.sort(answers.line, axis=-1), np.sort(answers.naive, axis=-1))
    )
    prospect = Prospect(view, limits, judged.template, np.fmax.reduce(past.values, axis=1))
    sized = rightsizing.downsizes([prospect], means.rules.epsilon, means.rules.halvings).halvings
    known = np.isfinite(came).any(axis=1)
    smaller = known & (sized > 0)
    would = np.isfinite(first_over(came, limits * 0.5**sized)) & smaller

    recent = past.last[:, None] - np.arange(QUIET_DAYS * per_day)
    seen = np.where(recent >= past.first[:, None], np.take_along_axis(past.values, np.maximum(recent, 0), 1), np.nan)
    chosen = np.flatnonzero(known & np.isnan(first_over(seen, limits)))
    day = np.timedelta64(86_400, "s")
    dates = ((at - past.as_of) / day for at in (found.first_breach_p10, found.first_breach_p50))
    p10, p50 = (np.where(np.isfinite(until), until, np.nan)[chosen] for until in dates)
    return (
        Cases(
            origin=np.full(len(chosen), origin.astype("datetime64[s]")),
            threshold=limits[chosen],
            server=np.array(past.servers)[chosen],
            told=found.breach_probability[chosen],
            flagged=found.risk_high[chosen],
            line=line[chosen],
            naive=naive[chosen],
            p10=p10,
            p50=p50,
            breach=first_over(came, limits)[chosen] / per_day,
        ),
        (int(smaller.sum()), int(would.sum())),
    )


def _pieces(
    model: str, servers: tuple[str, ...], windows: int, source: Source, horizon: int, outlier_z: float, folder: Path
) -> Iterator[Piece]:
    size = forecasters.member(model).chunk or len(servers)
    for start in range(0, len(servers), size):
        for window in range(windows + 1):
            some = servers[start : start + size]
            out = folder / f"{model}-{window}-{start:08d}.npy"
            yield Piece(model, window, source, start, some, horizon, BASE, outlier_z, str(out))


def _files(folder: Path, model: str) -> list[Path]:
    """The forecasts of a model, in the order of the servers."""
    return sorted(folder.glob(f"{model}-0-*.npy"))


async def _fit(piece: Piece, compute: Compute, means: Means) -> list[Part]:
    """Where the fit of a chunk fails, seasonal naive answers for it, as it does in a run for a server."""
    stop = piece.start + len(piece.servers)
    try:
        await compute.run(fit_piece, piece, seconds=means.seconds)
    except (ChildDied, TooSlow, MemoryError):
        raise
    except Exception:
        stand_in = replace(piece, model=STAND_IN, out=f"{piece.out}.stand-in.npy")
        await compute.run(fit_piece, stand_in, seconds=means.seconds)
        return [Part(piece.model, piece.window, piece.start, stop, stand_in.out, STAND_IN)]
    return [Part(piece.model, piece.window, piece.start, stop, piece.out)]


def _cut(history: Path, out: Path, origin: np.datetime64, contents: Contents, horizon: int) -> None:
    """The history as it stood on the evening of a day. Rows after it stay where regressors are known ahead, without
    anything else that was not known."""
    midnight = pa.scalar((origin + 1).astype("datetime64[ms]").item(), pa.timestamp("ms", "UTC"))
    table = pq.read_table(history)
    layout = layout_of(pq.ParquetFile(history))
    if layout.known_ahead:
        reach = (origin + 1).astype("datetime64[s]") + horizon * contents.frequency.step
        table = table.filter(pc.less(table[TIME], pa.scalar(reach.astype("datetime64[ms]").item(), midnight.type)))
        known = pc.less(table[TIME], midnight)
        for name in layout.metrics:
            place = table.schema.get_field_index(name)
            table = table.set_column(
                place, table.schema.field(place), pc.if_else(known, table[name], pa.scalar(None, pa.float64()))
            )
    else:
        table = table.filter(pc.less(table[TIME], midnight))
    pq.write_table(table, out, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)


def _check(contents: Contents, question: Question) -> None:
    def refuse(pointer: str, detail: str) -> None:
        raise Invalid(detail, errors=[Complaint(pointer, "unknown", detail)])

    wanted: Sequence[str] = [question.metric] + ([question.untrue[0]] if question.untrue else [])
    for name in wanted:
        if name not in contents.metrics:
            refuse("--metric", f"The file has no metric {name!r}; it has {', '.join(contents.metrics)}.")
    if question.model not in forecasters.names():
        refuse("--model", f"There is no model {question.model!r}; there are {', '.join(forecasters.names())}.")
    if not question.origins:
        refuse("--origins", f"No end of a month in the file has {question.horizon} steps after it; name --origins.")

"""The model behind the emulated AutoML: Headroom's own `structural` over the uploaded CSV, and its `.out` file.

It holds the way from CSV to a panel and from quantiles to CSV. It leaves out S3 and who asks when.

What a series is follows the documentation: several rows of one step are aggregated (by default summed), gaps
between its first and last value are filled (by default with 0), rows with an empty target are known-ahead values of
the other columns. The forecast of a series starts one step after its last target value.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from app import forecasters
from app.domain import quantiles
from app.domain.evaluation import pooled_scores, seasonal_scale
from app.domain.panel import MIN_VALUES, Array, Frequency, Index, Panel
from app.domain.preparation import fill_gaps
from app.emulator.protocol import Body

MODEL, FEW = "structural", "seasonal_naive"
"""What forecasts; and what forecasts a series of fewer than MIN_VALUES values."""

FEWEST = 4
"""Values that a series must have at transform."""

AT_ONCE = 500
"""Series that are fitted together at most: bounds the memory."""

JUDGED = 200
"""Series that the candidates are judged on: a sample, since nobody reads these figures for long."""

_MEAN_OVER = tuple(round(0.05 + 0.1 * k, 2) for k in range(10))
_NUMERIC = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
_DATES = [csv.ISO8601, "%Y-%m-%dT%H:%M:%SZ", "%m/%d/%Y", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%m/%d/%y"]


class BadData(ValueError):
    """The data cannot be used; the text says why."""


@dataclass(frozen=True)
class Schema:
    """What a model was made for: all that a transform has to know of its training."""

    item: str
    timestamp: str
    target: str
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    features: tuple[str, ...]
    frequency: str
    horizon: int
    quantiles: tuple[str, ...]
    aggregation: str
    gaps: str
    gap_value: float
    country: str

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.item, *self.groups)

    @property
    def step(self) -> Frequency:
        return Frequency(self.frequency)

    def to_json(self) -> Body:
        return asdict(self)

    @classmethod
    def from_json(cls, written: Body) -> "Schema":
        members: Body = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
        return cls(**members)


def schema(config: Body, columns: Sequence[str], features: Sequence[str] | None) -> Schema:
    """Of a TimeSeriesForecastingJobConfig and a file's header; `features` are those specified, None for all.

    Raises BadData when the configuration names columns that the file does not have.
    """
    roles, transformations = config["TimeSeriesConfig"], config.get("Transformations", {})
    target = roles["TargetAttributeName"]
    filling = transformations.get("Filling", {}).get(target, {})
    groups = roles.get("GroupingAttributeNames", [])
    identity = [roles["ItemIdentifierAttributeName"], roles["TimestampAttributeName"], target, *groups]
    rest = [name for name in columns if name not in identity]
    named = {*identity, *transformations.get("Filling", {}), *(features or ())}
    if missing := sorted(named - set(columns)):
        raise BadData(f"the data has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, columns))}")
    if len(set(columns)) < len(columns):
        raise BadData("the data has two columns of one name")
    return Schema(
        item=identity[0],
        timestamp=identity[1],
        target=target,
        groups=tuple(groups),
        columns=tuple(columns),
        features=tuple(rest if features is None else features),
        frequency=config["ForecastFrequency"].removeprefix("1"),
        horizon=config["ForecastHorizon"],
        quantiles=tuple(config.get("ForecastQuantiles", ["p10", "p50", "p90"])),
        aggregation=transformations.get("Aggregation", {}).get(target, "sum"),
        gaps=filling.get("middlefill", "zero"),
        gap_value=float(filling.get("middlefill_value", 0)),
        country=config.get("HolidayConfig", [{"CountryCode": "US"}])[0]["CountryCode"],
    )


def header(content: bytes) -> tuple[str, ...]:
    """The column names of a CSV file. Raises BadData."""
    return tuple(_read(content.split(b"\n", 1)[0] + b"\n", csv.ConvertOptions()).column_names)


def steps_of(content: bytes, made_for: Schema) -> tuple[Index, int]:
    """The steps at which any series has a target, ascending, since the epoch; and the rows. Raises BadData."""
    table = _read(content, _types(made_for, [made_for.timestamp, made_for.target]))
    with_target = np.isfinite(table[made_for.target].to_numpy())
    return np.unique(_steps(table, made_for)[with_target]), table.num_rows


def forecast(content: bytes, made_for: Schema) -> pa.Table:
    """The forecast of every series in a CSV file: identity, timestamp, the quantiles asked for, `mean`.

    `horizon` rows a series, in order of time; timestamps datetime64[s]. Raises BadData.
    """
    names, panel = _panel(content, made_for)
    few = panel.counts() < FEWEST
    if few.any():
        who = ", ".join(map(str, names[few].iloc[0]))
        raise BadData(f"series need at least {FEWEST} values; {who} has {panel.counts()[few][0]} ({few.sum()} such)")
    levels = [quantiles.level(name) for name in made_for.quantiles]
    everything = sorted({*levels, *_MEAN_OVER})
    values = _predict(panel, made_for.horizon, everything)
    times = panel.times_with_future(made_for.horizon)[panel.future_columns(made_for.horizon)]
    columns: dict[str, Any] = {
        name: np.repeat(names[name].to_numpy(dtype=object), made_for.horizon) for name in made_for.identity
    }
    columns[made_for.timestamp] = times.reshape(-1)
    for name, level in zip(made_for.quantiles, levels, strict=True):
        columns[name] = values[..., everything.index(level)].reshape(-1)
    columns["mean"] = values[..., [everything.index(level) for level in _MEAN_OVER]].mean(axis=-1).reshape(-1)
    return pa.table(columns)


def written(table: pa.Table, made_for: Schema, plain_dates: bool = False) -> bytes:
    """The table as CSV with a header; timestamps as `2024-01-31 00:00:00`, or as `2024-01-31`."""
    at = table.column_names.index(made_for.timestamp)
    moments = table.column(at).to_numpy().astype("datetime64[s]")
    text = np.datetime_as_string(moments, unit="D" if plain_dates else "s")
    table = table.set_column(at, made_for.timestamp, pa.array(np.char.replace(text, "T", " ")))
    out = io.BytesIO()
    csv.write_csv(table, out, csv.WriteOptions(quoting_style="needed"))
    return out.getvalue()


def judge(content: bytes, made_for: Schema) -> dict[str, dict[str, float]]:
    """Metrics of MODEL and FEW on the last `horizon` steps of a sample of series; what is not defined is left out."""
    _, panel = _panel(content, made_for)
    panel = panel.take(np.flatnonzero(panel.counts() >= MIN_VALUES + made_for.horizon)[:JUDGED])
    if not len(panel):
        return {MODEL: {}, FEW: {}}
    past, actual = panel.before(made_for.horizon), panel.window(1, made_for.horizon)
    scale = seasonal_scale(past, past.frequency.season)
    found = {}
    for name in (MODEL, FEW):
        predicted = forecasters.member(name).fit(past, made_for.horizon).predict(made_for.horizon, quantiles.BASE)
        found[name] = _metrics(predicted, actual, scale)
    return found


def _metrics(predicted: Array, actual: Array, scale: Array) -> dict[str, float]:
    scores = pooled_scores(predicted[None], actual[None], scale[None])
    known = np.isfinite(actual)
    error, size = np.abs(predicted[..., 1] - actual)[known], np.abs(actual)[known]
    if scores is None or not size.all():
        return {}
    metrics = {"RMSE": scores.rmse, "MAPE": float((error / size).mean()), "WAPE": float(error.sum() / size.sum())}
    optional = {"MASE": scores.mase, "AverageWeightedQuantileLoss": scores.wql}
    return metrics | {name: value for name, value in optional.items() if value is not None}


def _predict(panel: Panel, horizon: int, levels: Sequence[float]) -> Array:
    """(servers, horizon, levels)."""
    values = np.empty((len(panel), horizon, len(levels)))
    long = panel.counts() >= MIN_VALUES
    for name, rows in ((MODEL, np.flatnonzero(long)), (FEW, np.flatnonzero(~long))):
        model = forecasters.member(name)
        for start in range(0, len(rows), AT_ONCE):
            piece = rows[start : start + AT_ONCE]
            values[piece] = model.fit(panel.take(piece), horizon).predict(horizon, levels)
    return values


def _panel(content: bytes, made_for: Schema) -> tuple[pd.DataFrame, Panel]:
    """The series by name, and their values without gaps. Raises BadData."""
    table = _read(content, _types(made_for, None))
    if not table.num_rows:
        raise BadData("the data has no rows")
    identity = table.select(list(made_for.identity)).to_pandas()
    series, names = _numbered(identity)
    step = _steps(table, made_for)
    origin = int(step.min())
    column, target = step - origin, table[made_for.target].to_numpy()
    has_target = np.isfinite(target)
    if not has_target.any():
        raise BadData(f"the column {made_for.target!r} has no values")
    width = int(column[has_target].max()) + 1
    values = _aggregated(series[has_target], column[has_target], target[has_target], (len(names), width), made_for)
    alive = np.isfinite(values)
    first = np.where(alive.any(axis=1), alive.argmax(axis=1), 0)
    last = np.where(alive.any(axis=1), width - 1 - alive[:, ::-1].argmax(axis=1), -1)
    panel = Panel(
        servers=tuple(str(number) for number in range(len(names))),
        start=np.datetime64(origin * int(made_for.step.step.astype(np.int64)), "s"),
        frequency=made_for.step,
        values=values,
        first=first.astype(np.int64),
        last=last.astype(np.int64),
        lower=np.full(len(names), -np.inf),
        upper=np.full(len(names), np.inf),
        known=_known(table, made_for, series, column, last, (len(names), width + made_for.horizon)),
        country=made_for.country,
    )
    return names, _without_gaps(panel, made_for)


def _numbered(identity: pd.DataFrame) -> tuple[Index, pd.DataFrame]:
    """Series in the order of their first rows: the number of each row's, and their names."""
    series = identity.groupby(list(identity.columns), sort=False, observed=True)
    numbers: Index = series.ngroup().to_numpy().astype(np.int64)
    return numbers, identity.drop_duplicates(ignore_index=True)


def _aggregated(series: Index, column: Index, target: Array, shape: tuple[int, int], made_for: Schema) -> Array:
    cell, count = series * shape[1] + column, shape[0] * shape[1]
    rows = np.bincount(cell, minlength=count)
    match made_for.aggregation:
        case "min" | "max" as extreme:
            values = np.full(count, np.inf if extreme == "min" else -np.inf)
            (np.minimum if extreme == "min" else np.maximum).at(values, cell, target)
        case "first":
            values = np.zeros(count)
            values[cell[::-1]] = target[::-1]
        case method:
            total = np.bincount(cell, weights=target, minlength=count)
            values = total / np.maximum(rows, 1) if method == "avg" else total
    return np.where(rows > 0, values, np.nan).reshape(shape)


def _without_gaps(panel: Panel, made_for: Schema) -> Panel:
    """Gaps between first and last value filled as `middlefill` says; here over the whole series, not the last 64."""
    if made_for.gaps == "nan":
        return fill_gaps(panel)
    at = np.arange(panel.steps)
    inside = (at >= panel.first[:, None]) & (at <= panel.last[:, None])
    gaps = inside & ~np.isfinite(panel.values)
    if not gaps.any():
        return panel
    by: dict[str, Callable[..., Array]] = {
        "median": np.nanmedian,
        "mean": np.nanmean,
        "min": np.nanmin,
        "max": np.nanmax,
    }
    fill = np.full(len(panel), made_for.gap_value)
    if made_for.gaps in by:
        rows = gaps.any(axis=1)
        fill[rows] = by[made_for.gaps](panel.values[rows], axis=1)
    return replace(panel, values=np.where(gaps, fill[:, None], panel.values))


def _known(
    table: pa.Table, made_for: Schema, series: Index, column: Index, last: NDArray[Any], shape: tuple[int, int]
) -> dict[str, Array]:
    """The numeric and boolean columns that are known ahead: they have values after the last target."""
    inside = column < shape[1]
    known = {}
    for name in made_for.features:
        if not any(of_type(table[name].type) for of_type in _NUMERIC):
            continue
        given = table[name].cast(pa.float64()).to_numpy()
        if not (np.isfinite(given) & (column > last[series])).any():
            continue
        known[name] = np.full(shape, np.nan)
        known[name][series[inside], column[inside]] = given[inside]
    return known


def _steps(table: pa.Table, made_for: Schema) -> Index:
    """Steps since the epoch: int (rows,); a time within a step belongs to it."""
    times = table[made_for.timestamp]
    if times.null_count:
        raise BadData(f"the column {made_for.timestamp!r} has empty values")
    steps: Index = times.to_numpy().astype("datetime64[s]").astype(np.int64) // int(made_for.step.step.astype(np.int64))
    return steps


def _types(made_for: Schema, only: list[str] | None) -> csv.ConvertOptions:
    types = {name: pa.dictionary(pa.int32(), pa.string()) for name in made_for.identity}
    types |= {made_for.timestamp: pa.timestamp("s"), made_for.target: pa.float64()}
    return csv.ConvertOptions(
        column_types=types, timestamp_parsers=_DATES, include_columns=only, null_values=["", "NaN", "nan", "null"]
    )


def _read(content: bytes, convert: csv.ConvertOptions) -> pa.Table:
    try:
        return csv.read_csv(io.BytesIO(content), convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as problem:
        raise BadData(f"the data is not the CSV that was announced: {problem}") from None

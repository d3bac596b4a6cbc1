"""What the calendar explains of a fleet's history: taken out of it, and known ahead.

It holds the scale that servers are put on and the ridge regression of their calendar. What is made of the rest, the
values without their calendar, is the models' (structural, statistical).

    log(y + c) = level and trend + year + weekday + weekday by season + holidays + end of quarter + regressors
                 └─ what is left ┘ └──────────── calendar: ridge regression, shrunk to the fleet ────────────┘

Servers that share their first and last row share the design matrix, so one factorisation serves them all. Ridge
regression (Hoerl & Kennard 1970) with a piecewise linear trend of penalised changes, which only keeps growth out of
the calendar; each server's effects are shrunk towards those of the whole fleet, from which a young server inherits
what it has not yet lived through. Outliers are pulled to the fit and the fit repeated (Huber 1981, pseudo-values: the
matrix stays the same, so this costs two products). How far servers depart from the fleet is learnt (_shrinkage), and
what lasts from one step to the next is taken out of values and columns alike before they are fitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.signal import lfilter

from app.domain import calendar
from app.domain.panel import MIN_VALUES, Array, Frequency, Index, Panel, Times, median
from app.forecasters._shrinkage import Shrinkage, learn, persistence, tamed

Mask = NDArray[np.bool_]

DAY = np.timedelta64(86_400, "s")

OFFSET, OFFSET_BOUNDED = 0.5, 4.0
"""c, as a share of the server's mean: between the logarithm (0) and the plain value (large). What cannot pass 100
does not grow by factors."""
NOISE = 1.0
"""Variance of a step's noise, in variances of the server: with it the prior deviations below become penalties."""
CHANGES = 25
CHANGE = 0.02
"""Number of trend changes, and the prior deviation of each in slope: server deviations per fifth of history."""
YEAR, HARMONICS = 1.0, 8
"""Prior deviation of the first yearly harmonic; the k-th has a k-th of it."""
YEARS = ((300, 0), (500, 2), (720, 4))
"""Under so many days of history, only so many harmonics."""
WEEKDAY, WEEKDAY_OF_HOURS, WEEKDAY_SEASON, HOUR = 2.0, 0.25, 0.1, 2.0
HOLIDAY, NEIGHBOUR, QUARTER, REGRESSOR = 3.0, 0.6, 0.4, 0.5
SPREAD_OWN = 10.0
"""How many times stiffer a server's own season of spread is than the fleet's."""
ROUNDS = 3
TREND, WEEKEND_HOUR = "trend", "weekend hour"
"""Names of columns that are no cause: the trend is no calendar, and weekend hours are told as weekday and hour."""
REFERENCES = 200
"""Servers of full history by which a young one's deviation is judged, and whose departures are learnt from."""
FAR = 4.0
"""Deviations beyond which a value teaches the fleet nothing more."""


@dataclass(frozen=True)
class Adjusted:
    """A panel without its calendar, on the scale of the fit; 0 where a server has no row, which `alive` tells.

    `actual` and, its outliers pulled in, `settled` are (servers, steps). `effect` is the calendar's part, `causes`
    what it adds up from, and `season` how the size of what is left follows the calendar, around 1: both (servers,
    steps + horizon). `optimism` is how many times larger an error is ahead than in the fit: (servers,).
    """

    scale: "Scale"
    alive: Mask
    actual: Array
    settled: Array
    effect: Array
    causes: "Causes"
    season: Array
    optimism: Array


def adjust(panel: Panel, horizon: int) -> Adjusted:
    alive = (np.arange(panel.steps) >= panel.first[:, None]) & (np.arange(panel.steps) <= panel.last[:, None])
    scale = _scale(panel, alive)
    scaled = np.where(alive, scale.there(np.nan_to_num(panel.values)), 0.0)
    times = panel.times_with_future(horizon)
    design = _design(times, panel.steps, panel.frequency, panel.country)
    effect, causes, tamed, optimism = _calendar(scaled, alive, panel, design, _regressors(panel, len(times)))
    past = effect[:, : panel.steps]
    settled = np.where(alive, tamed - past, 0.0)
    actual = np.where(alive, scaled - past, 0.0)
    age = alive.cumsum(axis=1, dtype=np.int64)
    season = _season_of_spread(np.where(alive, actual - average(settled, age, 16), 0.0), alive, panel, design)
    return Adjusted(scale, alive, actual, settled, effect, causes, season, optimism)


@dataclass(frozen=True)
class Causes:
    """What an effect adds up from: `columns` (steps + horizon, K), `names` what each stands for, `weights` (servers, K)
    what each does to a server; of known-ahead columns (servers, columns of the panel)."""

    columns: Array
    names: tuple[str, ...]
    weights: Array
    known_ahead: Array

    def of(self, panel: Panel, server: int) -> dict[str, Array]:
        """The effect on one server by cause, (steps + horizon,) each.

        `year`, `weekday`, `hour` (hourly data), `known_ahead` (with such columns); all others are events by name, 0 on
        the steps that they do not fall on.
        """
        parts: dict[str, Array] = {}
        for name, part in zip(self.names, (self.columns * self.weights[server]).T, strict=True):
            parts[name] = parts[name] + part if name in parts else part
        del parts[TREND]
        if WEEKEND_HOUR in parts:  # what weekend hours have in common is the weekend's
            own = np.array([name == WEEKEND_HOUR for name in self.names])
            weekend = self.columns[:, own].sum(axis=1) * self.weights[server, own].mean()
            parts["weekday"] = parts["weekday"] + weekend
            parts["hour"] = parts["hour"] + parts.pop(WEEKEND_HOUR) - weekend
        regressors = _regressors(panel.take(np.array([server])), len(self.columns))
        if regressors is not None:
            parts["known_ahead"] = regressors[0] @ self.known_ahead[server]
        return parts

    def falls(self, name: str) -> Mask:
        """The steps that an event falls on: (steps + horizon,)."""
        return np.asarray(self.columns[:, [one == name for one in self.names]].any(axis=1))


def average(values: Array, age: Index, half_life: float) -> Array:
    """Exponential average of the values up to each step, as if nothing had been before the first.

    `age` counts each server's rows up to a step. After the last row the average is none.
    """
    keep = 0.5 ** (1 / half_life)
    total = lfilter([1 - keep], [1, -keep], values, axis=1)
    weight = 1 - keep ** np.arange(values.shape[1] + 1)
    weight[0] = 1.0  # before the first row all is 0
    return np.asarray(total / weight[age])


@dataclass(frozen=True)
class Scale:
    """Each server's values to logarithms of mean 0 and deviation 1, and back; all (servers,).

    `offset` is c, NaN for servers with negative values, which stay on their own scale. `low`, `high` are bounds
    on the way back, in deviations: twice the range that was seen.
    """

    offset: Array
    middle: Array
    deviation: Array
    low: Array
    high: Array

    def of(self, server: int) -> "Scale":
        """That of one server alone."""
        one = slice(server, server + 1)
        return Scale(self.offset[one], self.middle[one], self.deviation[one], self.low[one], self.high[one])

    def there(self, values: Array) -> Array:
        return (_logarithm(values, self.offset[:, None]) - self.middle[:, None]) / self.deviation[:, None]

    def back(self, scaled: Array) -> Array:
        """(servers, horizon, levels)."""
        bounded = np.clip(scaled, self.low[:, None, None], self.high[:, None, None])
        plain = bounded * self.deviation[:, None, None] + self.middle[:, None, None]
        offset = self.offset[:, None, None]
        return np.where(np.isnan(offset), plain, np.exp(np.where(np.isnan(offset), 0.0, plain)) - offset)


def _logarithm(values: Array, offset: Array) -> Array:
    plain = np.isnan(offset)
    return np.where(plain, values, np.log(np.where(plain, 1.0, np.maximum(values, 0.0) + offset)))


def _scale(panel: Panel, alive: Mask) -> Scale:
    values = np.where(alive, panel.values, np.nan)
    mean = np.nanmean(np.abs(values), axis=1)
    share = np.where(np.isfinite(panel.upper), OFFSET_BOUNDED, OFFSET)
    offset = np.where(mean > 0, share * mean, 1.0)
    offset[np.nanmin(values, axis=1) < 0] = np.nan
    logs = _logarithm(values, offset[:, None])
    logs = np.where(alive, logs, np.nan)
    middle = median(logs)
    deviation = np.nanstd(logs, axis=1)
    deviation = np.where(deviation > 1e-9 * (1 + np.abs(middle)), deviation, 1.0) * _youth(logs, panel)
    low, high = (np.nanmin(logs, axis=1) - middle) / deviation, (np.nanmax(logs, axis=1) - middle) / deviation
    return Scale(offset, middle, deviation, low - (high - low), high + (high - low))


def _youth(logs: Array, panel: Panel) -> Array:
    """How much more the longest-lived servers vary over all their life than over a younger one's: (servers,).

    Effects are shared in units of the deviation, and a server of three months has not shown its year yet.
    """
    length = panel.last - panel.first
    old = np.flatnonzero(length == length.max())[:REFERENCES]
    known = np.nan_to_num(logs[old])
    sums, squares = (np.pad(np.cumsum(power, axis=1), ((0, 0), (1, 0))) for power in (known, known**2))
    whole = np.nanstd(logs[old], axis=1)
    result = np.ones(len(panel))
    for members, start, stop in _groups(panel):
        start = max(start, int(panel.first[old].max()))
        if stop - start < MIN_VALUES:
            continue
        mean = (sums[:, stop] - sums[:, start]) / (stop - start)
        seen = np.sqrt(np.maximum((squares[:, stop] - squares[:, start]) / (stop - start) - mean**2, 0.0))
        varied = (seen > 0) & (whole > 0)
        if varied.any():
            result[members] = np.clip(np.median(whole[varied] / seen[varied]), 1.0, 3.0)
    return result


@dataclass(frozen=True)
class _Design:
    """Columns (steps + horizon, K), the prior deviation of each, and what each is.

    `names` are those of `Causes`. `harmonic` is k for the k-th yearly harmonic and for what only a year can teach (1),
    0 for other columns; `trend` marks the columns that are no calendar, `slow` these and the year, `rhythm` what the
    spread may follow.
    """

    columns: Array
    names: tuple[str, ...]
    prior: Array
    harmonic: Index
    trend: Mask
    slow: Mask
    rhythm: Mask

    @property
    def kinds(self) -> NDArray[np.str_]:
        """Columns of one kind have the same stiffness: (K,)."""
        return np.array(
            [f"{name.split(':')[0]} {harmonic}" for name, harmonic in zip(self.names, self.harmonic, strict=True)]
        )

    def penalty(self, steps: int, frequency: Frequency) -> Array:
        """Ridge penalty of each column for a history of so many steps; what it cannot teach is held at zero."""
        days = steps / frequency.per_day
        most = next((k for limit, k in YEARS if days < limit), HARMONICS)
        return np.where(self.harmonic > most, 1e9, NOISE / self.prior**2)


def _design(times: Times, steps: int, frequency: Frequency, country: str) -> _Design:
    columns: list[tuple[Array, str, float, int, bool, bool, bool]] = []

    def add(
        name: str,
        column: NDArray[np.generic],
        prior: float,
        harmonic: int = 0,
        slow: bool = False,
        rhythm: bool = False,
    ) -> None:
        trend = name == TREND
        columns.append((np.asarray(column, dtype=np.float64), name, prior, harmonic, trend, trend or slow, rhythm))

    step = np.arange(len(times))
    add(TREND, np.ones(len(times)), 10.0)
    add(TREND, 5 * step / steps, 5 * CHANGE)
    for change in np.linspace(0, 0.92 * steps, CHANGES + 1)[1:]:
        add(TREND, 5 * np.maximum(step - change, 0) / steps, CHANGE)

    year = 2 * np.pi * calendar.day_of_year(times)
    for k in range(1, HARMONICS + 1):
        for wave in (np.cos, np.sin):
            add("year", wave(k * year), YEAR / k, harmonic=k, slow=True, rhythm=k <= 2)

    weekday = calendar.weekday(times)
    for day in range(7):
        on = weekday == day
        add("weekday", on, WEEKDAY if frequency is Frequency.DAILY else WEEKDAY_OF_HOURS, rhythm=True)
        if frequency is Frequency.DAILY:
            for k in (1, 2):
                for wave in (np.cos, np.sin):
                    add("weekday", on * wave(k * year), WEEKDAY_SEASON / k, harmonic=1)
    if frequency is Frequency.HOURLY:
        hour, weekend = calendar.hour(times), calendar.is_weekend(times)
        for h in range(24):
            add("hour", hour == h, HOUR, rhythm=True)
            add(WEEKEND_HOUR, (hour == h) & weekend, HOUR / 4)

    around = {shift: calendar.holidays(times + shift * DAY, country) for shift in (-1, 0, 1)}
    for name, on in around[0].items():
        add(f"holiday:{name}", on, HOLIDAY)
        for shift, side in ((-1, "after"), (1, "before")):
            if "observed" not in name and name in around[shift]:
                add(f"{side}:{name}", around[shift][name], NEIGHBOUR)
    add("end_of_quarter", calendar.end_of_quarter(times), QUARTER)
    add("end_of_quarter", calendar.days_to_quarter_end(times) < 2, QUARTER)

    matrix, names, prior, harmonic, trend, slow, rhythm = zip(*columns, strict=True)
    return _Design(
        columns=np.column_stack(matrix),
        names=names,
        prior=np.array(prior),
        harmonic=np.array(harmonic),
        trend=np.array(trend),
        slow=np.array(slow),
        rhythm=np.array(rhythm),
    )


def _regressors(panel: Panel, width: int) -> Array | None:
    """Known-ahead columns as (servers, steps + horizon, K), mean 0 and deviation 1 each, 0 where not known."""
    if not panel.known:
        return None
    result = np.zeros((len(panel), width, len(panel.known)))
    for k, column in enumerate(panel.known.values()):
        seen = column[:, :width]
        count = np.maximum(np.isfinite(seen).sum(axis=1, keepdims=True), 1)
        mean = np.nansum(seen, axis=1, keepdims=True) / count
        deviation = np.sqrt(np.nansum((seen - mean) ** 2, axis=1, keepdims=True) / count)
        result[:, : seen.shape[1], k] = np.nan_to_num((seen - mean) / np.where(deviation > 0, deviation, 1.0))
    return result


def _groups(panel: Panel) -> Iterator[tuple[Index, int, int]]:
    """Servers that share their first and last row: their indices, and the columns [start, stop) of both."""
    spans, group = np.unique(np.column_stack([panel.first, panel.last]), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    for (first, last), members in zip(spans, np.split(order, np.cumsum(np.bincount(group))[:-1]), strict=True):
        yield members, int(first), int(last) + 1


def _calendar(
    scaled: Array, alive: Mask, panel: Panel, design: _Design, regressors: Array | None
) -> tuple[Array, Causes, Array, Array]:
    """Calendar effect of each server at each step and ahead (servers, steps + horizon), and its causes; the values
    with their outliers pulled in (servers, steps); how many times larger an error is ahead than in the fit (servers,).
    """
    matrix, known = design.columns, ~design.trend
    shared = _fleet(matrix[: panel.steps], np.clip(scaled, -FAR, FAR), alive, _longest_penalty(panel, design)) * known
    shared_effect = matrix @ shared
    learnt = _learnt(scaled - shared_effect[: panel.steps], panel, design)

    effect = np.empty((len(panel), len(matrix)))
    causes = Causes(
        matrix, design.names, np.empty((len(panel), matrix.shape[1])), np.zeros((len(panel), len(panel.known)))
    )
    settled = scaled.copy()
    optimism = np.empty(len(panel))
    for members, start, stop in _groups(panel):
        rows = matrix[start:stop]
        white = learnt.white(rows.T).T
        gram = white.T @ white
        factor = cho_factor(gram + np.diag(learnt.stiffness * design.penalty(stop - start, panel.frequency)))
        used = np.diag(cho_solve(factor, gram))  # degrees of freedom that each column takes
        z = None if regressors is None else regressors[members]
        values = scaled[members, start:stop]
        for _ in range(ROUNDS):
            left = learnt.white(settled[members, start:stop] - shared_effect[start:stop])
            beta = cho_solve(factor, (left @ white).T)
            own_effect = np.zeros(1)
            if z is not None:
                own = np.moveaxis(learnt.white(np.moveaxis(z[:, start:stop], 1, 2)), 2, 1)
                beta, gamma = _with_regressors(white, own, left, factor, beta)
                own_effect = np.einsum("ntk,nk->nt", z, gamma)
                causes.known_ahead[members] = gamma
            its = shared_effect + beta[known].T @ matrix[:, known].T + own_effect
            fit = beta[design.trend].T @ rows[:, design.trend].T + its[:, start:stop]
            settled[members, start:stop] = tamed(values, fit)
        effect[members] = its
        causes.weights[members] = shared + np.where(known, beta.T, 0.0)
        # A slow column takes up persistent noise as if it were (1 + r) / (1 - r) columns (Bayley & Hammersley 1946).
        lasting = persistence(settled[members, start:stop] - fit)
        slow = used[design.slow].sum() * (1 + lasting) / (1 - lasting)
        share = (used[~design.slow].sum() + slow) / (stop - start)
        optimism[members] = np.sqrt((1 + np.minimum(share, 0.6)) / (1 - np.minimum(share, 0.6)))
    return effect, causes, settled, optimism


def _learnt(left: Array, panel: Panel, design: _Design) -> Shrinkage:
    """From the servers that most of the history is of: those that share their first and last row with most."""
    members, start, stop = max(_groups(panel), key=lambda group: min(len(group[0]), REFERENCES) * (group[2] - group[1]))
    left = np.clip(left[members[:REFERENCES], start:stop], -FAR, FAR)
    return learn(
        design.columns[start:stop], design.penalty(stop - start, panel.frequency), design.kinds, left, design.trend
    )


def _fleet(columns: Array, values: Array, alive: Mask, penalty: Array) -> Array:
    """Coefficients of the whole fleet's ridge regression, each value of each server one row: (K,)."""
    share = alive.mean(axis=0)
    gram = (columns * share[:, None]).T @ columns
    return np.asarray(np.linalg.solve(gram + np.diag(penalty), columns.T @ np.where(alive, values, 0.0).mean(axis=0)))


def _longest_penalty(panel: Panel, design: _Design) -> Array:
    return design.penalty(int((panel.last - panel.first).max()) + 1, panel.frequency)


def _with_regressors(
    rows: Array, regressors: Array, left: Array, factor: tuple[Array, bool], alone: Array
) -> tuple[Array, Array]:
    """The joint ridge solution of shared columns and each server's own, by block elimination.

    `alone` (K, servers) solves without them. Returns the shared columns' coefficients and (servers, own columns).
    """
    across = np.einsum("tp,ntk->npk", rows, regressors)
    servers, shared, k = across.shape
    solved = cho_solve(factor, across.transpose(1, 0, 2).reshape(shared, -1)).reshape(shared, servers, k)
    schur = np.einsum("ntk,ntl->nkl", regressors, regressors) - np.einsum("npk,pnl->nkl", across, solved)
    schur += NOISE / REGRESSOR**2 * np.eye(k)
    right = np.einsum("ntk,nt->nk", regressors, left) - np.einsum("npk,pn->nk", across, alone)
    gamma = np.linalg.solve(schur, right[..., None])[..., 0]
    return alone - np.einsum("pnk,nk->pn", solved, gamma), gamma


def _season_of_spread(residual: Array, alive: Mask, panel: Panel, design: _Design) -> Array:
    """How the size of residuals follows the calendar, around 1: (servers, steps + horizon)."""
    columns = design.columns[:, design.rhythm]
    size = np.abs(residual)
    typical = np.maximum(size.sum(axis=1, keepdims=True) / alive.sum(axis=1, keepdims=True), 1e-9)
    excess = np.where(alive, np.minimum(size / typical, 5.0) - 1.0, 0.0)
    penalty = np.maximum(_longest_penalty(panel, design)[design.rhythm], 10.0)
    shared = _fleet(columns[: panel.steps], excess, alive, penalty)
    result = np.empty((len(panel), len(columns)))
    for members, start, stop in _groups(panel):
        rows = columns[start:stop]
        left = excess[members, start:stop] - rows @ shared
        own = np.linalg.solve(rows.T @ rows + np.diag(SPREAD_OWN * penalty), rows.T @ left.T)
        result[members] = 1.0 + columns @ shared + (columns @ own).T
    return np.clip(result, 0.4, 2.5)

"""What the calendar says about each step: weekday, season, holidays of a country, the end of a quarter.

Pure functions from times, datetime64[s] (steps,), to arrays of the same length; every hour of a day answers
as its day does. It leaves out what a model makes of the calendar, and time zones: times are UTC, or the
written date of daily data.
"""

from functools import lru_cache

import holidays as _holidays
import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Array, Frequency, Index, Times

Flags = NDArray[np.bool_]

END_OF_QUARTER_DAYS = 7
"""Length of the end-of-quarter window, in calendar days."""

DAY = np.timedelta64(1, "D")


def weekday(times: Times) -> Index:
    """0 = Monday … 6 = Sunday."""
    return (_day_number(times) + 3) % 7  # 1970-01-01 was a Thursday


def is_weekend(times: Times) -> Flags:
    return weekday(times) >= 5


def month(times: Times) -> Index:
    """1 … 12."""
    return times.astype("datetime64[M]").astype(np.int64) % 12 + 1


def day_of_month(times: Times) -> Index:
    """1 … 31."""
    return _count(_days(times) - times.astype("datetime64[M]").astype("datetime64[D]")) + 1


def hour(times: Times) -> Index:
    """0 … 23."""
    return _seconds_of_day(times) // 3600


def day_of_year(times: Times) -> Array:
    """How much of the year has gone by, in [0, 1)."""
    year = times.astype("datetime64[Y]")
    start, end = year.astype("datetime64[D]"), (year + np.timedelta64(1, "Y")).astype("datetime64[D]")
    gone = _count(_days(times) - start) + _seconds_of_day(times) / 86_400
    return gone / _count(end - start)


def week_of_year(times: Times) -> Index:
    """ISO 8601 week, 1 … 53: the week belongs to the year of its Thursday."""
    thursday = _days(times) + (3 - weekday(times)) * np.timedelta64(1, "D")
    return _count(thursday - thursday.astype("datetime64[Y]").astype("datetime64[D]")) // 7 + 1


def days_to_quarter_end(times: Times) -> Index:
    """0 on the last day of March, June, September and December."""
    next_quarter = (times.astype("datetime64[M]").astype(np.int64) // 3 + 1) * 3
    return _count(next_quarter.astype("datetime64[M]").astype("datetime64[D]") - _days(times)) - 1


def end_of_quarter(times: Times, days: int = END_OF_QUARTER_DAYS) -> Flags:
    """The last `days` calendar days of March, June, September and December."""
    return days_to_quarter_end(times) < days


def holidays(times: Times, country: str) -> dict[str, Flags]:
    """Each public holiday of the country that falls on one of the times, by name, in the order of the year.

    `country` is an ISO 3166 alpha-2 code. Raises ValueError when its holidays are not known.
    """
    days = _days(times)
    if not days.size:
        return {}
    found = {name: np.isin(days, dates) for name, dates in _named(country, *_years(days)).items()}
    return {name: flags for name, flags in found.items() if flags.any()}


def is_holiday(times: Times, country: str) -> Flags:
    """Any public holiday of the country. Raises ValueError when its holidays are not known."""
    days = _days(times)
    if not days.size:
        return np.zeros(0, dtype=np.bool_)
    return np.isin(days, np.concatenate([*_named(country, *_years(days)).values(), days[:0]]))


def events(times: Times, country: str) -> dict[str, Flags]:
    """The calendar's reasons for an unusual day, the strongest first."""
    return {
        "end_of_quarter": end_of_quarter(times),
        "holiday": is_holiday(times, country),
        "weekend": is_weekend(times),
    }


def cause(times: Times, country: str) -> NDArray[np.str_]:
    """The strongest of `events` at each time, or `weekday` on a plain working day: what a peak is put down to."""
    named = events(times, country)
    return np.select(list(named.values()), [np.array(name) for name in named], default=np.array("weekday"))


def features(times: Times, frequency: Frequency, country: str) -> tuple[Array, tuple[str, ...]]:
    """The calendar as a matrix for tree models: float64 (steps, K) and the K column names."""
    columns: dict[str, NDArray[np.float64] | Index | Flags] = {
        "weekday": weekday(times),
        "weekend": is_weekend(times),
        "month": month(times),
        "day_of_month": day_of_month(times),
        "day_of_year": day_of_year(times),
        "week_of_year": week_of_year(times),
        "days_to_quarter_end": days_to_quarter_end(times),
        "end_of_quarter": end_of_quarter(times),
        "holiday": is_holiday(times, country),
        "before_holiday": is_holiday(times + DAY, country),
        "after_holiday": is_holiday(times - DAY, country),
    }
    if frequency is Frequency.HOURLY:
        columns["hour"] = hour(times)
    return np.column_stack(list(columns.values())).astype(np.float64), tuple(columns)


@lru_cache(maxsize=64)
def _named(country: str, first_year: int, last_year: int) -> dict[str, NDArray[np.datetime64]]:
    """Days of each named holiday, datetime64[D]; cached, since a fit asks for the same years again and again."""
    try:
        found = _holidays.country_holidays(country.upper(), years=range(first_year, last_year + 1))
    except NotImplementedError:
        raise ValueError(
            f"no holidays are known for country {country!r}; give an ISO 3166 code of two letters, such as US or GB"
        ) from None
    days: dict[str, list[np.datetime64]] = {}
    for day in sorted(found):
        for name in found.get_list(day):
            days.setdefault(name, []).append(np.datetime64(day, "D"))
    return {name: np.array(dates, dtype="datetime64[D]") for name, dates in days.items()}


def _years(days: NDArray[np.datetime64]) -> tuple[int, int]:
    first, last = days.min().astype("datetime64[Y]"), days.max().astype("datetime64[Y]")
    return int(first.astype(np.int64)) + 1970, int(last.astype(np.int64)) + 1970


def _days(times: Times) -> NDArray[np.datetime64]:
    return times.astype("datetime64[D]")


def _day_number(times: Times) -> Index:
    return _days(times).astype(np.int64)


def _seconds_of_day(times: Times) -> Index:
    return _count((times - _days(times)).astype("timedelta64[s]"))


def _count(span: NDArray[np.timedelta64]) -> Index:
    return span.astype(np.int64)

from datetime import date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import calendar
from app.domain.panel import Frequency

moments = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2060, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0)
)


def array(*moments: date | datetime | str) -> np.ndarray:
    return np.array(moments, dtype="datetime64[s]")


def days(start: str, end: str) -> np.ndarray:
    """Daily times from start to end, both included."""
    return np.arange(start, np.datetime64(end) + np.timedelta64(1, "D"), dtype="datetime64[D]").astype("datetime64[s]")


@given(st.lists(moments, min_size=1, max_size=20))
def test_parts_of_a_date_are_those_of_the_standard_library(found: list[datetime]) -> None:
    times = array(*found)
    assert calendar.weekday(times).tolist() == [m.weekday() for m in found]
    assert calendar.is_weekend(times).tolist() == [m.weekday() >= 5 for m in found]
    assert calendar.month(times).tolist() == [m.month for m in found]
    assert calendar.day_of_month(times).tolist() == [m.day for m in found]
    assert calendar.hour(times).tolist() == [m.hour for m in found]
    assert calendar.week_of_year(times).tolist() == [m.isocalendar().week for m in found]


@given(moments)
def test_day_of_year_is_a_fraction_that_begins_with_the_year(moment: datetime) -> None:
    year = timedelta(days=date(moment.year, 12, 31).timetuple().tm_yday)
    (fraction,) = calendar.day_of_year(array(moment))
    assert 0 <= fraction < 1
    assert fraction == pytest.approx((moment - datetime(moment.year, 1, 1)) / year)


def test_the_end_of_a_quarter_is_its_last_days() -> None:
    times = days("2024-01-01", "2024-12-31")
    marked = times[calendar.end_of_quarter(times, days=3)].astype("datetime64[D]").astype(str).tolist()
    assert marked == [
        *("2024-03-29", "2024-03-30", "2024-03-31"),
        *("2024-06-28", "2024-06-29", "2024-06-30"),
        *("2024-09-28", "2024-09-29", "2024-09-30"),
        *("2024-12-29", "2024-12-30", "2024-12-31"),
    ]
    assert calendar.end_of_quarter(times).sum() == 4 * 7


@given(moments, st.integers(1, 20))
def test_the_end_of_a_quarter_begins_that_many_days_before_the_next(moment: datetime, length: int) -> None:
    next_quarter_is_near = moment.month % 3 == 0 and (moment + timedelta(days=length)).month != moment.month
    assert calendar.end_of_quarter(array(moment), length)[0] == next_quarter_is_near


def test_holidays_have_names_and_days() -> None:
    times = days("2024-01-01", "2025-12-31")
    found = calendar.holidays(times, "US")
    assert times[found["Thanksgiving Day"]].astype("datetime64[D]").astype(str).tolist() == ["2024-11-28", "2025-11-27"]
    assert np.array_equal(np.any(list(found.values()), axis=0), calendar.is_holiday(times, "US"))
    assert "Boxing Day" in calendar.holidays(times, "gb")
    assert "Thanksgiving Day" not in calendar.holidays(days("2024-01-01", "2024-06-30"), "US")


def test_two_holidays_on_one_day_are_both_named() -> None:
    found = calendar.holidays(days("2023-01-01", "2023-12-31"), "CZ")
    assert all(";" not in name for name in found)


def test_a_holiday_is_every_hour_of_its_day() -> None:
    times = np.arange("2024-12-24T00", "2024-12-27T00", dtype="datetime64[h]").astype("datetime64[s]")
    christmas = calendar.holidays(times, "US")["Christmas Day"]
    assert christmas.sum() == 24
    assert set(times[christmas].astype("datetime64[D]").astype(str).tolist()) == {"2024-12-25"}


@pytest.mark.parametrize("country", ["XX", "", "Atlantis"])
def test_an_unknown_country_is_named(country: str) -> None:
    with pytest.raises(ValueError, match=f"country '{country}'.*ISO 3166"):
        calendar.holidays(days("2024-01-01", "2024-01-02"), country)


def test_no_times_give_no_flags() -> None:
    none = array()
    assert calendar.holidays(none, "US") == {}
    assert calendar.cause(none, "US").size == 0
    assert calendar.features(none, Frequency.DAILY, "US")[0].shape == (0, 11)


def test_a_cause_is_the_strongest_event() -> None:
    times = array("2024-12-25", "2024-07-04", "2024-07-06", "2024-07-08")
    assert calendar.cause(times, "US").tolist() == ["end_of_quarter", "holiday", "weekend", "weekday"]
    assert list(calendar.events(times, "US")) == ["end_of_quarter", "holiday", "weekend"]


def test_features_have_a_column_per_name_and_hours_only_when_hourly() -> None:
    times = array("2024-07-03", "2024-07-04", "2024-07-05T13:00")
    matrix, names = calendar.features(times, Frequency.HOURLY, "US")
    assert matrix.shape == (3, len(names))
    assert np.isfinite(matrix).all()
    column = dict(zip(names, matrix.T.tolist(), strict=True))
    assert column["before_holiday"] == [1, 0, 0]
    assert column["holiday"] == [0, 1, 0]
    assert column["after_holiday"] == [0, 0, 1]
    assert column["hour"] == [0, 0, 13]
    assert column["weekday"] == [2, 3, 4]
    assert "hour" not in calendar.features(times, Frequency.DAILY, "US")[1]

"""Medians, which leave out what is missing, and times of any zone."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from app.domain.panel import instants, median


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 9, 10, 31])
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_a_median_is_that_of_the_values_that_are_there(width: int, missing: float) -> None:
    random = np.random.default_rng(width)
    values = random.normal(size=(40, 50, width)).round(1)  # rounded, so that some are the same
    values[random.random(values.shape) < missing] = np.nan
    known = np.isfinite(values).any(axis=-1)
    found = median(values)
    np.testing.assert_array_equal(found[known], np.nanmedian(values[known], axis=-1))
    assert np.isnan(found[~known]).all()


def test_a_median_that_is_not_wanted_may_be_missing_and_no_other() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(300, 9))
    values[random.random(values.shape) < 0.2] = np.nan
    wanted = random.random(300) < 0.5
    np.testing.assert_array_equal(median(values, wanted)[wanted], median(values)[wanted])


def test_a_median_of_no_rows() -> None:
    assert median(np.empty((0, 5))).shape == (0,)
    assert median(np.empty((0, 31))).shape == (0,)


def test_instants_are_told_in_utc_whatever_zone_a_time_has() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    found = instants([datetime(2024, 1, 1, 5, 30, tzinfo=east), None, datetime(1969, 12, 31, 23, tzinfo=UTC)])
    assert found.dtype == np.dtype("datetime64[s]")
    assert [str(time) for time in found] == ["2024-01-01T00:00:00", "NaT", "1969-12-31T23:00:00"]

import numpy as np
import pytest

from app.domain import calendar, profiles
from app.domain.panel import Frequency, Panel

DAYS = np.arange("2022-01-01", "2022-12-31", dtype="datetime64[D]")


def panel(values, frequency=Frequency.DAILY):
    values = np.asarray(values)
    servers = len(values)
    return Panel(
        servers=tuple(f"S{row:02}" for row in range(servers)),
        start=DAYS[0].astype("datetime64[s]"),
        frequency=frequency,
        values=values,
        first=np.zeros(servers, dtype=np.int64),
        last=np.full(servers, values.shape[1] - 1),
        lower=np.zeros(servers),
        upper=np.full(servers, 100.0),
    )


def fleet(seed=3, each=10):
    """Ten servers of each of four kinds, in order: idle and steady, weekday peaks, quarter-end peaks, growing."""
    random = np.random.default_rng(seed)
    weekend, late = (
        calendar.is_weekend(DAYS.astype("datetime64[s]")),
        calendar.end_of_quarter(DAYS.astype("datetime64[s]")),
    )
    shapes = [
        np.full(len(DAYS), 12.0),
        np.where(weekend, 35.0, 55.0),
        np.where(late, 60.0, 40.0),
        np.linspace(50.0, 90.0, len(DAYS)),
    ]
    return np.concatenate([shape * random.normal(1.0, 0.02, (each, len(DAYS))) for shape in shapes])


def test_kinds_of_servers_are_found_and_named():
    found = profiles.profiles(panel(fleet()), np.full(40, 100.0))
    assert [(profile.name, profile.servers) for profile in found.profiles] == [
        ("steady, low", 10),
        ("quarter-end peaks, medium", 10),
        ("weekday peaks, medium", 10),
        ("growing, high", 10),
    ]
    assert [found.of[f"S{row:02}"] for row in (0, 10, 20, 30)] == [
        "steady, low",
        "weekday peaks, medium",
        "quarter-end peaks, medium",
        "growing, high",
    ]
    assert found.silhouette is not None
    assert found.silhouette > 0.8
    assert all(found.of[server] == profile.name for profile in found.profiles for server in profile.examples)


def test_figures_are_what_the_server_was_made_of():
    level, weekday, trend, spread, late = profiles.figures(DAYS, fleet()[[0, 10, 20, 30]]).T
    assert level == pytest.approx([12.0, 49.3, 41.6, 70.0], abs=0.5)
    assert weekday == pytest.approx([0.0, 40.6, 0.0, 0.0], abs=1.5)
    assert trend == pytest.approx([0.0, 0.0, 0.0, 57.3], abs=2.0)
    assert spread == pytest.approx([2.0] * 4, abs=1.0)
    assert late == pytest.approx([0.0, 0.0, 48.0, 0.0], abs=2.0)


def test_the_same_fleet_is_grouped_the_same_way_again():
    first, again = (profiles.profiles(panel(fleet()), np.full(40, 100.0)) for _ in range(2))
    assert first == again


def test_a_fleet_of_one_kind_is_one_profile():
    found = profiles.profiles(panel(fleet()[:10]), np.full(10, 100.0))
    assert [(profile.name, profile.servers) for profile in found.profiles] == [("steady, low", 10)]
    assert found.silhouette is None


def test_servers_with_few_values_have_no_profile_and_gaps_do_not_matter():
    values = fleet()
    values[0, :-20] = np.nan
    values[1, ::3] = np.nan
    found = profiles.profiles(panel(values), np.full(40, 100.0))
    assert "S00" not in found.of
    assert found.of["S01"] == found.of["S02"]
    assert profiles.profiles(panel(values[:1]), np.full(1, 100.0)).profiles == ()


def test_hours_are_averaged_per_day():
    hours = np.repeat(fleet()[:, :60], 24, axis=1)
    days, means = profiles.daily(panel(hours, Frequency.HOURLY))
    assert len(days) == 60
    np.testing.assert_allclose(means, fleet()[:, :60])

"""Levels that shift are found, with their day; slopes, waves, weeks and single bad weeks are not."""

from dataclasses import replace

import numpy as np
import pytest

from app.domain import shifts
from app.domain.panel import Array, Frequency, Panel
from app.domain.preparation import prepare

SERVERS = 40


def panel(values: Array, frequency: Frequency = Frequency.DAILY) -> Panel:
    servers, steps = values.shape
    edge = np.zeros(servers, dtype=np.int64)
    return Panel(
        tuple(map(str, range(servers))), np.datetime64("2023-01-01T00:00:00"), frequency, values,
        edge, edge + steps - 1, edge * 0.0, edge + 100.0,
    )  # fmt: skip


def rhythm(steps: int, season: int = 7, seed: int = 0) -> Array:
    """Level 40, a season's rhythm, noise of 2."""
    noise = np.random.default_rng(seed).normal(0, 2, (SERVERS, steps))
    return 40 + 8 * np.sin(2 * np.pi * np.arange(steps) / season) + noise


@pytest.mark.parametrize(("frequency", "season"), [(Frequency.DAILY, 7), (Frequency.HOURLY, 24)])
@pytest.mark.parametrize("by", [12.0, -12.0])
def test_a_step_that_lasts_is_found_with_its_time(frequency: Frequency, season: int, by: float) -> None:
    values = rhythm(60 * season, season)
    at = 60 * season - 5 * season - np.arange(SERVERS) % season
    shifted = values + by * (np.arange(values.shape[1]) >= at[:, None])
    shifted[5] = values[5]
    made = panel(shifted, frequency)
    found = shifts.shifted_at(made)
    there = ~np.isnat(found)
    assert not there[5]
    assert there.mean() > 0.9
    off = np.abs((found[there] - made.times[at[there]]) / frequency.step)
    assert np.median(off) <= 1
    assert off.max() <= season / 2
    assert np.isnat(shifts.shifted_at(made.before(6 * season))).all(), "it had not happened yet"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: 0.0 * t,
        lambda t: 0.05 * t,
        lambda t: 12 * np.sin(2 * np.pi * t / 365.25),
        lambda t: 15.0 * ((t > 690) & (t <= 700)),
        lambda t: 15.0 * (t > 500),
        lambda t: 15.0 * ((t % 364) > 310),
        lambda t: 2.0 * (t > 690),
    ],
    ids=["nothing", "growth", "year", "ten days", "long ago", "every autumn", "small"],
)
def test_what_is_no_late_shift_is_not(change: object) -> None:
    days = np.arange(728)
    assert np.isnat(shifts.shifted_at(panel(rhythm(728) + change(days)))).all()  # type: ignore[operator]


def test_servers_end_and_begin_when_they_like_and_miss_what_they_like() -> None:
    values = rhythm(400) + 15 * (np.arange(400) >= 350)
    values[np.random.default_rng(1).random(values.shape) < 0.1] = np.nan
    made = panel(values)
    ended = made.before_each(np.where(np.arange(SERVERS) % 2, 0, 5))
    young = replace(ended, values=np.where(np.arange(400) < 340, np.nan, ended.values), first=ended.first + 340)
    assert (~np.isnat(shifts.shifted_at(ended))).mean() > 0.9
    assert np.isnat(shifts.shifted_at(young)).all()
    assert np.isnat(shifts.shifted_at(made.take(np.arange(0)))).all()
    assert np.isnat(shifts.shifted_at(panel(np.full((2, 400), np.nan)))).all()
    assert np.isnat(shifts.shifted_at(panel(np.full((2, 400), 3.0)))).all()


def test_the_past_is_brought_to_the_new_level_in_proportion_and_within_bounds() -> None:
    values = rhythm(500) * np.where(np.arange(500) < 460, 1.0, 1.5)
    values[1, 100] = 99.0
    prepared, changes = prepare(panel(values), outlier_z=0)
    past, since = prepared.values[:, :455], prepared.values[:, 465:]
    np.testing.assert_allclose(past.mean(axis=1), since.mean(axis=1), rtol=0.1)
    np.testing.assert_array_equal(since, values[:, 465:])
    assert np.std(past[0]) == pytest.approx(np.std(since[0]), rel=0.35)
    assert prepared.values.max() <= 100
    assert changes.summary()["capped_values"] == 0


def test_under_a_year_of_history_and_around_zero_the_past_stays() -> None:
    short = panel(rhythm(300) * np.where(np.arange(300) < 260, 1.0, 1.5))
    assert not np.isnat(shifts.shifted_at(short)).any()
    assert shifts.levelled(short) is short
    below = panel(rhythm(500) - 80 + 20 * (np.arange(500) >= 460))
    assert shifts.levelled(below) is below

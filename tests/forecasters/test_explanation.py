"""What the structural regression says that its forecast adds up from, on servers whose making is known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from app.domain import calendar
from app.domain.panel import Array, Frequency, Panel
from app.forecasters import explainer
from app.forecasters.structural import FORECASTER

START = np.datetime64("2020-01-06T00:00:00")


def panel(values: Array, frequency: Frequency = Frequency.DAILY, upper: float = np.inf) -> Panel:
    """Servers whose first value may come late: leading NaN."""
    servers, steps = values.shape
    return Panel(
        servers=tuple(f"SRV-{i}" for i in range(servers)),
        start=START,
        frequency=frequency,
        values=values,
        first=np.isfinite(values).argmax(axis=1),
        last=np.full(servers, steps - 1),
        lower=np.zeros(servers),
        upper=np.full(servers, upper),
    )


def noise(servers: int, steps: int, deviation: float = 0.01) -> Array:
    return np.random.default_rng(0).normal(1, deviation, (servers, steps))


def made(servers: int, steps: int) -> Array:
    """Levels times working days, a year, quarter ends and Christmas."""
    at = START + np.arange(steps) * Frequency.DAILY.step
    weekday = np.where(calendar.is_weekend(at), 0.8, 1.08)
    year = 1 + 0.1 * np.sin(2 * np.pi * calendar.day_of_year(at))
    christmas = (calendar.month(at) == 12) & (calendar.day_of_month(at) == 25)
    events = np.where(calendar.end_of_quarter(at), 1.25, 1.0) * np.where(christmas, 0.6, 1.0)
    return (40 + 2 * np.arange(servers)[:, None]) * weekday * year * events


def test_each_part_is_found_where_it_was_put() -> None:
    steps = 1092  # to the first days of 2023, so that a March is ahead
    past = panel(made(12, steps) * noise(12, steps))
    parts = explainer().explain(past, 90, 3)
    assert list(parts.effects) == ["trend", "weekday", "year", "calendar"]
    assert parts.level == pytest.approx(46, rel=0.03)
    at = past.times_with_future(90)[steps:]
    weekend = calendar.is_weekend(at)
    apart = parts.effects["weekday"][~weekend].mean() - parts.effects["weekday"][weekend].mean()
    assert apart == pytest.approx(0.28 * 46, rel=0.15)
    quarter = parts.events["end_of_quarter"]
    assert (np.isfinite(quarter) == calendar.end_of_quarter(at)).all()
    assert 3 < np.nanmean(quarter) < 12.5  # 11.5, of which three years' twelve quarter ends persuade of a part
    assert np.abs(parts.effects["trend"]).max() < 0.05 * 46
    assert np.ptp(parts.effects["year"]) > 0.05 * 46
    ordinary = np.all([np.isnan(effect) for effect in parts.events.values()], axis=0)
    assert ordinary.any()
    assert (parts.effects["calendar"][ordinary] == 0).all()


def test_a_holiday_is_told_by_its_name_with_the_days_around() -> None:
    steps = 1060  # to the end of November 2022
    parts = explainer().explain(panel(made(12, steps) * noise(12, steps)), 40, 0)
    days = (START + np.arange(steps, steps + 40) * Frequency.DAILY.step).astype("datetime64[D]")
    christmas = parts.events["holiday:Christmas Day"]
    assert days[np.isfinite(christmas)].tolist() == [np.datetime64("2022-12-25").item()]
    assert -20 < np.nanmean(christmas) < -6
    assert days[np.isfinite(parts.events["before:Christmas Day"])].tolist() == [np.datetime64("2022-12-24").item()]
    assert np.nansum([*parts.events.values()], axis=0) == pytest.approx(parts.effects["calendar"])


def walk() -> Panel:
    return panel(500 + np.random.default_rng(1).normal(0, 1, (8, 300)).cumsum(axis=1))


def young() -> Panel:
    values = made(9, 800) * noise(9, 800)
    values[0, :786] = np.nan
    return panel(values)


CASES: dict[str, tuple[Callable[[], Panel], int]] = {
    "three years": (lambda: panel(made(6, 1096) * noise(6, 1096)), 90),
    "bounded": (lambda: panel(np.minimum(made(6, 400) * 2, 100) * noise(6, 400), upper=100.0), 30),
    "negative": (lambda: panel(made(6, 400) - 50), 30),
    "random walk": (walk, 60),
    "fourteen values": (lambda: panel(made(3, 14)), 14),
    "young among old": (young, 120),
    "constant": (lambda: panel(np.full((3, 200), 7.0)), 28),
    "zero": (lambda: panel(np.zeros((3, 60))), 28),
    "one server": (lambda: panel(made(1, 500)), 500),
    "hours": (lambda: panel(30 + 10 * np.sin(np.arange(1000) * np.pi / 12) * noise(4, 1000), Frequency.HOURLY), 72),
    "known ahead": (
        lambda: replace(panel(made(5, 400)), known={"load": np.random.default_rng(2).normal(size=(5, 430))}),
        30,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_parts_add_up_to_the_centre_of_the_forecast(case: str) -> None:
    build, horizon = CASES[case]
    past = build()
    fitted = FORECASTER.fit(past, horizon)
    centre = fitted.scale.back(fitted.centre[:, :, None])[:, :, 0]
    parts = explainer().explain(past, horizon, 0)
    assert all(np.isfinite(effect).all() for effect in parts.effects.values())
    whole = parts.level + np.sum([*parts.effects.values()], axis=0)
    assert whole == pytest.approx(centre[0], rel=1e-9, abs=1e-9)


def test_hours_of_the_day_are_a_part_of_hourly_data() -> None:
    at = START + np.arange(1000) * Frequency.HOURLY.step
    weekend = calendar.is_weekend(at)
    wave = np.sin(calendar.hour(at) * np.pi / 12)
    values = (60 + 10 * wave * np.where(weekend, 0.5, 1.0) - 8 * weekend) * noise(6, 1000)
    parts = explainer().explain(panel(values, Frequency.HOURLY, upper=100.0), 168, 0)
    assert list(parts.effects) == ["trend", "weekday", "hour", "year", "calendar"]
    ahead = calendar.is_weekend(START + np.arange(1000, 1168) * Frequency.HOURLY.step)
    assert np.ptp(parts.effects["hour"][~ahead]) == pytest.approx(20, rel=0.15)
    assert np.ptp(parts.effects["hour"][ahead]) == pytest.approx(10, rel=0.3)
    apart = parts.effects["weekday"][~ahead].mean() - parts.effects["weekday"][ahead].mean()
    assert apart == pytest.approx(8, rel=0.2)


def test_a_known_ahead_column_is_a_part() -> None:
    build, horizon = CASES["known ahead"]
    past = build()
    driven = past.values + 5 * past.known["load"][:, :400]
    parts = explainer().explain(replace(past, values=driven), horizon, 2)
    column = past.known["load"][2, 400:]
    assert np.corrcoef(parts.effects["known_ahead"], column)[0, 1] > 0.99
    assert np.polyfit(column, parts.effects["known_ahead"], 1)[0] == pytest.approx(5, rel=0.2)

"""What the structural regression must find in servers whose making is known."""

from dataclasses import replace

import numpy as np
import pytest

from app.domain import calendar
from app.domain.panel import Array, Frequency, Panel
from app.forecasters.structural import FORECASTER

LEVELS = (0.1, 0.5, 0.9)
START = np.datetime64("2021-01-04T00:00:00")
CHRISTMAS = int((np.datetime64("2023-12-25") - START) // np.timedelta64(1, "D"))


def panel(values: Array, frequency: Frequency = Frequency.DAILY, known: dict[str, Array] | None = None) -> Panel:
    """Servers whose first value may come late: leading NaN."""
    servers, steps = values.shape
    return Panel(
        tuple(f"SRV-{i}" for i in range(servers)),
        START,
        frequency,
        values,
        np.isfinite(values).argmax(axis=1),
        np.full(servers, steps - 1),
        np.zeros(servers),
        np.full(servers, 100.0),
        known or {},
    )


def times(steps: int) -> np.ndarray:
    return START + np.arange(steps) * np.timedelta64(86_400, "s")


def median(past: Panel, horizon: int) -> Array:
    return FORECASTER.fit(past, horizon).predict(horizon, LEVELS)[..., 1]


def noise(servers: int, steps: int, deviation: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, deviation, (servers, steps))


def made(steps: int, servers: int = 20) -> Array:
    """Weekdays, a year, Christmas and a rise, without noise."""
    at = times(steps)
    year = np.sin(2 * np.pi * calendar.day_of_year(at))
    working = calendar.weekday(at) < 5
    christmas = (calendar.month(at) == 12) & (calendar.day_of_month(at) == 25)
    rise = np.linspace(0, 1, steps) * 6
    return 40 + np.arange(servers)[:, None] * 0.5 + 8 * year + 6 * working - 12 * christmas + rise


def test_calendar_and_level_are_found() -> None:
    whole = made(1096) + noise(20, 1096)
    past, future = whole[:, :1006], made(1096)[:, 1006:]
    forecast = median(panel(past), 90)
    assert np.abs(forecast - future).mean() < 1.0
    # Christmas, which only the calendar foretells
    day = CHRISTMAS - 1006
    assert (forecast[:, day] < forecast[:, day - 7] - 5).all()


def test_quantiles_cover_what_comes() -> None:
    whole = made(1096, 60) + noise(60, 1096, 2.0)
    values = FORECASTER.fit(panel(whole[:, :1006]), 90).predict(90, LEVELS)
    actual = whole[:, 1006:]
    assert np.mean((values[..., 0] <= actual) & (actual <= values[..., 2])) == pytest.approx(0.8, abs=0.06)


def test_spread_grows_for_a_random_walk_and_its_median_is_the_recent_level() -> None:
    walk = 500 + noise(60, 200, 1.0).cumsum(axis=1)
    values = FORECASTER.fit(panel(walk), 28).predict(28, LEVELS)
    assert np.abs(values[..., 1] - walk[:, -1:]).mean() < 2.5
    width = values[..., 2] - values[..., 0]
    assert (width[:, -1] > 1.5 * width[:, 0]).all()


def test_a_level_shift_is_followed() -> None:
    values = 20 + noise(30, 200)
    values[:, 150:] += 30
    assert median(panel(values), 14).mean() == pytest.approx(50, abs=3)


def test_a_young_server_inherits_the_holidays_of_its_kind() -> None:
    whole = made(1096) + noise(20, 1096)
    past = whole[:, :1006].copy()
    past[0, :900] = np.nan  # has not seen a Christmas
    forecast = median(panel(past), 90)[0]
    day = CHRISTMAS - 1006
    assert forecast[day] < forecast[day - 7] - 5


def test_hours_of_the_day() -> None:
    steps = 24 * 21
    hour = np.arange(steps + 48) % 24
    whole = 30 + 20 * (hour > 12) + noise(5, steps + 48)
    forecast = median(panel(whole[:, :steps], Frequency.HOURLY), 48)
    assert np.abs(forecast - whole[:, steps:]).mean() < 2.5


def test_known_ahead_regressors_are_followed() -> None:
    campaign = (np.random.default_rng(3).random((8, 330)) < 0.2).astype(float)
    values = 40 + 15 * campaign + noise(8, 330)
    past = panel(values[:, :300], known={"campaign": campaign})
    forecast = median(past, 30)
    assert np.abs(forecast - values[:, 300:]).mean() < 3


def test_awkward_servers_stay_finite_and_do_not_disturb_others() -> None:
    good = made(200, 6) + noise(6, 200)
    odd = np.zeros((5, 200))
    odd[1] = 42.0  # constant
    odd[2, 150:] = 0.001  # switched on lately
    odd[3, 180:] = np.nan
    odd[3] = np.roll(odd[3], 20)  # twenty values of zero
    odd[4] = np.where(np.arange(200) % 50 == 0, 90.0, 0.0)  # bursts
    alone = FORECASTER.fit(panel(good), 14).predict(14, LEVELS)
    together = FORECASTER.fit(panel(np.concatenate([good, odd])), 14).predict(14, LEVELS)
    assert np.isfinite(together).all()
    assert (np.diff(together, axis=-1) >= 0).all()
    assert np.abs(together[:6, :, 1] - alone[..., 1]).max() < 2
    assert together[7] == pytest.approx(42.0)


@pytest.mark.parametrize("length", [14, 20, 33])
def test_short_histories(length: int) -> None:
    values = FORECASTER.fit(panel(30 + noise(4, length)), 90).predict(90, (0.01, *LEVELS, 0.975))
    assert np.isfinite(values).all()
    assert values[..., 2] == pytest.approx(30, abs=3)


def test_negative_values_stay_on_their_own_scale() -> None:
    values = noise(6, 120, 3.0)
    assert median(panel(values), 14) == pytest.approx(0.0, abs=2)


def test_the_future_changes_nothing() -> None:
    """Rows after a server's last one, there because other servers go on, are not read."""
    values = made(400, 4) + noise(4, 400)
    past = panel(values)
    last = past.last.copy()
    last[0] = 350
    cut = values.copy()
    cut[0, 351:] = np.nan
    wild = values.copy()
    wild[0, 351:] = 1e6
    first = FORECASTER.fit(replace(past, values=cut, last=last), 14).predict(14, LEVELS)
    second = FORECASTER.fit(replace(past, values=wild, last=last), 14).predict(14, LEVELS)
    assert np.array_equal(first, second)


def test_growth_goes_on() -> None:
    """Disks that fill by a tenth a day, beside servers that do not."""
    growing = 20 + 0.1 * np.arange(690) + noise(20, 690)
    steady = 50 + noise(20, 690, 2.0, seed=1)
    forecast = median(panel(np.concatenate([steady, growing])[:, :600]), 90)
    assert forecast[20:, 60:].mean() == pytest.approx(growing[:, 660:].mean(), abs=5)
    assert forecast[:20, 60:].mean() == pytest.approx(50, abs=1)

"""One suite over every local model: what `app.forecasters._contract` promises, on small panels of awkward servers."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from app import forecasters
from app.domain.panel import MIN_VALUES, Array, Frequency, Panel

HORIZON = 21
LEVELS = (0.01, 0.1, 0.5, 0.9, 0.975)

# The ensemble answers for others: it is tested where its members are scored. AutoGluon takes half a minute a fit, and
# is asked the same in fewer fits (test_autogluon).
MODELS = [name for name in forecasters.names() if name not in ("auto", "autogluon")]
USES_KNOWN_AHEAD = [name for name in MODELS if name != "seasonal_naive"]


def panel(values: list[Array], frequency: Frequency = Frequency.DAILY, known: dict[str, Array] | None = None) -> Panel:
    """A prepared panel; servers that are shorter than the longest end with it, and begin later."""
    width = max(map(len, values))
    count = len(values)
    return Panel(
        servers=tuple(f"SRV-{number}" for number in range(count)),
        start=np.datetime64("2022-01-03T00:00:00"),
        frequency=frequency,
        values=np.array([np.pad(row, (width - len(row), 0), constant_values=np.nan) for row in values]),
        first=np.array([width - len(row) for row in values]),
        last=np.full(count, width - 1),
        lower=np.zeros(count),
        upper=np.full(count, 100.0),
        known=known or {},
    )


def rhythm(steps: int, season: int = 7, level: float = 50.0, seed: int = 0) -> Array:
    """A level, a season of amplitude 10, noise of 1, and a slow rise."""
    noise = np.random.default_rng(seed).normal(0, 1, steps)
    return level + 10 * np.sin(2 * np.pi * np.arange(steps) / season) + 0.01 * np.arange(steps) + noise


def forecast(model: str, past: Panel, horizon: int = HORIZON, levels: tuple[float, ...] = LEVELS) -> Array:
    """The model's forecast, after what every one of them must be: of its shape, finite, ascending."""
    values = forecasters.load(model).fit(past, horizon).predict(horizon, levels)
    assert values.shape == (len(past), horizon, len(levels))
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=-1) >= 0).all()
    return values


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the children that fit: small fits on several threads spend their time waiting for one another."""
    with threadpool_limits(1):
        yield


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


AWKWARD: dict[str, Callable[[], Array]] = {
    "constant": lambda: np.full(120, 42.0),
    "zeros": lambda: np.zeros(120),
    "fourteen": lambda: rhythm(MIN_VALUES),
    "fourteen_constant": lambda: np.full(MIN_VALUES, 7.0),
    "sixty": lambda: rhythm(60),
    "switched_off": lambda: np.concatenate([rhythm(80), np.zeros(40)]),
    "level_shift": lambda: np.concatenate([rhythm(80, level=20), rhythm(40, level=80)]),
    "bursts": lambda: np.where(np.arange(120) % 17 == 0, 90.0, 0.0),
    "huge": lambda: 1e9 * rhythm(120),
    "tiny": lambda: 1e-6 * rhythm(120),
    "negative": lambda: -rhythm(120),
}


@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_server_alone(model: str, kind: str) -> None:
    values = forecast(model, panel([AWKWARD[kind]()]))
    span = np.abs(AWKWARD[kind]()).max() + 1e-9
    assert np.abs(values[..., 2]).max() <= 3 * span, "the median left the order of magnitude of the history"


def test_awkward_servers_together(model: str) -> None:
    forecast(model, panel([make() for make in AWKWARD.values()]))


def test_constant_server_stays_constant(model: str) -> None:
    values = forecast(model, panel([np.full(120, 42.0)]), levels=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(values, 42.0, rtol=0.02)


def test_learns_the_season(model: str) -> None:
    past, season = rhythm(210), rhythm(210 + HORIZON)[210:]
    middle = forecast(model, panel([past, rhythm(210, seed=1)]))[0, :, 2]
    assert np.abs(middle - season).mean() < 3.0  # of an amplitude of 10


def test_spread_widens_with_the_level(model: str) -> None:
    values = forecast(model, panel([rhythm(210), rhythm(210, seed=1)]))
    assert (np.diff(values.mean(axis=(0, 1))) > 0).all()


def test_deterministic(model: str) -> None:
    past = panel([rhythm(90), rhythm(60, seed=1)])
    np.random.seed(1)
    once = forecast(model, past)
    np.random.seed(2)
    np.testing.assert_array_equal(forecast(model, past), once)


def test_hourly(model: str) -> None:
    past = rhythm(24 * 20, season=24)
    values = forecast(model, panel([past, rhythm(24 * 20, 24, seed=1), rhythm(MIN_VALUES)], Frequency.HOURLY), 48)
    truth = rhythm(24 * 20 + 48, season=24)[-48:]
    assert np.abs(values[0, :, 2] - truth).mean() < 3.0


def test_horizon_longer_than_history(model: str) -> None:
    forecast(model, panel([rhythm(40), rhythm(30, seed=1)]), horizon=400)


def test_predicts_less_far_than_fitted(model: str) -> None:
    fitted = forecasters.load(model).fit(panel([rhythm(90)]), 28)
    far, near = fitted.predict(28, LEVELS), fitted.predict(7, LEVELS)
    assert near.shape == (1, 7, len(LEVELS))
    assert np.abs(near[..., 2] - far[:, :7, 2]).max() < 1.0  # of a noise of 1: samples may differ


def test_servers_ending_apart(model: str) -> None:
    """Each forecast starts one step after its own last row."""
    late = panel([rhythm(120), rhythm(120)])
    values = late.values.copy()
    values[1, -3:] = np.nan
    apart = replace(late, values=values, last=np.array([119, 116]))
    forecasts = forecast(model, apart)
    truth = np.array([rhythm(120 + HORIZON)[120:], rhythm(120 + HORIZON)[117 : 117 + HORIZON]])
    assert np.abs(forecasts[..., 2] - truth).mean() < 3.0


def test_earlier_origin_knows_nothing_later(model: str) -> None:
    """A back-test's panel is a fit's panel: what came after the origin changes nothing."""
    past = panel([rhythm(120), rhythm(120, seed=1)])
    after = past.values.copy()
    after[:, 100:] += 1_000.0
    changed = replace(past, values=after)
    np.testing.assert_array_equal(forecast(model, past.before(20)), forecast(model, changed.before(20)))


@pytest.mark.parametrize("name", USES_KNOWN_AHEAD)
def test_known_ahead_moves_the_forecast(name: str) -> None:
    """A regressor that doubled the load in the past, announced for the future, lifts those days."""
    steps, servers = 210, 4
    campaign = (np.random.default_rng(5).random((servers, steps + HORIZON)) < 0.2).astype(float)
    past = [rhythm(steps, seed=seed) + 30 * campaign[seed, :steps] for seed in range(servers)]
    middle = forecast(name, panel(past, known={"campaign": campaign}))[..., 2]
    announced = campaign[:, steps:] > 0
    assert middle[announced].mean() - middle[~announced].mean() > 15.0


@pytest.mark.parametrize("name", USES_KNOWN_AHEAD)
def test_known_ahead_may_have_holes_and_end_early(name: str) -> None:
    """Also under a name that a library keeps for itself."""
    campaign = np.array([np.r_[np.nan, np.arange(98.0) % 5, np.nan], np.full(100, np.nan)])
    forecast(name, panel([rhythm(100), rhythm(100, seed=1)], known={"trend": campaign, "ds": campaign}))

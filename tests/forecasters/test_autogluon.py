"""AutoGluon in its own environment: the promises of a model, in two fits; and what is said where it is missing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from app import forecasters
from app.compute import Processes, TooSlow
from app.domain.panel import Array, Panel
from app.forecasters import _apart, autogluon
from tests.forecasters.test_contract import AWKWARD, panel, rhythm

HORIZON = 7
LEVELS = (0.1, 0.5, 0.9)

installed = pytest.mark.skipif(
    _apart.missing("autogluon"), reason="AutoGluon is not installed beside this environment (make autogluon)"
)


def together() -> Panel:
    """Two rhythmic servers with a campaign that is known ahead, one that ends three days sooner, and awkward ones."""
    kinds = ("constant", "zeros", "fourteen", "switched_off", "level_shift", "bursts", "negative")
    rhythms = [rhythm(210, seed=seed) for seed in range(3)]
    made = panel([*rhythms, *(AWKWARD[kind]() for kind in kinds)])
    campaign = (np.random.default_rng(5).random((len(made), made.steps + HORIZON)) < 0.3).astype(float)
    values = made.values + np.where(np.arange(len(made))[:, None] < 2, 30 * campaign[:, : made.steps], 0)
    values[2, -3:] = np.nan
    last = made.last.copy()
    last[2] -= 3
    return replace(made, values=values, last=last, known={"campaign": campaign})


def forecast(past: Panel) -> Array:
    return autogluon.FORECASTER.fit(past, HORIZON).predict(HORIZON, LEVELS)


@pytest.fixture(scope="module")
def made() -> Array:
    return forecast(together())


@installed
def test_forecasts_are_whole_finite_and_ascending(made: Array) -> None:
    assert made.shape == (len(together()), HORIZON, len(LEVELS))
    assert np.isfinite(made).all()
    assert (np.diff(made, axis=-1) >= 0).all()


@installed
def test_each_forecast_starts_after_its_own_last_row(made: Array) -> None:
    truth = rhythm(207 + HORIZON, seed=2)[207:]
    assert np.abs(made[2, :, 1] - truth).mean() < 3.0  # of an amplitude of 10


@installed
def test_known_ahead_moves_the_forecast(made: Array) -> None:
    announced = together().known["campaign"][:2, 210:] > 0
    middle = made[:2, :, 1]
    assert middle[announced].mean() - middle[~announced].mean() > 10.0


@installed
def test_the_same_panel_gives_the_same_forecast(made: Array) -> None:
    np.testing.assert_array_equal(forecast(together()), made)


@installed
def test_what_went_wrong_in_its_process_is_told() -> None:
    with pytest.raises(autogluon.AutoGluonFailed, match="quantile"):
        autogluon.FORECASTER.fit(together(), HORIZON).predict(HORIZON, (1.5,))


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Processes]:
    pool = Processes(1, 8_192, tmp_path / "scratch")
    yield pool
    pool.close()


@installed
async def test_its_process_ends_with_the_child_that_fits(child: Processes, tmp_path: Path) -> None:
    await child.run(forecasters.names, seconds=60)  # the child is up: what follows is AutoGluon's own time
    with pytest.raises(TooSlow):
        await child.run(forecast, together(), seconds=5)
    alive = [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert alive == []


def test_a_history_too_short_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="learns from 31 steps"):
        autogluon.FORECASTER.fit(panel([rhythm(30), rhythm(14)]), 21)


def test_it_is_no_model_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_apart.PYTHONS, "autogluon", tmp_path / "python")
    assert "autogluon" not in forecasters.names()
    with pytest.raises(KeyError):
        forecasters.load("autogluon")
    assert re.search("make autogluon", forecasters.advice("autogluon") or "")
    (tmp_path / "python").touch()
    assert "autogluon" in forecasters.names()

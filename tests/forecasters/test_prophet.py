"""Whether Prophet's seasons grow with the level is learnt from the history, and only there where it can be."""

import numpy as np
import pytest

from app.domain.panel import Array, Frequency, Panel
from app.forecasters.prophet import FORECASTER, FittedProphet


def modes(values: Array) -> set[str]:
    servers, steps = values.shape
    past = Panel(
        servers=tuple(f"SRV-{row}" for row in range(servers)),
        start=np.datetime64("2022-01-03T00:00:00"),
        frequency=Frequency.DAILY,
        values=values,
        first=np.zeros(servers, dtype=np.int64),
        last=np.full(servers, steps - 1),
        lower=np.zeros(servers),
        upper=np.full(servers, np.inf),
    )
    fitted = FORECASTER.fit(past, 28)
    assert isinstance(fitted, FittedProphet)
    return {model.seasonality_mode for model in fitted.models}


def swinging(*, growing: bool) -> Array:
    """Two servers whose level rises fourfold; their week swings by a fifth of it, or of its mean."""
    steps = np.arange(240)
    level = np.linspace(20, 80, 240)
    week = np.sin(2 * np.pi * steps / 7)
    noise = np.random.default_rng(0).normal(0, 0.5, (2, 240))
    return level + 0.2 * (level if growing else 50) * week + noise


@pytest.mark.parametrize("growing", [True, False])
def test_the_mode_is_found_by_back_test(growing: bool) -> None:
    assert modes(swinging(growing=growing)) == {"multiplicative" if growing else "additive"}


def test_a_level_near_zero_is_no_factor() -> None:
    assert modes(swinging(growing=True) - 24) == {"additive"}

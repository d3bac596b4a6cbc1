"""One fit for a whole fleet, in which no server sets the leaves of all."""

import numpy as np

from app.domain.panel import Frequency, Panel
from app.forecasters.gradient_boosting import FORECASTER

LEVELS = (0.1, 0.5, 0.9)


def test_a_server_that_rises_by_factors_of_a_million_does_not_lift_the_others() -> None:
    servers, steps = 12, 84
    values = 50 + np.random.default_rng(0).normal(size=(servers, steps))
    values[0, -16:] *= 1e6
    bounds = np.full(servers, -np.inf), np.full(servers, np.inf)
    span = np.zeros(servers, dtype=np.int64), np.full(servers, steps - 1)
    start = np.datetime64("2024-01-01T00:00:00")
    panel = Panel(tuple(map(str, range(servers))), start, Frequency.DAILY, values, *span, *bounds)
    forecast = FORECASTER.fit(panel, 14).predict(14, LEVELS)[1:]
    assert np.abs(forecast - 50).max() < 150

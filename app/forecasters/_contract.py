"""What a local model is. A new model is one file here with a `FORECASTER`; the contract suite finds it.

predictor = forecaster.fit(panel, horizon)
values = predictor.predict(horizon, (0.1, 0.5, 0.9))     # (servers, horizon, 3)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.domain.evaluation import Trial
from app.domain.explanation import Parts
from app.domain.panel import Array, Panel


class Predictor(Protocol):
    """A fitted model; holds all it needs, so that training data may go."""

    def predict(self, horizon: int, quantiles: Sequence[float]) -> Array:
        """Quantile forecasts of each server's next `horizon` steps: (servers, horizon, quantiles).

        Finite, in the metric's unit, ascending along the quantiles; not yet bounded or calibrated.
        """
        ...


class Forecaster(Protocol):
    """Learns from a prepared panel: no NaN between a server's first and last row, at least 14 values each.

    `name` is the model's name in the API. `chunk` is how many servers one fit takes (0: the whole fleet at
    once, for a model that learns across servers). `earlier_windows` is how many back-test windows before the
    reported ones it is worth fitting, to calibrate on. A fit is deterministic: the same panel, the same
    forecast. It raises on a panel that it cannot learn from; the run then narrows down to the server at fault.
    """

    name: str
    chunk: int
    earlier_windows: int

    def fit(self, panel: Panel, horizon: int) -> Predictor: ...


class Explainer(Protocol):
    """A model that knows what its forecast adds up from."""

    def explain(self, panel: Panel, horizon: int, server: int) -> Parts:
        """Of one server, by its place in a panel as `fit` takes it; the others are those it learns from."""
        ...


@dataclass(frozen=True)
class Combined:
    """`trial` is judged as any model's; `weights` (members, servers) are those of the forecast, adding up to 1."""

    trial: Trial
    weights: Array


@runtime_checkable
class Ensemble(Protocol):
    """Not fitted itself: weighs the trials of its members, all of the same windows.

    A forecast of window w is weighed by windows older than w alone, like its calibration. `earlier_windows` is
    what its members are fitted with on its behalf.
    """

    name: str
    earlier_windows: int

    def members(self, servers: int) -> tuple[str, ...]:
        """Who is fitted for a fleet of so many servers."""
        ...

    def weigh(self, trials: Mapping[str, Trial]) -> Array:
        """Weights (1 + W, members, servers) of the forecast [0] and of each window's, adding up to 1 over members."""
        ...

    def combine(self, trials: Mapping[str, Trial]) -> Combined:
        """Of the members' trials by name; the weights are in their order."""
        ...

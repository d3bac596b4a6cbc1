"""The local models, found by name; a model's library is imported when the model is."""

from importlib import import_module
from pkgutil import iter_modules

from app.forecasters._contract import Combined, Ensemble, Explainer, Forecaster, Predictor

__all__ = ["Combined", "Ensemble", "Explainer", "Forecaster", "Predictor", "explainer", "load", "member", "names"]


def names() -> tuple[str, ...]:
    """Every model that is a file here, without importing any."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_")))


def load(name: str) -> Forecaster | Ensemble:
    """The model of that name. Raises KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    forecaster: Forecaster | Ensemble = import_module(f"{__name__}.{name}").FORECASTER
    return forecaster


def explainer() -> Explainer:
    """The model that every forecast is explained by."""
    model: Explainer = import_module(f"{__name__}.structural").FORECASTER
    return model


def member(name: str) -> Forecaster:
    """The model of that name, which is fitted itself. Raises KeyError when there is none."""
    forecaster = load(name)
    if isinstance(forecaster, Ensemble):
        raise KeyError(f"{name} is an ensemble: its members are fitted")
    return forecaster

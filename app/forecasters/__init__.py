"""The local models, found by name; a model's library is imported when the model is."""

from importlib import import_module
from pkgutil import iter_modules

from app.forecasters import _apart
from app.forecasters._contract import Combined, Ensemble, Explainer, Forecaster, Predictor

__all__ = [
    "Combined",
    "Ensemble",
    "Explainer",
    "Forecaster",
    "Predictor",
    "advice",
    "explainer",
    "load",
    "member",
    "names",
]


def names() -> tuple[str, ...]:
    """Every model that is a file here and whose libraries are installed, without importing any."""
    files = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in files if not name.startswith("_") and not _apart.missing(name)))


def advice(name: str) -> str | None:
    """How to get a model that this installation does not have, if there is a way."""
    return _apart.ADVICE.get(name)


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

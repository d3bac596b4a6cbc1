"""Models that are installed apart from Headroom, since their libraries contradict its own: where, and how to get them.

An environment of such a model lies beside Headroom's own: `.autogluon` beside `.venv`. That it is there is all that
makes the model one of this installation, on every machine by itself.
"""

import sys
from pathlib import Path

AUTOGLUON = Path(sys.prefix).parent / ".autogluon" / "bin" / "python"

PYTHONS = {"autogluon": AUTOGLUON}
"""The Python that runs a model of that name."""

ADVICE = {"autogluon": "`make autogluon` in Headroom's checkout installs it; nothing has to be restarted"}


def missing(name: str) -> bool:
    """Whether a model has to be installed first."""
    return name in PYTHONS and not PYTHONS[name].exists()

"""What scores are made of, kept small: sums per server and stretch of the horizon, which any group can be pooled from.

    tally (servers, periods, 5):  values scored, Σ sMAPE, Σ 2·pinball (mean over p10, p50, p90), Σ |y|, values covered

A period is 30 steps of days, a "month" of the horizon, or the 24 of a day; the last one may be shorter. It leaves out
how single values are scored (evaluation).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.panel import Frequency

Sums = NDArray[np.floating]

SUMS = ("values", "smape", "pinball", "size", "covered")


@dataclass(frozen=True)
class Pooled:
    """The figures of a group; None where nothing was scored (`wql`: where all values are zero)."""

    servers: int
    smape: float | None
    wql: float | None
    coverage: float | None


def period(frequency: Frequency) -> int:
    """Steps of one."""
    return 30 if frequency is Frequency.DAILY else 24


def starts(horizon: int, steps: int) -> list[int]:
    """The first step of each period of `steps` steps, from 0."""
    return list(range(0, horizon, steps))


def pool(tally: Sums) -> Pooled:
    """Over any servers and periods: (…, 5)."""
    flat = np.asarray(tally, dtype=np.float64).reshape(-1, *tally.shape[-2:])
    values, smape, pinball, size, covered = flat.sum(axis=(0, 1)).tolist()
    servers = int(np.count_nonzero(flat[:, :, 0].sum(axis=1)))
    if not values:
        return Pooled(servers, None, None, None)
    return Pooled(servers, smape / values, pinball / size if size > 0 else None, covered / values)

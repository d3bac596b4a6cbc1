"""Whether what came is worse than the back-test promised: drift, of a model over its servers and of single servers.

Live values are compared with the back-test's of the same stretches of the horizon, since errors grow with distance. A
server counts once, however many of its values have come: values of one server are wrong together. It leaves out what
was promised and what came (evaluation, tally).

    a model drifts   when, by a sign test over servers (one-sided, p < 0.01), live error or live coverage is worse than
                     promised more often than a coin would have it, and by enough to matter: the pooled loss at least
                     1.25 times, or the pooled coverage at least 0.05 below. Under seven servers no sign test speaks:
                     then when at least half of them drift by themselves.
    a server drifts  when its loss is at least twice what was promised, and so few of its values are covered as happens
                     once in twenty (binomial, a season of values one trial, two at least).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc

from app.domain.panel import Array
from app.domain.tally import Sums

SIGNIFICANT, LOSS, COVERAGE = 0.01, 1.25, 0.05
ENOUGH = 7
"""Servers: of fewer, not even unanimity is significant."""
SERVER_SIGNIFICANT, SERVER_LOSS, SERVER_SEASONS = 0.05, 2.0, 2
WORST = 20
"""Servers named, at most."""


@dataclass(frozen=True)
class ServerDrift:
    """`server` is its place among those judged."""

    server: int
    loss_ratio: float
    coverage: float


@dataclass(frozen=True)
class Drift:
    """`compared` servers had a season of values at least and a promise; `loss_ratio` and both coverages are pooled over
    them, None where there were none. `worst`: of the `drifted` servers, those with the largest ratio first."""

    reasons: tuple[str, ...]
    compared: int
    drifted: int
    loss_ratio: float | None
    coverage: float | None
    promised_coverage: float | None
    worst: tuple[ServerDrift, ...]

    @property
    def flagged(self) -> bool:
        return bool(self.reasons)


NOTHING = Drift((), 0, 0, None, None, None, ())


def drift(live: Array, promised: Sums, season: int) -> Drift:
    """From tallies (servers, periods, 5) of what came, and of the back-test; `season`: steps of one."""
    live = np.where(promised[:, :, :1] > 0, live.astype(np.float64), 0.0)
    values = live[:, :, 0]
    share = values / np.maximum(promised[:, :, 0], 1)
    loss, due = live[:, :, 2].sum(axis=1), (share * promised[:, :, 2]).sum(axis=1)
    covered, due_covered = live[:, :, 4].sum(axis=1), (share * promised[:, :, 4]).sum(axis=1)
    values = values.sum(axis=1)
    rows = np.flatnonzero((values >= season) & (due > 0))
    if not rows.size:
        return NOTHING
    values, loss, due, covered, due_covered = (each[rows] for each in (values, loss, due, covered, due_covered))
    ratio, total = loss / due, values.sum()
    coverage, promise = float(covered.sum() / total), float(due_covered.sum() / total)
    loss_ratio = float(loss.sum() / due.sum())

    trials = np.floor(values / season)
    unlikely = bdtr(np.floor(trials * covered / values), trials.astype(np.int64), promise) < SERVER_SIGNIFICANT
    drifts = (ratio >= SERVER_LOSS) & unlikely & (trials >= SERVER_SEASONS)
    reasons = []
    if rows.size >= ENOUGH:
        if loss_ratio >= LOSS and _more_often(loss > due, loss < due):
            reasons.append(f"the live loss is {loss_ratio:.2f} times what the back-test promised")
        if coverage <= promise - COVERAGE and _more_often(covered < due_covered, covered > due_covered):
            reasons.append(f"p10 to p90 covers {coverage:.0%} of what came; the back-test promised {promise:.0%}")
    elif 2 * np.count_nonzero(drifts) >= rows.size:
        reasons.append(f"{np.count_nonzero(drifts)} of {rows.size} servers drift by themselves")
    worst = sorted(np.flatnonzero(drifts), key=lambda row: -ratio[row])[:WORST]
    return Drift(
        tuple(reasons),
        int(rows.size),
        int(np.count_nonzero(drifts)),
        loss_ratio,
        coverage,
        promise,
        tuple(ServerDrift(int(rows[row]), float(ratio[row]), float(covered[row] / values[row])) for row in worst),
    )


def _more_often(worse: NDArray[np.bool_], better: NDArray[np.bool_]) -> bool:
    """The sign test (Dixon & Mood 1946); ties say nothing."""
    heads, tails = int(np.count_nonzero(worse)), int(np.count_nonzero(better))
    return heads > 0 and float(bdtrc(heads - 1, heads + tails, 0.5)) < SIGNIFICANT

"""The ensemble: the mean of several models' quantiles, each counting by how it did in earlier windows.

It holds the weights. It leaves out the fits (its members'), and calibration, which comes after (evaluation).

    weight of model m for server i  ∝  prior_m · (loss_im / best loss_i) ^ -POWER

The loss is the mean pinball loss over 0.1, 0.5 and 0.9 in all windows older than the forecast's own, the
server's own shrunk to the fleet's on the scale of logarithms: with one window a server's figure is mostly chance.
Quantiles are averaged level by level (Vincent averaging; Lichtendahl et al. 2013), which keeps the shape of its
members where averaging distributions would widen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.domain.evaluation import Trial
from app.domain.panel import Array
from app.domain.quantiles import BASE
from app.forecasters._contract import Combined

PRIOR = {"structural": 4.0, "gradient_boosting": 2.0, "seasonal_naive": 1.0}
"""What a member counts before any window has spoken."""

POWER = 4.0
"""How sharply the better is preferred: half the loss, 2 ** POWER times the weight."""

OWN = 3.0
"""Windows at which a server's own losses count as much as the fleet's."""


@dataclass(frozen=True)
class Auto:
    name: str = "auto"
    members: tuple[str, ...] = tuple(PRIOR)
    earlier_windows: int = 3

    def weigh(self, trials: Sequence[Trial]) -> Array:
        losses = np.array([_losses(trial) for trial in trials])  # (members, W, servers)
        prior = np.array([PRIOR[member] for member in self.members])
        forecasts = losses.shape[1] + 1
        there = np.array([np.isfinite(trial.raw).all(axis=(2, 3)) for trial in trials])  # (members, 1 + W, servers)
        weights = [_weights(losses[:, w:], prior) for w in range(forecasts)]
        usable = np.where(there.transpose(1, 0, 2), np.array(weights), 0.0)
        total = usable.sum(axis=1, keepdims=True)
        return np.where(total > 0, usable / np.where(total > 0, total, 1.0), 1 / len(self.members))

    def combine(self, trials: Sequence[Trial]) -> Combined:
        weights = self.weigh(trials)
        there = np.array([np.isfinite(trial.raw).all(axis=(2, 3)) for trial in trials])
        raw = np.zeros_like(trials[0].raw)
        for m, trial in enumerate(trials):
            share = weights[:, m, :, None, None]
            raw += np.where(share > 0, share * np.sort(trial.raw, axis=-1), 0.0)
        raw[~there.any(axis=0)] = np.nan
        return Combined(replace(trials[0], raw=raw), weights[0])


FORECASTER = Auto()


def _losses(trial: Trial) -> Array:
    """Mean pinball loss of each window and server: (W, servers), NaN where there was nothing to score."""
    base = np.sort(trial.raw[1:], axis=-1)[..., [trial.levels.index(level) for level in BASE]]
    error = trial.actual[..., None] - base
    levels = np.array(BASE)
    loss = np.maximum(levels * error, (levels - 1) * error).mean(axis=-1)
    known = np.isfinite(loss)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, loss, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _weights(losses: Array, prior: Array) -> Array:
    """From the losses of the windows that may be used (members, windows, servers): (members, servers)."""
    servers = losses.shape[2]
    known = np.isfinite(losses).all(axis=0)
    windows = known.sum(axis=0)
    even = np.repeat(prior[:, None] / prior.sum(), servers, axis=1)
    if not known.any():
        return even
    total = np.where(known, losses, 0.0).sum(axis=1) / np.maximum(windows, 1)
    size = total.mean(axis=0)
    relative = np.where(size > 0, total / np.where(size > 0, size, 1.0), 1.0)
    seen = windows > 0
    fleet = np.log(np.maximum(relative[:, seen].mean(axis=1), 1e-6))
    own = np.log(np.maximum(relative, 0.02))
    trust = windows / (windows + OWN)
    score = trust * own + (1 - trust) * fleet[:, None]
    share = prior[:, None] * np.exp(-POWER * (score - score.min(axis=0)))
    return np.asarray(share / share.sum(axis=0))

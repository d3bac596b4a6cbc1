"""The ensemble: the mean of several models' quantiles, each counting by how it did in earlier windows.

It holds the weights. It leaves out the fits (its members'), and calibration, which comes after (evaluation).

    weight of model m for server i  ∝  prior_m · (loss_im / best loss_i) ^ -POWER

The loss is the mean pinball loss over 0.1, 0.5 and 0.9 in all windows older than the forecast's own, the
server's own shrunk to the fleet's on the scale of logarithms: with one window a server's figure is mostly chance.
Quantiles are averaged level by level (Vincent averaging; Lichtendahl et al. 2013), which keeps the shape of its
members where averaging distributions would widen it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.domain.evaluation import Trial
from app.domain.panel import Array
from app.domain.quantiles import BASE
from app.forecasters._contract import Combined

PRIOR = {"gradient_boosting": 1.5, "structural": 4.0, "statistical": 0.7, "seasonal_naive": 1.0}
"""What a member counts before any window has spoken. They are fitted in this order: the one whose pieces are the whole
fleet begins, and small ones end, so that no process waits long for the last."""

SLOW, FEW = "statistical", 250
"""A member that is fitted server by server, and the largest fleet that is worth the wait for it."""

POWER = 12.0
"""How sharply the better is preferred: a tenth more loss, a third of the weight."""

OWN = 3.0
"""Windows at which a server's own losses count as much as the fleet's."""

LOUD = 3.0
"""Whose losses are worth so many fleets of ordinary servers says nothing of the fleet's."""


@dataclass(frozen=True)
class Auto:
    name: str = "auto"
    earlier_windows: int = 3

    def members(self, servers: int) -> tuple[str, ...]:
        return tuple(member for member in PRIOR if member != SLOW or servers <= FEW)

    def weigh(self, trials: Mapping[str, Trial]) -> Array:
        return _weighed(trials, [_possible(trial) for trial in trials.values()])

    def combine(self, trials: Mapping[str, Trial]) -> Combined:
        made = [_possible(trial) for trial in trials.values()]
        weights = _weighed(trials, made)

        def rehearse(w: int) -> Array:
            return _mixed(made, np.broadcast_to(weights[w], weights.shape))

        return Combined(replace(next(iter(trials.values())), raw=_mixed(made, weights), rehearse=rehearse), weights[0])


def _mixed(made: Sequence[Array], weights: Array) -> Array:
    """Weighted mean of the members' quantiles (1 + W, servers, horizon, levels); weights (1 + W, members, servers).

    A member that gave nothing for a server and window leaves its share to the others; NaN where none did.
    """
    total, raw = np.zeros(weights[:, 0].shape), np.zeros_like(made[0])
    for m, forecast in enumerate(made):
        share = np.where(np.isfinite(forecast).all(axis=(2, 3)), weights[:, m], 0.0)
        total += share
        raw += np.where(share[..., None, None] > 0, share[..., None, None] * forecast, 0.0)
    some = total > 0
    raw /= np.where(some, total, 1.0)[..., None, None]
    raw[~some] = np.nan
    return raw


FORECASTER = Auto()


def _weighed(trials: Mapping[str, Trial], made: Sequence[Array]) -> Array:
    losses = np.array([_losses(*one) for one in zip(trials.values(), made, strict=True)])  # (members, W, servers)
    prior = np.array([PRIOR[member] for member in trials])
    return np.array([_weights(losses[:, w:], prior) for w in range(losses.shape[1] + 1)])


def _possible(trial: Trial) -> Array:
    """A member's quantiles as they would be shown: ascending, within the bounds."""
    return np.clip(np.sort(trial.raw, axis=-1), trial.lower[..., None, None], trial.upper[..., None, None])


def _losses(trial: Trial, made: Array) -> Array:
    """Mean pinball loss of each window and server: (W, servers), NaN where there was nothing to score."""
    base = made[1:, ..., [trial.levels.index(level) for level in BASE]]
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
    own = np.log(np.maximum(relative, 0.02))
    heard = (windows > 0) & ~_drowning(size)
    fleet = np.log(np.maximum(total[:, heard].sum(axis=1) / max(size[heard].sum(), 1e-12), 0.02))
    trust = windows / (windows + OWN)
    score = trust * own + (1 - trust) * fleet[:, None]
    share = prior[:, None] * np.exp(-POWER * (score - score.min(axis=0)))
    return np.asarray(share / share.sum(axis=0))


def _drowning(size: Array) -> NDArray[np.bool_]:
    """Which losses weigh `LOUD` times what the whole fleet's would, were all of it as its median server: (servers,).

    One server that jumps by factors would else say for all of them which member is to be trusted.
    """
    lost = size[size > 0]
    return size > LOUD * len(lost) * np.median(lost) if len(lost) else np.zeros(size.shape, dtype=np.bool_)

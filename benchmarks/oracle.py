"""How far the models are from what could be known of the reference fleet: an oracle beside them, on the same days.

    python -m benchmarks.oracle [--servers 120] [--seeds 42,7,11] [--models auto,structural]

The oracle knows every part that a server's values were made of (domain/fleet), the noise of the last day and the laws
of the noise and of shifts, but no shift after the origin: nobody could. Its quantiles are those of simulated paths.
Models see the history of `cpu_p95` and are back-tested, weighed and calibrated on it, as in benchmarks/accuracy. The
mean of the last four equal weekdays tells how hard the fleet is: figures mean something while its sMAPE is 9 to 11.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from app.domain import fleet
from app.domain.fleet import Fleet, Parts
from app.domain.panel import Array, Panel
from app.domain.quantiles import BASE
from benchmarks.accuracy import defined, line, score, scored
from benchmarks.cases import FLEET_HORIZON as HORIZON
from benchmarks.cases import FLEET_METRIC as METRIC
from benchmarks.cases import split

PATHS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=fleet.SERVERS)
    parser.add_argument("--seeds", default="42,7,11", help="comma-separated; each is a fleet of its own")
    parser.add_argument("--models", default="auto,structural,statistical,gradient_boosting", help="comma-separated")
    parser.add_argument("--windows", type=int, default=1, help="back-test windows beside the reported one")
    options = parser.parse_args()
    print(f"{'seed':<12} {'model':<18} {'WQL':>7} {'sMAPE':>7} {'MASE':>7} {'cover':>7} {'CPU s':>7}")
    for seed in map(int, options.seeds.split(",")):
        made = fleet.make(options.servers, fleet.START, fleet.END, seed)
        past, truth = split(made)
        for name, base in references(made, past):
            scores = score(base, past, truth)
            assert scores is not None
            print(
                f"{seed:<12} " + line(name, defined(scores.wql), scores.smape, defined(scores.mase), scores.coverage, 0)
            )
        for name, scores, seconds in scored(past, truth, HORIZON, options.models.split(","), options.windows):
            figures = defined(scores.wql), scores.smape, defined(scores.mase), scores.coverage, seconds
            print(f"{seed:<12} " + line(name, *figures), flush=True)


def references(made: Fleet, past: Panel) -> Iterator[tuple[str, Array]]:
    """The oracle and the four-week weekday mean, p10, p50 and p90 of each: (servers, HORIZON, 3)."""
    yield "oracle", oracle(made, past.steps)
    weeks = past.values[:, -28:].reshape(len(past), 4, 7)
    mean = np.nanmean(weeks, axis=1)[:, np.arange(HORIZON) % 7]
    yield "four weeks' mean", np.repeat(mean[..., None], len(BASE), axis=2)


def oracle(made: Fleet, days: int) -> Array:
    """Quantiles of what may come after so many days, from simulated noise and shifts: (servers, HORIZON, 3)."""
    known = fleet.as_known(fleet.parts(made, METRIC), days)
    random = np.random.default_rng(made.seed)
    values = np.array([_path(known, days, random) for _ in range(PATHS)])
    return np.moveaxis(np.quantile(values, BASE, axis=0), 0, -1)


def _path(known: Parts, days: int, random: np.random.Generator) -> Array:
    """One future of each server: (servers, HORIZON)."""
    shape = len(known.level), HORIZON
    ahead = slice(days, days + HORIZON)
    jumps = random.random(shape) < fleet.SHIFTS_PER_YEAR / 365
    size = np.clip(random.normal(0, fleet.SHIFT_SIZE, shape), -0.3, 0.3)
    base = known.level + known.trend[:, ahead] + known.shifts[:, ahead]
    base = base + known.level * np.cumsum(jumps * size, axis=1)
    effects = 1 + known.weekday[:, ahead] + known.year[:, ahead] + known.events[:, ahead]
    mean = np.clip(np.maximum(base, 0.2 * known.level) * effects, 0, 100)

    burst = np.where(random.random(shape) < fleet.BURST_RATE, fleet.BURST_SIZE, 1.0)
    shocks = random.standard_normal(shape) * burst / np.sqrt(1 + fleet.BURST_RATE * (fleet.BURST_SIZE**2 - 1))
    shocks *= (known.noise_scale * np.sqrt(1 - known.persistence**2))[:, None]
    noise = np.empty(shape)
    before = known.noise[:, days - 1]
    for step in range(HORIZON):
        before = noise[:, step] = known.persistence * before + shocks[:, step]
    return np.clip(mean * (1 + noise), 0, 100)


if __name__ == "__main__":
    main()

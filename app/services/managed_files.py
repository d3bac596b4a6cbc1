"""What a managed run does in child processes: write the files that go to S3, and read those that come back, from S3 or
by the hand of a person."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.canvas import requests
from app.canvas.outcome import Expected, Values, read_by_hand, read_outputs
from app.canvas.staging import write_inputs
from app.domain.panel import MIN_VALUES, Frequency, Panel
from app.errors import Invalid
from app.services.fitting import SERVERS_AT_ONCE, Source


@dataclass(frozen=True)
class Staged:
    """Files of one purpose, in the order written. `frequency` and `regressors` are what a request says of them."""

    files: tuple[Path, ...]
    rows: int
    megabytes: float
    frequency: Frequency
    regressors: tuple[str, ...]


def stage_inputs(
    source: Source, servers: tuple[str, ...], horizon: int, cut: int, folder: Path, outlier_z: float
) -> Staged:
    """The history as it stood `cut` steps ago, as Canvas takes it."""
    first = source.panel(servers[:1])
    inputs = write_inputs(_panels(source, servers), horizon, cut, folder, outlier_z=outlier_z)
    return Staged(
        inputs.files, inputs.rows, inputs.bytes / 1e6, first.frequency, requests.regressors(tuple(first.known))
    )


def collect(
    outputs: Path,
    source: Source,
    servers: tuple[str, ...],
    cut: int,
    horizon: int,
    levels: tuple[float, ...],
    out: Path,
) -> int:
    """Read what came back into one file as the judge reads them, NaN for servers that were not sent.

    How many cells had crossed. Raises BadModelOutput.
    """
    expected = _expected(source, servers, cut, horizon, levels)
    found = read_outputs(sorted(outputs.glob("*.out")), expected)
    _keep(found.values, expected, servers, out)
    return found.crossed


def collect_by_hand(
    file: Path,
    source: Source,
    servers: tuple[str, ...],
    cut: int,
    horizon: int,
    levels: tuple[float, ...],
    out: Path,
) -> int:
    """The same of a file that a person exported. Raises Invalid (`bad-model-output`)."""
    expected = _expected(source, servers, cut, horizon, levels)
    if not expected.servers:
        raise Invalid(f"No server had {MIN_VALUES} values {cut} steps ago.", slug="bad-model-output")
    found = read_by_hand(file, expected)
    _keep(found.values, expected, servers, out)
    return found.crossed


def _expected(source: Source, servers: tuple[str, ...], cut: int, horizon: int, levels: tuple[float, ...]) -> Expected:
    """What Canvas must answer of the history as it stood `cut` steps ago: of the servers that had enough of it."""
    sent: list[str] = []
    starts, frequency = [], source.panel(servers[:1]).frequency
    for panel in _panels(source, servers):
        past = panel.before(cut)
        enough = np.flatnonzero(past.counts() >= MIN_VALUES)
        sent += [past.servers[row] for row in enough]
        starts.append(past.as_of[enough] + frequency.step)
    return Expected(tuple(sent), np.concatenate(starts), frequency, horizon, levels)


def _keep(values: Values, expected: Expected, servers: tuple[str, ...], out: Path) -> None:
    whole = np.full((len(servers), *values.shape[1:]), np.nan, np.float32)
    place = {server: row for row, server in enumerate(servers)}
    whole[[place[server] for server in expected.servers]] = values
    with out.open("wb") as file:
        np.save(file, whole, allow_pickle=False)


def _panels(source: Source, servers: tuple[str, ...]) -> Iterator[Panel]:
    """Some servers at a time."""
    for start in range(0, len(servers), SERVERS_AT_ONCE):
        yield source.panel(servers[start : start + SERVERS_AT_ONCE])

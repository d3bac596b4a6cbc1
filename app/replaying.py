"""`headroom replay`: a file's past forecast again, scored, and told as tables or as JSON. No service, no database.

It leaves out what is computed (services/replay) and how it is scored (domain/replay).
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from app.compute import ChildDied, Processes, TooSlow
from app.domain.dataset import Schema
from app.domain.replay import Report, report
from app.errors import Invalid
from app.services.replay import Question, Replayed, month_ends, read, replay
from app.settings import Settings
from app.wiring import replay_means


@dataclass(frozen=True)
class Asked:
    """The command as it was given. `origins` are days; without them the last so many ends of a month."""

    metric: str
    thresholds: Sequence[float]
    origins: Sequence[date]
    last: int
    horizon: int
    model: str
    untrue: str | None

    def marks(self) -> tuple[str, float] | None:
        """`imputed_hours=24` → ("imputed_hours", 24.0). Raises Invalid for another form."""
        if self.untrue is None:
            return None
        column, _, value = self.untrue.partition("=")
        try:
            return column, float(value)
        except ValueError:
            raise Invalid(f"--untrue is {self.untrue!r}; it is a column and a number: imputed_hours=24.") from None


def run(settings: Settings, file: Path, asked: Asked, out: Path | None, *, as_json: bool) -> None:
    """Replay, tell, and write `replay.json` and `cases.parquet` to the folder `out`. Raises Invalid."""
    if not file.is_file():
        raise Invalid(f"{file} cannot be read: no such file.")
    replayed = asyncio.run(_replayed(settings, file.resolve(), asked, quiet=as_json))
    scored = report(replayed.cases)
    told = _told(asked, scored, replayed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(told, indent=2))
        pq.write_table(_rows(replayed), out / "cases.parquet")
    if as_json:
        print(json.dumps(told))
    else:
        _show(told)


async def _replayed(settings: Settings, file: Path, asked: Asked, *, quiet: bool) -> Replayed:
    console = Console(stderr=True, soft_wrap=True)
    means = replay_means(settings)
    with tempfile.TemporaryDirectory(prefix="headroom-replay-") as name:
        folder = Path(name)
        compute = Processes(settings.compute_processes, settings.compute_memory_mb, folder / "scratch")
        try:
            history, contents = await read(file, folder, Schema(), compute, means)
            question = Question(
                metric=asked.metric,
                thresholds=tuple(asked.thresholds),
                origins=tuple(sorted(np.datetime64(day, "D") for day in asked.origins))
                or month_ends(contents, asked.last, asked.horizon),
                horizon=asked.horizon,
                model=asked.model,
                untrue=asked.marks(),
            )
            return await replay(
                history, contents, question, folder, compute, means, (lambda line: None) if quiet else console.print
            )
        except (ChildDied, TooSlow) as died:
            raise Invalid(f"The replay broke off: {died}.") from died
        finally:
            compute.close()


def _told(asked: Asked, scored: Report, replayed: Replayed) -> dict[str, Any]:
    brier = asdict(scored.brier)
    sized = replayed.downsized
    return {
        "metric": asked.metric,
        "model": asked.model,
        "horizon": asked.horizon,
        "thresholds": list(asked.thresholds),
        "origins": [str(origin.astype("datetime64[D]")) for origin in np.unique(replayed.cases.origin)],
        **asdict(scored),
        "brier_ratio": {name: brier["headroom"] / brier[name] for name in brier if name != "headroom" and brier[name]},
        "downsizes": {**asdict(sized), "share": sized.share, "most": sized.most},
    }


def _rows(replayed: Replayed) -> pa.Table:
    cases = replayed.cases
    return pa.table({name: pa.array(getattr(cases, name)) for name in cases.__dataclass_fields__})


def _show(told: dict[str, Any]) -> None:
    console = Console(file=sys.stdout)
    rates = ", ".join(f"{rate:.1%} at {threshold}" for threshold, rate in told["base_rates"].items())
    console.print(
        f"{told['metric']}, {told['model']}, {told['horizon']} steps ahead of {len(told['origins'])} origins: "
        f"{told['cases']} cases, of which breached {rates}.",
        highlight=False,
    )
    for bins, heading in (
        ("reliability", "Reliability: of the servers told so much, how many breached"),
        ("reliability_tenths", "The same in tenths"),
    ):
        table = Table(title=heading)
        for column in ("told", "cases", "mean told", "breached"):
            table.add_column(column, justify="right")
        for row in told[bins]:
            span = f"{row['start']:.0%} – {row['stop']:.0%}"
            table.add_row(span, str(row["cases"]), f"{row['told']:.3f}", f"{row['happened']:.3f}")
        console.print(table)

    table = Table(title="Brier score (0 is perfect)")
    for heading in ("", "score", "Headroom's is"):
        table.add_column(heading, justify="right" if heading != "" else "left")
    for name, score in told["brier"].items():
        ratio = told["brier_ratio"].get(name)
        table.add_row(name.replace("_", " "), f"{score:.4f}", "" if ratio is None else f"{ratio:.2f} ×")
    console.print(table)

    table = Table(title="Alarms")
    for heading in ("", "alarms", "true", "false per 100 servers", "breaches missed", "median lead, days"):
        table.add_column(heading, justify="right" if heading != "" else "left")
    for name, alarm in told["alarms"].items():
        missed, lead = alarm["missed"], alarm["lead_days"]
        table.add_row(
            name,
            str(alarm["alarms"]),
            str(alarm["true"]),
            f"{alarm['false_per_100']:.1f}",
            "–" if missed is None else f"{missed:.0%}",
            "–" if lead is None else f"{lead:g}",
        )
    console.print(table)
    for name, passage in told["first_passage"].items():
        if passage["told"]:
            console.print(
                f"first_breach.{name}: told of {passage['told']} cases, breached by then {passage['happened']:.1%}.",
                highlight=False,
            )
    sized = told["downsizes"]
    share = "none recommended" if sized["share"] is None else f"{sized['share']:.1%} of at most {sized['most']:.1%}"
    console.print(
        f"Downsizes with ε = {sized['epsilon']:g}: {sized['recommended']}, would have breached {sized['breached']} "
        f"({share}).",
        highlight=False,
    )

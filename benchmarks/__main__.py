"""Headroom and what could be installed instead, side by side in one run: accuracy, coverage, and what they cost.

    make bench [DATA=folder] [ARGS="--quick"]            python -m benchmarks …

Cases are panels of a folder (`--data`; without it, none) and the reference fleet; docs/benchmarks.md says what is
measured and how. Then what a fleet takes end to end through a running service at growing size, and what
keeping results takes against a bare COPY. `bench/` gets results.json, table.md, plot.html and plot.svg, renewed after
every measurement. Minutes with `--quick`; the whole takes about two hours on two processors.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from app import forecasters
from app.domain import fleet
from app.domain.fleet import Fleet
from app.domain.panel import Array, Panel
from app.forecasters._apart import AUTOGLUON
from benchmarks import report, scale, stored
from benchmarks.accuracy import defined, score
from benchmarks.cases import CASES, FLEET_HORIZON, origins, split
from benchmarks.contenders import Contender, headrooms, held_against, installed_instead
from benchmarks.pool import pool
from benchmarks.report import Measured

FLEET = "reference fleet"
PARTS = (*CASES, FLEET, "speed", "scale", "stored")
DEVELOPMENT_PANELS = Path(__file__).parents[2] / "shared" / "data"
OUT = Path("bench")

NARROW = {
    "regions-months": ("auto", "structural", "seasonal_naive", "Prophet+"),
    "speed": ("auto", "Prophet+"),
}
"""Who takes part in cases that repeat others, at other origins or in another size."""
SLOW = ("autogluon", "prophet", "random_forest", "AutoGluon", "random forest", "AutoETS")

SPEED_SERVERS = 1_000
LIBRARIES = ("prophet", "statsforecast", "scikit-learn", "lightgbm", "numpy")


@dataclass
class Bench:
    """All that was measured so far, and the files that show it."""

    out: Path
    about: dict[str, str]
    rows: list[Measured] = field(default_factory=list)
    costs: list[scale.Cost] = field(default_factory=list)
    kept: tuple[float, float] | None = None
    failed: list[str] = field(default_factory=list)

    def show(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        record = {
            "about": self.about,
            "measured": [asdict(row) for row in self.rows],
            "scale": [asdict(cost) for cost in self.costs],
            "stored": self.kept,
            "failed": self.failed,
        }
        (self.out / "results.json").write_text(json.dumps(record, indent=1))
        (self.out / "table.md").write_text(self.table())
        if self.rows:
            found = report.summary(self.rows)
            report.page(found, self.out / "plot.html")
            (self.out / "plot.svg").write_text(report.picture(found, self.about["date"]))

    def table(self) -> str:
        parts = ["\n".join(f"- {name}: {value}" for name, value in self.about.items())]
        if self.rows:
            found = report.summary(self.rows)
            parts += [report.markdown(found), "### Ratios", report.targets(found)]
        if self.costs:
            parts += ["### End to end, `auto` through a running service", scale.table(self.costs)]
        if self.kept:
            ours, bare = self.kept
            parts += [
                f"Results kept: {ours:.2f} s, a bare COPY of the same arrays {bare:.2f} s: {ours / bare:.2f} times."
            ]
        parts += [f"**Failed:** {one}" for one in self.failed]
        return "\n\n".join(parts) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--data", type=Path, help="folder of panels; without it, the reference fleet alone")
    arguments.add_argument("--part", action="append", choices=PARTS, help="some parts of it; all when not given")
    arguments.add_argument("--only", help="some contenders, comma-separated by name")
    arguments.add_argument("--quick", action="store_true", help="one origin each, small fleets, no slow contenders")
    arguments.add_argument("--out", type=Path, default=OUT)
    asked = arguments.parse_args()
    data = asked.data or (DEVELOPMENT_PANELS if DEVELOPMENT_PANELS.is_dir() else None)
    parts = asked.part or [part for part in PARTS if not (asked.quick and part in ("regions-months", "speed"))]
    only = asked.only.split(",") if asked.only else None
    bench = Bench(asked.out, about(asked.quick))
    for line in bench.about.items():
        print(": ".join(line))
    if "autogluon" not in forecasters.names():
        print("AutoGluon is skipped: it is not installed here (make autogluon)")
    for case, origin, past, truth, horizon, contenders in cases(parts, data, asked.quick):
        for contender in contenders:
            if only is None or contender.name in only:
                try:
                    bench.rows.append(measure(case, origin, past, truth, horizon, contender))
                except Exception as error:  # the others are still to be measured; the exit code tells of it
                    bench.failed.append(f"{contender.name} on {case} at {origin}: {error!r}")
                    print(bench.failed[-1], flush=True)
                    continue
                print(_line(bench.rows[-1]), flush=True)
                bench.show()
    if "scale" in parts:
        for servers in (100,) if asked.quick else (100, 1_000, 10_000):
            bench.costs.append(scale.measure(servers)[0])
            print(scale.table(bench.costs[-1:]), flush=True)
            bench.show()
    if "stored" in parts:
        bench.kept = stored.measure(1_000 if asked.quick else 10_000, 5)
    bench.about["load at the end"] = _load()
    bench.show()
    print(f"\n{bench.table()}\nWritten to {bench.out}/")
    raise SystemExit(1 if bench.failed else 0)


def about(quick: bool) -> dict[str, str]:
    """What a reader needs to judge the figures: when, on what, with which versions."""
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    if "autogluon" in forecasters.names():
        asked = "import importlib.metadata as m; print(m.version('autogluon.timeseries'))"
        done = subprocess.run([AUTOGLUON, "-I", "-c", asked], capture_output=True, text=True, check=True)
        versions.append(f"AutoGluon {done.stdout.strip()}")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC") + (" (quick)" if quick else ""),
        "machine": f"{_processor()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "load at the start": _load(),
    }


Task = tuple[str, str, Panel, Array, int, Sequence[Contender]]


def cases(parts: Sequence[str], data: Path | None, quick: bool) -> Iterator[Task]:
    """Case, origin, history, truth, horizon, and who takes part."""
    everyone = [*headrooms(), *installed_instead()]
    for name in parts:
        if name in CASES:
            case = CASES[name]
            if data is None or not (data / case.file).exists():
                print(f"{name} is skipped: there is no {case.file}" + (f" in {data}" if data else ""))
                continue
            last = 1 if quick else len(case.origins)
            for origin, past, truth in list(origins(case, data))[:last]:
                yield name, origin, past, truth, case.horizon, _part_of(everyone, name, quick)
        elif name in (FLEET, "speed"):
            made = _fleet(60 if quick else SPEED_SERVERS if name == "speed" else fleet.SERVERS)
            past, truth = split(made)
            found = _part_of(everyone, name, quick)
            references = held_against(made, past) if name == FLEET else []
            yield name, str(past.as_of[0])[:10], past, truth, FLEET_HORIZON, [*found, *references]


def _part_of(everyone: list[Contender], case: str, quick: bool) -> list[Contender]:
    """Who of them takes part in a case."""
    if case in NARROW:
        return [one for one in everyone if one.name in NARROW[case]]
    return [one for one in everyone if not (quick and one.name in SLOW)]


def _fleet(servers: int) -> Fleet:
    return fleet.make(servers, fleet.START, fleet.END, fleet.SEED)


def measure(case: str, origin: str, past: Panel, truth: Array, horizon: int, contender: Contender) -> Measured:
    with pool(contender.imports) as processes:
        values = contender.forecast(processes, past, horizon)
        wall, cpu = processes.wall, processes.cpu
    scores = score(values, past, truth)
    assert scores is not None, f"nothing of {case} at {origin} can be scored"
    nothing = float("nan") if not cpu else None  # a reference is given, not made
    return Measured(
        case=case,
        origin=origin,
        contender=contender.name,
        kind=contender.kind,
        servers=len(past),
        wql=defined(scores.wql),
        smape=scores.smape,
        mase=defined(scores.mase),
        coverage=scores.coverage,
        cpu=nothing or cpu,
        wall=nothing or wall,
        memory=nothing or processes.memory,
    )


def _line(row: Measured) -> str:
    return (
        f"{row.case:<16} {row.origin:<11} {row.contender:<18} WQL {row.wql:.4f}  sMAPE {row.smape:6.2f}  "
        f"coverage {row.coverage:.3f}  CPU {row.cpu:7.1f} s  wall {row.wall:7.1f} s"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()

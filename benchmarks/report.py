"""Measurements as people read them: Markdown tables, a page of plots, and one picture for the README."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px

from benchmarks.processes import MB

COLOURS = {"Headroom": "#2563eb", "peer": "#9ca3af", "reference": "#d97706"}


_LONGEST = 6
"""Bars end at so many times the best of their case."""

_ABSURD = 1_000
"""A WQL from here on needs no digits."""


@dataclass(frozen=True)
class Measured:
    """One contender at one origin. Seconds and bytes; NaN where the figure has none."""

    case: str
    origin: str
    contender: str
    kind: str
    servers: int
    wql: float
    smape: float
    mase: float
    coverage: float
    cpu: float
    wall: float
    memory: float
    """0 where the contender was gone before it could be seen."""


def summary(rows: Sequence[Measured]) -> pd.DataFrame:
    """The mean over the origins of each case and contender, the best WQL of a case first."""
    table = pd.DataFrame([asdict(row) for row in rows])
    keys = ["case", "contender", "kind"]
    means = table.groupby(keys, sort=False).mean(numeric_only=True)
    means["origins"] = table.groupby(keys, sort=False).size()
    means["memory"] = table.groupby(keys, sort=False)["memory"].max()
    means["per_second"] = means["servers"] / means["wall"]
    order = {case: place for place, case in enumerate(table["case"].unique())}
    found = means.reset_index().sort_values("wql")
    return found.sort_values("case", key=lambda column: column.map(order), kind="stable")


def markdown(found: pd.DataFrame) -> str:
    parts = []
    for case, rows in found.groupby("case", sort=False):
        origins = int(rows["origins"].max())
        head = f"### {case}\n\n{int(rows['servers'].iloc[0])} servers, {origins} origin{'s' if origins > 1 else ''}.\n"
        lines = [
            "| | | WQL | sMAPE | MASE | coverage | CPU, s | wall, s | memory, MB | servers/s |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows.itertuples():
            name = f"**`{row.contender}`**" if row.kind == "Headroom" else row.contender
            lines.append(
                f"| {name} | {row.kind} | {_wql(row.wql)} | {_figure(row.smape, '.2f')} "
                f"| {_figure(row.mase, '.3f')} | {_figure(row.coverage, '.3f')} | {_figure(row.cpu, '.1f')} "
                f"| {_figure(row.wall, '.1f')} | {_figure(row.memory / MB or np.nan, ',.0f')} "
                f"| {_figure(row.per_second, '.1f')} |"
            )
        parts.append(head + "\n" + "\n".join(lines))
    return "\n\n".join(parts)


def page(found: pd.DataFrame, file: Path) -> None:
    """WQL against CPU per server, a panel per case; a page that needs nothing from elsewhere."""
    shown = found[found["wall"] > 0].assign(cpu_per_server=lambda table: table["cpu"] / table["servers"])
    figure = px.scatter(
        shown,
        x="cpu_per_server",
        y="wql",
        color="kind",
        facet_col="case",
        facet_col_wrap=2,
        text="contender",
        log_x=True,
        color_discrete_map=COLOURS,
        labels={"cpu_per_server": "CPU seconds per server", "wql": "WQL (lower is better)"},
        height=420 * -(-shown["case"].nunique() // 2),
    )
    figure.update_traces(textposition="top center")
    figure.update_yaxes(matches=None, showticklabels=True)
    figure.write_html(file, include_plotlyjs=True)


def picture(found: pd.DataFrame, date: str) -> str:
    """WQL of every contender by case as an SVG of bars; lower is better."""
    width, label, row, bar = 760, 190, 20, 430
    body: list[str] = []
    at = 30
    for case, rows in found.groupby("case", sort=False):
        body.append(f'<text x="10" y="{at}" font-weight="bold">{escape(str(case))}</text>')
        at += 10
        most = min(rows["wql"].max(), _LONGEST * rows["wql"].min())  # one that explodes leaves the others to be seen
        for one in rows.itertuples():
            length = bar * min(one.wql / most, 1.0)
            body.append(
                f'<text x="{label}" y="{at + 14}" text-anchor="end">{escape(one.contender)}</text>'
                f'<rect x="{label + 8}" y="{at + 3}" width="{length:.1f}" height="14" fill="{COLOURS[one.kind]}"/>'
                f'<text x="{label + 14 + length:.1f}" y="{at + 14}" fill="#555">{_wql(one.wql)}</text>'
            )
            at += row
        at += 26
    kinds = " ".join(f'<tspan fill="{colour}">■</tspan> <tspan>{kind}</tspan>  ' for kind, colour in COLOURS.items())
    body.append(f'<text x="10" y="{at}">WQL, lower is better. {kinds} {escape(date)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {at + 14}" width="{width}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def targets(found: pd.DataFrame) -> str:
    """What a reader looks for first: ratios between rows of one case, and the goal where one was set."""
    lines = []
    for case, rows in found.groupby("case", sort=False):
        at = rows.set_index("contender")
        others = at[(at["kind"] == "Headroom") & (at.index != "auto")]
        at = pd.concat([at, others.nsmallest(1, "wql").rename(index=lambda _: BEST)])
        for one, other, figure in _RATIOS:
            if one in at.index and other in at.index:
                ratio, goal = at.loc[one, figure] / at.loc[other, figure], _GOALS.get((str(case), other, figure), "")
                lines.append(f"| {case} | {figure} of {one} / {other} | {ratio:.3f} | {goal} |")
    return "\n".join(["| case | ratio | is | goal |", "|---|---|---:|---|", *lines])


BEST = "the best other model of Headroom"
_RATIOS = (
    ("auto", BEST, "wql"),
    ("auto", "AutoGluon", "wql"),
    ("auto", "Prophet+", "wql"),
    ("auto", "seasonal_naive", "wql"),
    ("auto", "oracle", "wql"),
    ("auto", "oracle", "smape"),
    ("Prophet+", "auto", "wall"),
    ("Prophet+", "auto", "cpu"),
)
_GOALS = {
    ("regions", "AutoGluon", "wql"): "≤ 0.80",
    ("vms", BEST, "wql"): "≤ 1.02",
    ("vms", "seasonal_naive", "wql"): "< 1",
    ("ec2", BEST, "wql"): "≤ 1.02",
    ("ec2", "seasonal_naive", "wql"): "< 1",
    ("reference fleet", "oracle", "wql"): "≤ 1.10",
    ("reference fleet", "oracle", "smape"): "≤ 1.10",
    ("speed", "Prophet+", "wql"): "< 1",
    ("speed", "auto", "wall"): "≥ 12",
}
"""By case, the second of the ratio, and figure."""


def _wql(value: float) -> str:
    return _figure(value, ".4f" if value < _ABSURD else ".1e")


def _figure(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)

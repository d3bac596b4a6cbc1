"""How a page is made: templates that escape by default, numbers and times in words for people, errors as pages.

It holds no route and reads no data.
"""

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import ClientDisconnect

from app.api.problems import answer
from app.domain.dataset import Unit
from app.domain.panel import Frequency

LEVELS = {"very_high": "Very high", "high": "High", "normal": "Normal", "underutilized": "Under-used"}
CAUSES = {"end_of_quarter": "end of quarter", "holiday": "holiday", "weekday": "weekday"}
QUALITY = {
    "short_history": "short history",
    "gaps": "gaps",
    "constant": "constant",
    "stale": "stale",
    "level_shift": "level shifted",
}
ORDERS = {
    "runway": "Shortest runway",
    "breach_probability": "Breach probability",
    "max_p90": "Highest p90",
    "server_id": "Name",
}
NONE = "–"

CHART_STYLES = "'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
"""The style sheet of its maps that plotly.js (7.1) puts into any page. We draw no map: were this hash outdated, the
browser would say so on its console and charts would be the same. All else that plotly styles is in plotly.css."""

_CSP_WITH_CHARTS = (
    f"default-src 'self'; style-src 'self' {CHART_STYLES}; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


def page(template: str, *, status: int = 200, charts: bool = False, **shown: Any) -> HTMLResponse:
    """The answer of a route. `charts`: the page loads plotly.js, which wants one style of its own."""
    text = _environment.get_template(template).render(charts=charts, **{"caller": None, **shown})
    return HTMLResponse(text, status, {"Content-Security-Policy": _CSP_WITH_CHARTS} if charts else None)


class PageRoute(APIRoute):
    """A route whose errors are pages; who is not signed in gets the form to do so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                raise
            except Exception as error:
                said = answer(request, error)
                shown = page("problem.html", status=said.status_code, problem=json.loads(bytes(said.body)))
                for name in ("Retry-After", "WWW-Authenticate"):
                    if name in said.headers:
                        shown.headers[name] = said.headers[name]
                return shown

        return handled


def percent(share: float | None, digits: int = 0) -> str:
    """0.834 → `83 %`; what is nearly never or nearly sure is not called never or sure."""
    if share is None:
        return NONE
    if digits == 0 and 0 < share < 0.005:
        return "< 1 %"
    if digits == 0 and 0.995 < share < 1:
        return "> 99 %"
    return f"{100 * share:.{digits}f}\u202f%"


def signed(share: float) -> str:
    """0.31 → `+31 %`; what rounds to nothing has no sign."""
    shown = round(100 * share)
    return f"{shown:+d}\u202f%".replace("-", "\u2212") if shown else "0\u202f%"


def amount(value: float | None, unit: Unit | str) -> str:
    """A value of a metric, with its unit."""
    if value is None:
        return NONE
    if unit == Unit.PERCENT:
        return f"{value:.1f}\u202f%"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 1_000 else 0
    return f"{value:,.{digits}f}"


def limit(value: float | None, unit: Unit | str) -> str:
    """A threshold: a number that somebody chose, so as it was chosen."""
    if value is None:
        return NONE
    return f"{value:,g}\u202f%" if unit == Unit.PERCENT else f"{value:,g}"


def figure(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def days(count: float | None) -> str:
    """`12 days`; below two days in hours where the data are hourly."""
    if count is None:
        return NONE
    if count < 2 and count != int(count):
        return f"{count * 24:.0f}\u202fh"
    shown = f"{count:,.1f}".removesuffix(".0")
    return f"{shown}\u202fday" if shown == "1" else f"{shown}\u202fdays"


def moved_by(count: float) -> str:
    """Days that something came nearer, or went away: `−22 days`."""
    return ("+" if count > 0 else "\u2212") + days(abs(count))


def seconds(count: float | None) -> str:
    if count is None:
        return NONE
    if count < 60:
        return f"{count:.1f}\u202fs"
    return f"{count // 60:.0f}\u202fmin {count % 60:.0f}\u202fs"


def dollars(micro: int) -> str:
    return f"${micro / 1e6:,.2f}"


def moment(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%d %b %Y, %H:%M UTC").lstrip("0")


def day_of(as_of: np.datetime64, runway: float | None, frequency: Frequency) -> str:
    """The time that lies a runway after `as_of`."""
    if runway is None:
        return ""
    return for_people(as_of + np.timedelta64(round(runway * 86_400), "s"), frequency)


def for_people(time: np.datetime64 | None, frequency: Frequency) -> str:
    """`2023-01-01` or `2023-01-01 05:00`."""
    if time is None:
        return NONE
    if frequency is Frequency.DAILY:
        return str(time.astype("datetime64[D]"))
    return str(time.astype("datetime64[m]")).replace("T", " ")


def steps(count: int, frequency: Frequency) -> str:
    word = "day" if frequency is Frequency.DAILY else "hour"
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def counted(count: int, word: str) -> str:
    """`1 server`, `2 servers`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def path_part(text: str) -> str:
    """Any text as one part of a path, whatever characters it has."""
    return quote(text, safe="")


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "percent": percent,
    "signed": signed,
    "amount": amount,
    "figure": figure,
    "limit": limit,
    "days": days,
    "moved_by": moved_by,
    "seconds": seconds,
    "dollars": dollars,
    "moment": moment,
    "steps": steps,
    "counted": counted,
    "path_part": path_part,
    "pairs": lambda values: [(value, value) for value in values],
}
_environment.globals |= {
    "LEVELS": LEVELS,
    "CAUSES": CAUSES,
    "QUALITY": QUALITY,
    "ORDERS": ORDERS,
    "NONE": NONE,
    "DAILY": Frequency.DAILY,
    "day_of": day_of,
    "for_people": for_people,
}

"""What no request may hold, checked on every route alike: unknown and repeated query parameters, text that is none."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time
from typing import Annotated, Any

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from app.errors import Complaint, Invalid, NotFound, UnknownField

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Whether PostgreSQL can keep it, and an answer show it: no NUL, and no half of a character (a lone surrogate)."""
    return _NO_TEXT.search(text) is None


def check_text(text: str) -> str:
    """Raises ValueError for what is no text."""
    if not is_text(text):
        raise ValueError("must not hold a NUL character or half of a character (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(check_text)]
"""A string that PostgreSQL can keep."""


def _with_its_clock(written: Any) -> Any:
    """A midnight that is written out is a time; left to itself, pydantic makes it a date, and so all of that day."""
    if isinstance(written, str) and len(written) > len("2023-01-01"):
        with suppress(ValueError):
            return datetime.fromisoformat(written)
    return written


def _in_utc(moment: date | datetime) -> date | datetime:
    if not isinstance(moment, datetime):
        return moment
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999, in UTC") from None


Time = Annotated[date | datetime, BeforeValidator(_with_its_clock), AfterValidator(_in_utc)]
"""A date, or a time; it comes in UTC, which a naive one is taken for."""


def check_order(start: date | datetime | None, end: date | datetime | None) -> None:
    """Raises Invalid for a span of time that ends before it starts. A bare date as its end is all of that day."""
    if start is None or end is None or _instant(start, time.min) <= _instant(end, time.max):
        return
    complaints = [
        Complaint("?start", "range", "must not be after `end`"),
        Complaint("?end", "range", "must not be before `start`"),
    ]
    raise Invalid(f"`start` ({start.isoformat()}) is after `end` ({end.isoformat()}).", errors=complaints)


def _instant(moment: date | datetime, clock: time) -> datetime:
    return moment if isinstance(moment, datetime) else datetime.combine(moment, clock, UTC)


class Body(BaseModel):
    """A JSON body: no unknown fields, no NaN. Take numbers as `StrictInt`: else "7" and 7.0 would do for 7."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def declared_queries(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, bool]]:
    """The query parameters of each (method, path) of an OpenAPI document, and whether each may repeat."""
    return {
        (method.upper(), path): {
            parameter["name"]: _is_list(parameter["schema"])
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query"
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def _is_list(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "array" or any(map(_is_list, schema.get("anyOf", ())))


async def strictly(request: Request) -> None:
    """Raises UnknownField for a query parameter that the route does not declare, Invalid for one that is given twice
    and has one value (which of them would count?), and for a NUL in one."""
    if any("\0" in part for part in request.path_params.values() if isinstance(part, str)):
        raise NotFound("There is nothing at this path.")
    nul = [name for name, value in request.query_params.multi_items() if "\0" in value]
    if nul:
        complaints = [Complaint(f"?{name}", "nul", "must not hold a NUL character") for name in nul]
        raise Invalid("A query parameter holds a NUL character.", errors=complaints)
    declared = request.app.state.queries.get((request.method, request.scope["route"].path_format))
    if declared is None:  # a page, not part of the API
        return
    unknown = sorted(set(request.query_params) - set(declared))
    if unknown:
        takes = f"it takes {', '.join(sorted(declared))}" if declared else "it takes none"
        raise UnknownField(
            f"Unknown query parameter {', '.join(unknown)}; {takes}.",
            errors=[Complaint(f"?{name}", "unknown-field", "Unknown query parameter") for name in unknown],
        )
    given = Counter(name for name, _ in request.query_params.multi_items())
    repeated = sorted(name for name, times in given.items() if times > 1 and not declared[name])
    if repeated:
        lists = ", ".join(sorted(name for name, is_list in declared.items() if is_list))
        more = f" Here {lists} may repeat." if lists else ""
        raise Invalid(
            f"Query parameter {', '.join(repeated)} takes one value and is given more than once: leave one.{more}",
            errors=[Complaint(f"?{name}", "repeated", f"is given {given[name]} times") for name in repeated],
        )

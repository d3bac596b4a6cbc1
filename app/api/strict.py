"""What no request may hold, checked on every route alike: unknown query parameters, and NUL characters."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict

from app.errors import Complaint, Invalid, NotFound, UnknownField


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
"""A string that PostgreSQL can keep."""


class Body(BaseModel):
    """A JSON body: no unknown fields, no NaN. Take numbers as `StrictInt`: else "7" and 7.0 would do for 7."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def declared_queries(document: Mapping[str, Any]) -> dict[tuple[str, str], frozenset[str]]:
    """The query parameters of each (method, path) of an OpenAPI document."""
    return {
        (method.upper(), path): frozenset(
            parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def strictly(request: Request) -> None:
    """Raises UnknownField for a query parameter that the route does not declare, Invalid for a NUL in one."""
    if any("\0" in part for part in request.path_params.values() if isinstance(part, str)):
        raise NotFound("There is nothing at this path.")
    nul = [name for name, value in request.query_params.multi_items() if "\0" in value]
    if nul:
        complaints = [Complaint(f"?{name}", "nul", "must not hold a NUL character") for name in nul]
        raise Invalid("A query parameter holds a NUL character.", errors=complaints)
    declared = request.app.state.queries.get((request.method, request.scope["route"].path))
    if declared is None:  # a page, not part of the API
        return
    unknown = sorted(set(request.query_params) - declared)
    if unknown:
        takes = f"it takes {', '.join(sorted(declared))}" if declared else "it takes none"
        raise UnknownField(
            f"Unknown query parameter {', '.join(unknown)}; {takes}.",
            errors=[Complaint(f"?{name}", "unknown-field", "Unknown query parameter") for name in unknown],
        )

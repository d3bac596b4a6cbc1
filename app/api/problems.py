"""Errors as RFC 9457 `application/problem+json`; the only place that words them for HTTP.

An exception becomes a `HeadroomError` (`refined`), and that becomes an answer (`answer`). What nobody foresaw is a
500 that says nothing but its request id; the rest is in the log. A pointer is a JSON pointer into the body
(`/quantiles/0`), or `?name` for a query parameter, `:name` for a part of the path, `name:` for a header.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.errors import (
    BadRequest,
    Complaint,
    HeadroomError,
    Invalid,
    NotFound,
    Rejected,
    TooLarge,
    UnknownField,
    UnsupportedMediaType,
)
from app.logs import request_id
from app.storage import faults

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ProblemError(BaseModel):
    """One thing that was wrong, and where."""

    pointer: str = Field(
        description="JSON pointer into the body, or `?name` for a query parameter, `:name` for a part of the path.",
        examples=["/horizon"],
    )
    code: str = Field(description="What is wrong, for programs.", examples=["less_than_equal"])
    detail: str = Field(
        description="What is wrong, for people.", examples=["Input should be less than or equal to 2200"]
    )
    rows: list[int] = Field(
        default=[], description="First offending data rows of an upload; 1 is the row under the header."
    )


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(
        description="`urn:headroom:problem:<slug>`: the kind of problem, for programs.",
        examples=["urn:headroom:problem:validation"],
    )
    title: str = Field(description="The kind of problem, for people.", examples=["Invalid request"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(
        description="What was wrong this time, where, and what to do.", examples=["1 value is not valid: /horizon."]
    )
    instance: str = Field(description="Path of the request.", examples=["/forecasts"])
    help: str = Field(
        description="Where this kind of problem is explained.",
        examples=["http://127.0.0.1:8000/docs/problems#validation"],
    )
    request_id: str = Field(description="Names this request in the logs; also the header `X-Request-ID`.")
    errors: list[ProblemError] = Field(default=[], description="Each thing that was wrong.")


class MethodNotAllowed(Rejected):
    slug, title, status = "method-not-allowed", "The path has no such method", 405


def install(app: FastAPI) -> None:
    """Answer every error that reaches the framework as a problem."""

    async def answered(request: Request, error: Exception) -> Response:
        return answer(request, error)

    for kind in (HeadroomError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answered)


def answer(request: Request, error: Exception) -> Response:
    """The problem answer for any exception; logs those that are ours to mend."""
    found = refined(request, error)
    if found.status >= 500:
        known = found.slug != HeadroomError.slug
        log.log(
            logging.WARNING if known else logging.ERROR,
            "%s %s failed: %s",
            request.method,
            request.scope["path"],
            found.slug,
            exc_info=None if known else error,
        )
    body = {
        "type": f"urn:headroom:problem:{found.slug}",
        "title": found.title,
        "status": found.status,
        "detail": found.detail,
        "instance": request.scope["path"],
        "help": f"{_origin(request)}/docs/problems#{type(found).slug}",
        "request_id": request_id.get(),
        "errors": [
            {"pointer": e.pointer, "code": e.code, "detail": e.detail, "rows": list(e.rows)} for e in found.errors
        ],
    }
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if found.status == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    if found.retry_after is not None:
        headers["Retry-After"] = str(found.retry_after)
    if found.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="headroom"'
    # ASCII only: a lone surrogate in a field's name must not break the answer that complains of it.
    return Response(json.dumps(body), found.status, headers, MEDIA_TYPE)


def refined(request: Request, error: Exception) -> HeadroomError:
    """`error` as one of ours."""
    match error:
        case HeadroomError():
            return error
        case RequestValidationError():
            return _invalid(request, error.errors(), error.body)
        case HTTPException(status_code=404):
            return NotFound(f"There is nothing at {request.scope['path']}. /docs lists every path.")
        case HTTPException(status_code=405):
            return MethodNotAllowed(f"{request.scope['path']} has no {request.method}.")
        case HTTPException(status_code=413):
            return TooLarge(str(error.detail))
        case HTTPException() if error.status_code < 500:
            return BadRequest("The body cannot be read: it is not well-formed, or nested too deeply.")
    return faults.classify(error) or HeadroomError(
        f"Headroom failed at this, and it is not your request's fault. "
        f"The log tells more under the request id {request_id.get() or '(none)'}."
    )


_CODES = {"extra_forbidden": "unknown-field"}
"""pydantic's codes that have a name of our own."""


def _methods(request: Request) -> set[str]:
    """All that the path takes, of whatever routes: the framework names those of the first alone."""
    routes = [route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, APIRoute)]
    fitting = [route for route in routes if compile_path(str(route.path))[0].match(request.scope["path"])]
    methods = {method for route in fitting for method in route.methods or ()}
    return methods | ({"HEAD"} if "GET" in methods else set())


def _invalid(request: Request, failures: Sequence[Mapping[str, Any]], body: Any) -> HeadroomError:
    """pydantic's failures as one error: the most telling kind wins."""
    complaints = _complaints(failures, body)
    first = failures[0]
    if first["type"] == "json_invalid":
        return BadRequest(f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    if tuple(first["loc"]) == ("body",) and isinstance(first.get("input"), bytes):
        sent = request.headers.get("content-type", "nothing")
        return UnsupportedMediaType(f"The body must be sent as Content-Type: application/json, not {sent}.")
    if all(failure["loc"][0] == "path" for failure in failures):
        # What cannot be an id is an id of nothing.
        return NotFound(f"There is nothing at {request.scope['path']}.")
    unknown = [c.pointer for c in complaints if c.code == "unknown-field"]
    if unknown:
        return UnknownField(f"Unknown: {', '.join(unknown)}. /docs lists what this request takes.", errors=complaints)
    where = ", ".join(dict.fromkeys(complaint.pointer or "the body itself" for complaint in complaints))
    count = "1 value is" if len(complaints) == 1 else f"{len(complaints)} values are"
    return Invalid(f"{count} not valid: {where}.", errors=complaints)


def _complaints(failures: Sequence[Mapping[str, Any]], body: Any) -> list[Complaint]:
    """One per place: of a value that may be this or that, pydantic says why it is not this and why it is not that."""
    found: dict[str, Complaint] = {}
    for failure in failures:
        pointer = _pointer(failure["loc"], body)
        code = _CODES.get(failure["type"], failure["type"])
        found.setdefault(pointer, Complaint(pointer, code, failure["msg"].removeprefix("Value error, ")))
    return list(found.values())


def _pointer(location: Sequence[str | int], body: Any) -> str:
    place, *path = location
    match place:
        case "body":
            if body is not None:
                path = _within(body, path)
            return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
        case "query":
            return f"?{path[0]}" if len(path) < 3 else "?" + ".".join(map(str, path))
        case "path":
            return ":" + ".".join(map(str, path))
        case _:
            return ".".join(map(str, path)) + ":"


def _within(body: Any, path: Sequence[str | int]) -> list[str | int]:
    """The path as far as the body has it, and the field that it lacks; without the names of pydantic's own branches."""
    kept: list[str | int] = []
    for part in path:
        match body, part:
            case dict(), str() if part not in body and part in body.values():
                continue  # the tag by which pydantic chose a branch
            case dict(), str():
                body = body.get(part)
            case list(), int() if part < len(body):
                body = body[part]
            case _:
                break
        kept.append(part)
    return kept


def _origin(request: Request) -> str:
    """`http://host:port` as the caller knows us; empty (so `help` is relative) where the Host is not trusted."""
    return f"{request.url.scheme}://{request.url.netloc}" if getattr(request.state, "host_trusted", False) else ""


def kinds() -> Iterator[type[HeadroomError]]:
    """Every class of the error tree that may be an answer, one per slug."""
    seen = set()
    waiting: list[type[HeadroomError]] = [HeadroomError]
    while waiting:
        kind = waiting.pop(0)
        waiting.extend(kind.__subclasses__())
        if kind.slug not in seen and (kind.status != 500 or kind is HeadroomError):
            seen.add(kind.slug)
            yield kind


def problems(*kinds: type[HeadroomError]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the errors that it may answer with, for the OpenAPI document.

    401, 403, 422, 503 and 500 need no mention: every route that can answer them says so by itself.
    """
    declared: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = declared.setdefault(
            kind.status,
            {"description": kind.title, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
        if kind.title not in entry["description"]:
            entry["description"] += f"; {kind.title[0].lower()}{kind.title[1:]}"
        entry["content"][MEDIA_TYPE].setdefault("examples", {})[kind.slug] = {
            "summary": kind.title,
            "value": {
                "type": f"urn:headroom:problem:{kind.slug}",
                "title": kind.title,
                "status": kind.status,
                "detail": kind.title + ".",
                "instance": "/…",
                "help": f"http://127.0.0.1:8000/docs/problems#{kind.slug}",
                "request_id": "4f6c0f8d3d5b4a5f9d7f7d0a3a1b2c3d",
                "errors": [],
            },
        }
    return declared

"""The API's own reference: the OpenAPI document, its page, and a page that explains each problem; no outside asset."""

from html import escape
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts

from app.api.auth import OPEN, guards
from app.api.problems import Problem, kinds, problems
from app.domain.keys import Scope
from app.errors import (
    BadCursor,
    BadRequest,
    InsufficientScope,
    Invalid,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownField,
)

ASSETS = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI, as the wheel ships it."""

router = APIRouter(include_in_schema=False, dependencies=[OPEN])

_HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<link rel="icon" href="data:,">'
)


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(
        f"{_HEAD}<title>Headroom API</title>"
        '<link rel="stylesheet" href="/static/reference/swagger-ui.css"><div id="reference"></div>'
        '<script src="/static/reference/swagger-ui-bundle.js"></script><script src="/static/reference.js"></script>'
    )


@router.get("/docs/problems")
async def explained() -> HTMLResponse:
    entries = "".join(
        f'<dt id="{kind.slug}"><code>{kind.slug}</code> ({kind.status}): {escape(kind.title)}</dt>'
        f"<dd>{escape(ADVICE[kind.slug])}</dd>"
        for kind in sorted(kinds(), key=lambda kind: (kind.status, kind.slug))
    )
    return HTMLResponse(
        f"{_HEAD}<title>Headroom: problems</title><h1>Problems</h1>"
        "<p>Every error is <code>application/problem+json</code> (RFC 9457). Its <code>type</code> is "
        "<code>urn:headroom:problem:</code> and one of these, or a narrower one of the same status.</p>"
        f"<dl>{entries}</dl>"
    )


ADVICE = {
    "internal": "A fault of Headroom's own. Its log tells more under the request id.",
    "bad-request": "The request is not well-formed. Send it as /docs shows it.",
    "bad-cursor": "A cursor works only with the list and the filters that it came from. Start again without one.",
    "incomplete-body": "The body ended before its end. Send it again.",
    "idempotency-key-required": "Send an Idempotency-Key, so that a repeated request cannot be paid twice.",
    "unauthenticated": "Send a live key as Authorization: Bearer; headroom keys create makes one.",
    "budget-exceeded": "The estimate is over the cost cap or the monthly budget. Ask for less, or raise them.",
    "forbidden": "Not allowed here, whoever asks: the Host, the Origin or the place is not on the list.",
    "insufficient-scope": "The key is good but was not made for this. Use one with the scope named.",
    "not-found": "There is no such thing, or it has been deleted.",
    "method-not-allowed": "The Allow header names what this path takes.",
    "conflict": "The thing is in a state that does not permit this. Read it again.",
    "forecast-not-ready": "The runs asked for go on. Come back after Retry-After seconds, or follow its events.",
    "no-results": "The runs asked for ended without results. The forecast says why.",
    "idempotency-in-flight": "The same request is being answered. Send it again after Retry-After seconds.",
    "too-large": "Over a limit on size. Send less, or raise the limit in the settings.",
    "unsupported-media-type": "Send one of the content types that /docs names.",
    "validation": "Values are not valid; errors names each. Nothing was stored.",
    "unknown-field": "A field or parameter that does not exist. Nothing unknown is passed over in silence.",
    "idempotency-mismatch": "This Idempotency-Key belongs to another body. Use a fresh one for a new request.",
    "capacity-required": "A share means nothing without what it is a share of: give each server its `capacity`.",
    "threshold-required": "Only percent metrics have a usual threshold. Say which one is meant.",
    "webhook-address": "Alerts go to public addresses only, unless the setting HEADROOM_WEBHOOK_ALLOW names theirs.",
    "work-limit": "More work than one forecast may ask for. Split it by servers, models or horizon.",
    "queue-full": "Too many runs wait. Come back after Retry-After seconds.",
    "unavailable": "A part of the service is away. Come back after Retry-After seconds; what was accepted is kept.",
    "aws-unavailable": "AWS is off, away or refuses. Ask without canvas, or with fallback.",
    "insufficient-storage": "The store is full and nothing of the request was kept. Make room first.",
}
"""What to do about each problem, by slug; a test holds it to the error tree."""


class Headroom(FastAPI):
    """FastAPI, whose OpenAPI document tells the errors as they are."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _with_problems(super().openapi(), _scopes(self))
        return self.openapi_schema


def _scopes(app: FastAPI) -> dict[tuple[str, str], Scope | None]:
    """The scope that each (method, path) needs; None where it needs no key."""
    return {
        (method.lower(), str(route.path_format)): scope
        for route in iter_route_contexts(app.routes)
        if isinstance(route.original_route, APIRoute)
        for method in route.methods or ()
        for scope in guards(route.dependant)
    }


def _with_problems(document: dict[str, Any], scopes: dict[tuple[str, str], Scope | None]) -> dict[str, Any]:
    """The document with every error as a problem, and with the scope that each operation needs."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scope = scopes.get((method, path))
            operation["security"] = [{"key": [scope]}] if scope else []
            if scope:
                operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`."
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
            for status, response in problems(*_always(operation)).items():
                responses.setdefault(str(status), response)
            operation["responses"] = dict(sorted(responses.items()))
    return document


def _always(operation: dict[str, Any]) -> list[Any]:
    """What any route of this form may answer."""
    found: list[Any] = [Unavailable, Invalid, UnknownField]
    if operation["security"]:
        found += [Unauthenticated, InsufficientScope]
    if any(parameter["name"] == "cursor" for parameter in operation.get("parameters", ())):
        found.append(BadCursor)
    if "requestBody" in operation:
        found += [BadRequest, TooLarge]
    return found

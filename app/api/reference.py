"""The API's own reference: the OpenAPI document, its page, and the page that explains each problem. No outside asset."""

from html import escape
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse

from app.api.auth import OPEN
from app.api.problems import Problem, kinds, problems
from app.errors import BadRequest, InsufficientScope, Invalid, TooLarge, Unauthenticated, Unavailable, UnknownField

ASSETS = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI, as the wheel ships it."""

router = APIRouter(include_in_schema=False, dependencies=[OPEN])

_HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(
        f"{_HEAD}<title>Headroom API</title>"
        '<link rel="icon" href="/static/reference/favicon.png">'
        '<link rel="stylesheet" href="/static/reference/swagger-ui.css"><div id="reference"></div>'
        '<script src="/static/reference/swagger-ui-bundle.js"></script><script src="/static/reference.js"></script>'
    )


@router.get("/docs/problems")
async def explained() -> HTMLResponse:
    entries = "".join(
        f'<dt id="{kind.slug}"><code>{kind.slug}</code> ({kind.status}): {escape(kind.title)}</dt>'
        f"<dd>{escape((kind.__doc__ or '').strip()) or 'The answer’s detail says what was wrong and what to do.'}</dd>"
        for kind in sorted(kinds(), key=lambda kind: (kind.status, kind.slug))
    )
    return HTMLResponse(
        f'{_HEAD}<title>Headroom: problems</title><h1>Problems</h1><p>Every error is <code>application/problem+json</code>'
        f" (RFC 9457); its <code>type</code> is <code>urn:headroom:problem:</code> and one of these.</p><dl>{entries}</dl>"
    )


class Headroom(FastAPI):
    """FastAPI, whose OpenAPI document tells the errors as they are."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _with_problems(super().openapi())
        return self.openapi_schema


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    for methods in document["paths"].values():
        for operation in methods.values():
            responses = operation["responses"]
            responses.pop("422", None) if "HTTPValidationError" in str(responses.get("422")) else None
            for status, response in problems(*_always(operation)).items():
                responses.setdefault(str(status), response)
            operation["responses"] = dict(sorted(responses.items()))
    return document


def _always(operation: dict[str, Any]) -> list[Any]:
    """What any route of this form may answer."""
    found: list[Any] = [Unavailable, Invalid, UnknownField]
    if operation.get("security"):
        found += [Unauthenticated, InsufficientScope]
    if "requestBody" in operation:
        found += [BadRequest, TooLarge]
    return found

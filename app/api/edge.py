"""The outermost layer of every answer: its request id, headers, log line, and the errors that nothing else caught.

Here too is what must hold before a request is looked at: it came to a Host that is ours (a page elsewhere cannot
rebind its name to us), from no foreign Origin, and a body that is read whole is small.
"""

import ipaddress
import logging
import re
import time
from uuid import uuid4

from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.measures import Measures
from app.api.problems import answer
from app.errors import Forbidden
from app.logs import request_id

log = logging.getLogger(__name__)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_JSON = 8 * 2**20
"""Bytes of a body that is read as a whole; uploads are streamed and have a limit of their own."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """`hosts` are further names of ours beside the loopback ones; `origins` may call from other sites (CORS)."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], origins: frozenset[str], measures: Measures) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        if head:  # a GET whose body stays unsaid
            scope = {**scope, "method": "GET"}
        request = Request(scope)
        sent = request.headers.get("x-request-id", "")
        name = sent if _REQUEST_ID.fullmatch(sent) else uuid4().hex
        token = request_id.set(name)
        started = time.perf_counter()
        status = 0
        ended = False

        async def dressed(message: Message) -> None:
            nonlocal status, ended
            if ended:
                return
            if head and message["type"] == "http.response.body":
                message, ended = {"type": "http.response.body", "body": b"", "more_body": False}, True
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = name
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
                if not request.scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._admit(request)
            await self._app(scope, _capped(scope, receive), dressed)
        except ClientDisconnect:
            log.info("%s %s: the client went away", request.method, request.scope["path"])
        except Exception as error:
            if status:
                # Half an answer is out: only a broken connection can still tell the caller so.
                log.exception("%s %s broke off", request.method, request.scope["path"])
                raise
            await answer(request, error)(scope, receive, dressed)
        finally:
            self._note(request, status, time.perf_counter() - started)
            request_id.reset(token)

    def _admit(self, request: Request) -> None:
        host, port = _host_and_port(request.headers.get("host", ""))
        if host not in LOOPBACK | self._hosts and not _is_own_address(host, request.scope):
            raise Forbidden(
                f"This service does not answer to the name {host[:100]!r}. "
                "If it is yours, add it to HEADROOM_ALLOWED_HOSTS."
            )
        request.state.host_trusted = True
        origin = request.headers.get("origin")
        if origin is None or origin in self._origins:
            return
        scheme, _, authority = origin.partition("://")
        their_host, their_port = _host_and_port(authority)
        default = "443" if scheme == "https" else "80"
        same_port = (their_port or default) == (port or ("443" if request.url.scheme == "https" else "80"))
        if their_host in self._hosts or (same_port and (their_host == host or {their_host, host} <= LOOPBACK)):
            return
        raise Forbidden(f"Pages of {origin[:100]!r} may not call this service.")

    def _note(self, request: Request, status: int, seconds: float) -> None:
        route = request.scope.get("route")
        template = route.path if isinstance(route, APIRoute) else "(none)"
        self._measures.answered(request.method if route else "(any)", template, status, seconds)
        principal = getattr(request.state, "principal", None)
        log.info(
            "%s %s %s",
            request.method,
            request.scope["path"],
            status or "(no answer)",
            extra={"route": template, "seconds": round(seconds, 4), "key": principal.key_id if principal else ""},
        )


def _host_and_port(authority: str) -> tuple[str, str]:
    """`[::1]:8000` → (`::1`, `8000`); the port is empty where there is none."""
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdecimal():
        host, port = authority, ""
    return host.strip("[]").rstrip(".").lower(), port


def _is_own_address(host: str, scope: Scope) -> bool:
    """Whether `host` is the very address that the connection came in on: no name, so nothing to rebind."""
    try:
        return bool(scope.get("server")) and ipaddress.ip_address(host) == ipaddress.ip_address(scope["server"][0])
    except ValueError:
        return False


def _capped(scope: Scope, receive: Receive) -> Receive:
    """`receive` that gives up on a body over `MAX_JSON`, on routes whose body the framework reads whole."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        route = scope.get("route")
        if size > MAX_JSON and isinstance(route, APIRoute) and route.body_field is not None:
            # The framework passes on no other exception from here.
            raise HTTPException(413, f"The body is larger than {MAX_JSON // 2**20} MiB.")
        return message

    return counted

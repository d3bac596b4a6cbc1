"""One endpoint on loopback: SageMaker by its target header, the control endpoint by its path, moto for the rest.

The server is werkzeug's, which moto brings along: many threads, for tests and demonstrations, never for the world.
"""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape, unescape

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from app.emulator import control, faults, protocol, service
from app.emulator.clock import SPEED, Clock
from app.emulator.faults import Faults
from app.emulator.journal import Journal
from app.emulator.protocol import MARK, Answer, AwsError
from app.emulator.s3 import INNER, S3
from app.emulator.state import Account
from app.emulator.studio import BUCKET, ROLE

HOST = "127.0.0.1"
HEADER = ("x-headroom-emulated", "true")

_TRUST = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
"Principal": {"Service": "sagemaker.amazonaws.com"}}]}"""

Environ = dict[str, Any]
Start = Callable[..., Any]


def run(port: int, speed: float = SPEED) -> None:
    """Serve in the foreground until SIGTERM or Ctrl-C; port 0 takes a free one. Says its endpoint when it is up."""
    # All is in memory: there is nothing to put in order, and taking it all down would only take its time.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with started(port, speed) as url:
        print(f"Emulated AWS (SageMaker, S3, STS, IAM): {url}   role: {ROLE}", flush=True)
        threading.Event().wait()


@contextmanager
def started(port: int = 0, speed: float = SPEED) -> Iterator[str]:
    """The server in a thread of this process: its URL. What S3, STS and IAM hold is moto's, one for the process."""
    server = _Server(port, speed)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        _furnish(server.url)
        yield server.url
    finally:
        server.stop()
        thread.join()


def _furnish(url: str) -> None:
    """The execution role and a bucket, so that whoever looks for them finds one."""
    keys = {"aws_access_key_id": "emulator", "aws_secret_access_key": "emulator"}
    config = Config(user_agent_extra=INNER, proxies={})
    iam = boto3.client("iam", endpoint_url=url, region_name="us-east-1", config=config, **keys)
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=ROLE.rsplit("/", 1)[1], AssumeRolePolicyDocument=_TRUST)
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys).create_bucket(Bucket=BUCKET)


class _Handler(MotoRequestHandler):
    def log_request(self, *_: Any) -> None:
        """The journal has it."""

    def send_response(self, code: int, message: str | None = None) -> None:
        """Without the Date of its own: SageMaker's answers are dated by the clock of its jobs, as AWS's are."""
        self.send_response_only(code, message)


class _Server:
    def __init__(self, port: int, speed: float) -> None:
        self._server: BaseWSGIServer = make_server(HOST, port, self._dispatch, threaded=True, request_handler=_Handler)
        self.url = f"http://{HOST}:{self._server.port}"
        self._account = Account(Clock(speed), Faults(), Journal(), S3(self.url))
        self._moto: Callable[[Environ, Start], Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self._account.clear()
        self._server.shutdown()

    def _dispatch(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path, target = environ["PATH_INFO"], environ.get("HTTP_X_AMZ_TARGET", "")
        if path == control.PATH or path.startswith(f"{control.PATH}/"):
            query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
            return _send(start, control.serve(self._account, environ["REQUEST_METHOD"], path, query, _content(environ)))
        if target.startswith("SageMaker."):
            authorization = environ.get("HTTP_AUTHORIZATION", "")
            answer = service.serve(self._account, target, authorization, _content(environ))
            return _hang_up(environ) if answer is None else _send(start, answer, self._account.clock.now())
        if INNER in environ.get("HTTP_USER_AGENT", ""):
            return self._moto(environ, start)
        return self._by_moto(environ, start)

    def _by_moto(self, environ: Environ, start: Start) -> Iterable[bytes]:
        """S3 and the rest, with faults of S3 and the journal around."""
        name, asked = _service(environ), _asked(environ)
        operation = _operation(environ, asked)
        struck = self._account.faults.take(f"s3:{operation}", faults.S3) if name == "s3" else None
        status: int | None = None

        def marked(line: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            nonlocal status
            status = int(line.split(" ", 1)[0])
            return start(line, [*headers, HEADER, ("Date", formatdate(usegmt=True))], *rest)

        if struck in ("lost_reply", "server_error_after_success"):
            for _ in self._moto(environ, lambda *_: None):
                pass
        parts: Iterable[bytes] | None = None
        if struck is None:
            try:
                parts = self._moto(environ, marked)
            except NotImplementedError:
                status = 501
                parts = _send(start, _not_emulated(environ, operation))
        elif struck != "lost_reply":
            status, *said = _S3_REFUSALS[struck]
            parts = _send(start, _xml(status, *said))
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        self._account.journal.add(name, operation, path=path, query=query, request=asked, status=status, fault=struck)
        return _hang_up(environ) if parts is None else parts


_S3_REFUSALS: dict[str, tuple[int, str, str]] = {
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "server_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "server_error_after_success": (500, "InternalError", "We encountered an internal error. Please try again."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
}


def _service(environ: Environ) -> str:
    scope = environ.get("HTTP_AUTHORIZATION", "").split("/")
    return scope[3] if len(scope) > 4 else "s3"


def _asked(environ: Environ) -> dict[str, Any]:
    """What the body says, where what is asked cannot be told without it: forms, and the keys that are to be deleted."""
    form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
    deletes = _service(environ) == "s3" and environ.get("QUERY_STRING", "").split("=")[0] == "delete"
    if not form and not deletes:
        return {}
    content = _content(environ)
    environ["wsgi.input"] = BytesIO(content)
    if form:
        return dict(parse_qsl(content.decode()))
    return {"Keys": [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", content.decode(), re.DOTALL)]}


def _operation(environ: Environ, asked: dict[str, Any]) -> str:
    """S3's, by method and path; of other services, the target, the action of a form, or the path."""
    if _service(environ) != "s3":
        return str(environ.get("HTTP_X_AMZ_TARGET") or asked.get("Action") or environ["PATH_INFO"])
    method: str = environ["REQUEST_METHOD"]
    parts = environ["PATH_INFO"].strip("/").split("/", 1)
    if parts == [""]:
        return faults.LIST_BUCKETS
    return (faults.ON_OBJECT if len(parts) > 1 else faults.ON_BUCKET).get(method, method)


def _content(environ: Environ) -> bytes:
    content: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return content


def _send(start: Start, answer: Answer, now: float | None = None) -> list[bytes]:
    dated = ("Date", formatdate(now, usegmt=True))
    start(f"{answer.status} {'OK' if answer.status < 400 else 'Error'}", [*answer.headers, HEADER, dated])
    return [answer.content]


def _xml(status: int, code: str, message: str) -> Answer:
    said = escape(f"{message} {MARK}")
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{said}</Message></Error>".encode()
    return Answer(status, content, (("Content-Type", "application/xml"), ("Content-Length", str(len(content)))))


def _not_emulated(environ: Environ, operation: str) -> Answer:
    said = f"{operation} is not emulated. {MARK}"
    if "HTTP_X_AMZ_TARGET" in environ:
        return protocol.error(AwsError("NotImplemented", said, 501))
    content = f"<ErrorResponse><Error><Code>NotImplemented</Code><Message>{said}</Message></Error></ErrorResponse>"
    return Answer(501, content.encode(), (("Content-Type", "text/xml"), ("Content-Length", str(len(content)))))


def _hang_up(environ: Environ) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError

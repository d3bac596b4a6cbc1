"""AWS JSON 1.1: what a call is, what an answer and an error look like on the wire.

It leaves out what the operations do, and signatures: any credentials are good, but there must be some.
"""

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

Body = dict[str, Any]

ACCOUNT = "123456789012"
"""The account of everything here; moto's own."""

MARK = "[emulated]"
"""Opens every text of ours that a person may read."""

CONTENT_TYPE = "application/x-amz-json-1.1"

_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)/aws4_request")


class AwsError(Exception):
    """An error as the service says it: the code that clients branch on, a text for people, an HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message)


@dataclass(frozen=True)
class Call:
    """One request to SageMaker."""

    operation: str
    body: Body
    region: str

    def arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind}/{name.lower()}"


@dataclass(frozen=True)
class Answer:
    status: int
    content: bytes
    headers: tuple[tuple[str, str], ...]


def read(target: str, authorization: str, content: bytes) -> Call:
    """The call of a request. Raises AwsError when it is none."""
    scope = _SCOPE.search(authorization)
    if scope is None:
        raise AwsError("MissingAuthenticationTokenException", "The request is not signed with Signature Version 4.")
    if scope["service"] != "sagemaker":
        raise AwsError(
            "InvalidSignatureException",
            f"Credential should be scoped to service 'sagemaker', not {scope['service']!r}.",
        )
    try:
        body = json.loads(content or b"{}")
    except ValueError:
        raise AwsError("SerializationException", "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise AwsError("SerializationException", "The body is not a JSON object.")
    return Call(target.removeprefix("SageMaker."), body, scope["region"])


def answer(body: Body | None) -> Answer:
    """An operation without an output shape answers with no content."""
    return _answer(200, b"" if body is None else json.dumps(_without_none(body)).encode())


def error(problem: AwsError) -> Answer:
    content = json.dumps({"__type": problem.code, "message": problem.message}).encode()
    return _answer(problem.status, content, ("x-amzn-errortype", problem.code))


def _answer(status: int, content: bytes, *headers: tuple[str, str]) -> Answer:
    return Answer(
        status,
        content,
        (
            ("Content-Type", CONTENT_TYPE),
            ("Content-Length", str(len(content))),
            ("x-amzn-RequestId", str(uuid4())),
            *headers,
        ),
    )


def _without_none(value: Any) -> Any:
    """AWS leaves out what it does not have."""
    if isinstance(value, dict):
        return {name: _without_none(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_none(member) for member in value]
    return value

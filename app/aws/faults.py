"""What AWS answers instead of what was asked, as a few errors of our own.

HeadroomError
├── Transient                the worker tries again later
│   ├── Throttled            too many calls; nothing was done
│   ├── QuotaReached         the account has no room for another job just now; nothing was done
│   ├── Unreachable          nobody answered; nothing was done
│   └── OutcomeUnknown       something was sent and no answer came: it may have been done, so look before asking again
└── Fatal                    asking again changes nothing
    ├── Denied               credentials are missing, expired or not allowed to do this
    ├── NameTaken            there is something of this name already: perhaps our own, of a call whose answer was lost
    └── Refused              the request itself is wrong

What does not exist is no error but None. Words of AWS are shown without account numbers and keys.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientConnectorError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError

from app.errors import Fatal, Transient

_THROTTLED = re.compile(r"Throttl|TooManyRequests|RequestLimitExceeded|SlowDown|BandwidthLimit")
_DENIED = re.compile(
    r"AccessDenied|Unauthorized|NotAuthorized|Expired|UnrecognizedClient|InvalidClientTokenId|Signature"
    r"|MissingAuthenticationToken|InvalidAccessKeyId|OptInRequired|InvalidToken|^403$"
)
_BROKEN = re.compile(r"InternalError|InternalFailure|InternalServer|ServiceUnavailable")
_ABSENT = re.compile(r"ResourceNotFound|NoSuchKey|NoSuchBucket|NotFound|^404$")
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
_NEVER_SENT = (ConnectTimeoutError, ProxyConnectionError, SSLError)
_SECRET = re.compile(r"\b\d{12}\b|\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b")
_ACTION = re.compile(r"perform:? ([a-z0-9-]+:[A-Za-z0-9]+)")


class Throttled(Transient):
    slug, title = "aws-throttled", "AWS asks for fewer calls"


class QuotaReached(Transient):
    slug, title = "aws-quota", "A quota of the AWS account is reached"


class Unreachable(Transient):
    slug, title = "aws-unreachable", "AWS cannot be reached"


class OutcomeUnknown(Transient):
    slug, title = "aws-outcome-unknown", "AWS did not say what became of a request"


class Denied(Fatal):
    slug, title = "aws-denied", "AWS does not allow it"


class NameTaken(Fatal):
    slug, title = "aws-name-taken", "The name is in use on AWS"


class Refused(Fatal):
    slug, title = "aws-refused", "AWS refused the request"


def plain(words: str, longest: int = 300) -> str:
    """Words of AWS on one line, without account numbers and key ids, cut to a length."""
    told = " ".join(_SECRET.sub("…", words).split())
    return told if len(told) <= longest else f"{told[: longest - 1]}…"


def is_absent(error: ClientError) -> bool:
    """Whether AWS says that there is no such thing; SageMaker says so of some in a ValidationException alone."""
    code, words = _said(error)
    if _ABSENT.search(code):
        return True
    return code == "ValidationException" and bool(
        re.search(r"not found|could not find|cannot find|does not exist", words, re.IGNORECASE)
    )


@asynccontextmanager
async def translated(*, creates: bool = False) -> AsyncIterator[None]:
    """Whatever botocore raises in the block becomes one of the errors above.

    With `creates`, what leaves open whether the call was carried out is OutcomeUnknown; what only reads may be asked
    again, and is Unreachable.
    """
    try:
        yield
    except ClientError as error:
        raise _answered(error, creates=creates) from error
    except (BotoCoreError, ResponseParserError) as error:
        raise _unanswered(error, creates=creates) from error


def _answered(error: ClientError, *, creates: bool) -> Transient | Fatal:
    code, words = _said(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if _THROTTLED.search(code) or status == 429:
        return Throttled("AWS asks for fewer calls just now.")
    if code == "ResourceLimitExceeded":
        return QuotaReached(f"A quota of the AWS account is reached: {plain(words)}")
    if code == "ResourceInUse" or "Cannot create already existing" in words:
        return NameTaken("There is something of this name on AWS already.")
    if _DENIED.search(code):
        return _denied(code, words)
    if status >= 500 or _BROKEN.search(code):
        if creates:
            return OutcomeUnknown(f"AWS failed in the middle of a request ({plain(code, 60)}).")
        return Unreachable(f"AWS fails just now ({plain(code, 60)}).")
    return Refused(f"AWS refused the request ({plain(code, 60)}): {plain(words)}")


def _unanswered(error: Exception, *, creates: bool) -> Transient | Fatal:
    name = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return Denied(f"There are no usable AWS credentials ({name}). Set them in the usual AWS_* variables.")
    if isinstance(error, NoRegionError):
        return Denied("No AWS region is set. Set AWS_DEFAULT_REGION.")
    if isinstance(error, ParamValidationError):
        return Refused(f"The request is not one that AWS knows: {plain(str(error))}")
    if creates and not _was_never_sent(error):
        return OutcomeUnknown(f"AWS gave no answer to a request ({name}).")
    return Unreachable(f"AWS cannot be reached just now ({name}).")


def _was_never_sent(error: Exception) -> bool:
    """Whether no connection came about. One that breaks off later is an EndpointConnectionError as well: the cause
    tells the two apart."""
    refused = isinstance(error, EndpointConnectionError) and isinstance(error.kwargs["error"], ClientConnectorError)
    return refused or isinstance(error, _NEVER_SENT)


def _denied(code: str, words: str) -> Denied:
    if action := _ACTION.search(words):
        return Denied(f"AWS does not allow Headroom {action[1]}. `headroom aws check` names what its policy lacks.")
    return Denied(f"AWS does not accept Headroom's credentials for this ({plain(code, 60)}).")


def _said(error: ClientError) -> tuple[str, str]:
    told = error.response.get("Error", {})
    return str(told.get("Code", "")), str(told.get("Message", ""))

"""Everything Headroom refuses or fails at, as one tree.

HeadroomError
├── Rejected                    the caller's to mend (4xx); nothing was stored
│   ├── BadRequest              400 bad-request
│   │   ├── BadCursor           400 bad-cursor
│   │   ├── IncompleteBody      400 incomplete-body
│   │   └── IdempotencyKeyRequired  400 idempotency-key-required
│   ├── Unauthenticated         401 unauthenticated
│   ├── BudgetExceeded          402 budget-exceeded
│   ├── Forbidden               403 forbidden
│   │   └── InsufficientScope   403 insufficient-scope
│   ├── NotFound                404 not-found
│   ├── Conflict                409 conflict
│   │   ├── ForecastNotReady    409 forecast-not-ready
│   │   ├── NoResults           409 no-results
│   │   └── InFlight            409 idempotency-in-flight
│   ├── TooLarge                413 too-large
│   ├── UnsupportedMediaType    415 unsupported-media-type
│   ├── Invalid                 422 validation, or the slug of what is wrong
│   │   ├── UnknownField        422 unknown-field
│   │   ├── IdempotencyMismatch 422 idempotency-mismatch
│   │   ├── ThresholdRequired   422 threshold-required
│   │   ├── CapacityRequired    422 capacity-required
│   │   ├── WebhookAddress      422 webhook-address
│   │   └── WorkLimit           422 work-limit
│   └── QueueFull               429 queue-full
├── Unavailable                 503 unavailable: a part we need is away; try again
│   └── AwsUnavailable          503 aws-unavailable
├── InsufficientStorage         507 insufficient-storage
├── CannotStart                 a process cannot start as things are; whoever runs it must mend something
├── Transient                   the worker tries again later
└── Fatal                       the worker gives the run up; carries the reason

An error knows its slug and its HTTP status; whoever catches it only adds where it happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Complaint:
    """One thing wrong with what was sent: where, what, and the first offending rows (1-based data rows)."""

    pointer: str
    code: str
    detail: str
    rows: tuple[int, ...] = ()


class HeadroomError(Exception):
    """`detail` is written for the person who reads it: what was wrong, where, what to do."""

    slug = "internal"
    title = "Internal error"
    status = 500
    retry_after: int | None = None

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Complaint] = (),
        retry_after: int | None = None,
        slug: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        if retry_after is not None:
            self.retry_after = retry_after
        if slug is not None:
            self.slug = slug


class Rejected(HeadroomError):
    pass


class BadRequest(Rejected):
    slug, title, status = "bad-request", "Bad request", 400


class BadCursor(BadRequest):
    slug, title = "bad-cursor", "The cursor does not belong to this list"


class IncompleteBody(BadRequest):
    slug, title = "incomplete-body", "The body ended early"


class IdempotencyKeyRequired(BadRequest):
    slug, title = "idempotency-key-required", "An Idempotency-Key is required"


class Unauthenticated(Rejected):
    slug, title, status = "unauthenticated", "No valid API key", 401


class BudgetExceeded(Rejected):
    slug, title, status = "budget-exceeded", "Over the budget", 402


class Forbidden(Rejected):
    slug, title, status = "forbidden", "Not allowed", 403


class InsufficientScope(Forbidden):
    slug, title = "insufficient-scope", "The key lacks the scope"


class NotFound(Rejected):
    slug, title, status = "not-found", "Not found", 404


class Conflict(Rejected):
    slug, title, status = "conflict", "In the wrong state for this", 409


class ForecastNotReady(Conflict):
    slug, title, retry_after = "forecast-not-ready", "The forecast is still running", 5


class NoResults(Conflict):
    slug, title = "no-results", "The runs ended without results"


class InFlight(Conflict):
    slug, title, retry_after = "idempotency-in-flight", "The same request is still being answered", 1


class TooLarge(Rejected):
    slug, title, status = "too-large", "Too large", 413


class UnsupportedMediaType(Rejected):
    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class Invalid(Rejected):
    slug, title, status = "validation", "Invalid request", 422


class UnknownField(Invalid):
    slug, title = "unknown-field", "Unknown field"


class IdempotencyMismatch(Invalid):
    slug, title = "idempotency-mismatch", "The Idempotency-Key was used with another body"


class ThresholdRequired(Invalid):
    slug, title = "threshold-required", "A threshold is required"


class WebhookAddress(Invalid):
    slug, title = "webhook-address", "Nothing is sent to this address"


class CapacityRequired(Invalid):
    slug, title = "capacity-required", "The capacity of the servers is required"


class WorkLimit(Invalid):
    slug, title = "work-limit", "More work than one forecast may ask for"


class QueueFull(Rejected):
    slug, title, status, retry_after = "queue-full", "Too many forecasts wait", 429, 30


class Unavailable(HeadroomError):
    slug, title, status, retry_after = "unavailable", "Temporarily unavailable", 503, 5


class AwsUnavailable(Unavailable):
    slug, title = "aws-unavailable", "AWS is not available"


class InsufficientStorage(HeadroomError):
    slug, title, status = "insufficient-storage", "The store is full", 507


class CannotStart(HeadroomError):
    slug, title = "cannot-start", "Cannot start"


class Transient(HeadroomError):
    slug, title = "transient", "Failed for now"


class Fatal(HeadroomError):
    slug, title = "failed", "Failed for good"

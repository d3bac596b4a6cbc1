"""API keys: what they may do, how they look, what of them is kept. No storage, no HTTP."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.errors import InsufficientScope, Invalid

PREFIX = "hr_"
SHOWN = len(PREFIX) + 6
"""Characters of a key that are kept in clear: enough to tell keys apart, 36 of its 256 bits."""


class Scope(StrEnum):
    """What a key may do. None contains another: a key has exactly the scopes that it was made with."""

    READ = "read"
    """look at datasets, forecasts, risk and costs"""
    WRITE = "write"
    """upload, submit, cancel, delete"""
    PAID = "paid"
    """start runs that cost money"""
    ADMIN = "admin"
    """run the service: what concerns all callers"""


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept: without the key."""

    id: UUID
    name: str
    prefix: str
    hash: bytes
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None = None

    @property
    def is_live(self) -> bool:
        return self.revoked_at is None

    def matches(self, secret: str) -> bool:
        """Whether `secret` is this key; takes the same time whether or not."""
        return hmac.compare_digest(self.hash, digest(secret))


@dataclass(frozen=True)
class Principal:
    """Who asks. `key_id` is empty, and everything allowed, on a service that has no keys."""

    key_id: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raise InsufficientScope unless this caller has `scope`."""
        if scope not in self.scopes:
            held = ", ".join(sorted(self.scopes)) or "none"
            raise InsufficientScope(f"This needs a key with the scope `{scope}`; yours has {held}.")


ANYONE = Principal("", frozenset(Scope))
"""The caller of a service without keys."""


def new_secret() -> str:
    """A fresh random key: `hr_` and 256 bits in base64url."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """SHA-256: what is kept of a secret of 256 random bits, which needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name. Raises Invalid for an unknown one, or for none at all."""
    chosen = [name.strip() for name in names]
    unknown = sorted(set(chosen) - set(Scope))
    if unknown or not chosen:
        what = f"unknown scope {', '.join(unknown)}" if unknown else "no scope"
        raise Invalid(f"A key needs one or more of {', '.join(Scope)}; got {what}.")
    return frozenset(map(Scope, chosen))

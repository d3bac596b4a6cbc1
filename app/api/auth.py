"""Who may call a route. Every route says so: `scope("read")`, or `OPEN` for the few that are everybody's.

    @router.get("/datasets", dependencies=[scope(Scope.READ)])
    async def submit(caller: Annotated[Principal, scope(Scope.WRITE)]) -> …     # where the handler must know who

A test walks all routes and fails on one that says neither. Programs send `Authorization: Bearer <key>`; pages exchange
the key once, at `POST /session`, for a cookie that no script can read and no other site can send.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, BaseModel, Field, SecretStr

from app.api.problems import problems
from app.api.strict import Body, check_text
from app.api.wired import Services
from app.domain.keys import Principal, Scope
from app.errors import Unauthenticated
from app.services.keys import SESSION

COOKIE = "headroom_session"

_bearer = HTTPBearer(
    scheme_name="key",
    description="An API key of `headroom keys create`. Enforced as soon as one key exists.",
    auto_error=False,
)
Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


@dataclass(frozen=True)
class Requires:
    """The dependency behind `scope`; a route that has one is guarded."""

    scope: Scope

    async def __call__(self, request: Request, services: Services, bearer: Bearer) -> Principal:
        principal: Principal = await services.keys.authenticate(
            bearer.credentials if bearer else None, request.cookies.get(COOKIE)
        )
        request.state.principal = principal
        principal.require(self.scope)
        return principal


def scope(needed: Scope | str) -> Any:
    """A dependency that lets only callers with this scope through, and gives their `Principal`."""
    return Depends(Requires(Scope(needed)))


async def anybody() -> None:
    """The dependency behind `OPEN`: it stops no one."""


OPEN = Depends(anybody)


def guards(dependant: Dependant) -> set[Scope | None]:
    """What a route's dependencies say of who may call it: the scopes they require, and None for open to all."""
    calls = [dependency.call for dependency in dependant.dependencies]
    return {call.scope for call in calls if isinstance(call, Requires)} | ({None} if anybody in calls else set())


Reader = Annotated[Principal, scope(Scope.READ)]
Writer = Annotated[Principal, scope(Scope.WRITE)]


def _text(secret: SecretStr) -> SecretStr:
    check_text(secret.get_secret_value())
    return secret


class SignIn(Body):
    """What a page sends to stay signed in."""

    key: Annotated[SecretStr, AfterValidator(_text)] = Field(
        description="An API key.",
        min_length=1,
        max_length=200,
        examples=["hr_3mZ0q1n2Kc7dVtYxWb5uRjLs8Pf4GhAeXo6Ti9NvQwE"],
    )


class Session(BaseModel):
    """What this caller may do."""

    keys_enforced: bool = Field(description="Whether callers need a key; false on a service that has none.")
    scopes: list[Scope] = Field(description="What this caller may do; empty when not signed in.", examples=[["read"]])


router = APIRouter(tags=["session"])


@router.get("/session", dependencies=[OPEN], summary="Who am I")
async def show_session(request: Request, services: Services, bearer: Bearer) -> Session:
    """Whether keys are enforced, and the scopes of the caller."""
    try:
        principal = await services.keys.authenticate(
            bearer.credentials if bearer else None, request.cookies.get(COOKIE)
        )
    except Unauthenticated:
        return Session(keys_enforced=True, scopes=[])
    return Session(keys_enforced=await services.keys.enforced(), scopes=sorted(principal.scopes))


@router.post("/session", dependencies=[OPEN], summary="Sign in", responses=problems(Unauthenticated))
async def open_session(sign_in: SignIn, request: Request, response: Response, services: Services) -> Session:
    """Exchange an API key for a cookie, for pages in a browser. It lasts 12 hours, or until the key is revoked."""
    secret = sign_in.key.get_secret_value()
    principal = await services.keys.authenticate(secret, None)
    response.set_cookie(
        COOKIE,
        await services.keys.open_session(secret),
        max_age=int(SESSION.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return Session(keys_enforced=await services.keys.enforced(), scopes=sorted(principal.scopes))


@router.delete("/session", dependencies=[OPEN], status_code=204, summary="Sign out")
async def close_session(request: Request, response: Response, services: Services) -> None:
    """End the session, here and in the browser."""
    if token := request.cookies.get(COOKIE):
        await services.keys.close_session(token)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")

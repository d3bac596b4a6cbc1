"""Keys, scopes, sessions, Host and Origin: who gets in, and who does not."""

import json
import re
from collections.abc import Awaitable, Callable
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Mount

from app.api.auth import COOKIE, guards
from app.domain.keys import Scope, digest
from app.errors import CannotStart, Invalid, NotFound
from app.main import create_app
from app.services.keys import is_loopback
from app.settings import Settings

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/docs"),
    ("GET", "/docs/problems"),
    ("GET", "/openapi.json"),
    ("GET", "/session"),
    ("POST", "/session"),
    ("DELETE", "/session"),
    ("GET", "/sign-in"),
}
"""All that needs no key, besides static files. Add to it only what nobody would mind to have on the open internet."""

Route = tuple[str, str]
MakeKey = Callable[..., Awaitable[str]]


def routes(app: FastAPI) -> dict[Route, set[Scope | None]]:
    found = {}
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            for method in context.methods or ():
                found[method, str(context.path)] = guards(context.dependant)
        else:
            # Static files are all that may be mounted or routed beside the framework's own routes.
            assert isinstance(context.original_route, Mount)
            assert str(context.path).startswith("/static")
    return found


@pytest.fixture
def make_key(api: FastAPI) -> MakeKey:
    async def make(*scopes: Scope, name: str = "test") -> str:
        _, secret = await api.state.services.keys.create(name, scopes)
        return str(secret)

    return make


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_every_route_says_who_may_call_it() -> None:
    found = routes(create_app(Settings()))
    assert {route for route, said in found.items() if len(said) != 1} == set()
    assert {route for route, said in found.items() if said == {None}} <= OPEN


async def test_each_route_lets_in_its_scope_and_no_other(
    api: FastAPI, client: httpx.AsyncClient, make_key: MakeKey
) -> None:
    keys = {scope: await make_key(scope) for scope in Scope}
    revoked = await make_key(*Scope, name="gone")
    await api.state.services.keys.revoke(str((await api.state.services.keys.list())[0].id))
    nobody = UUID(int=0)
    wrong = []
    for (method, path), said in routes(api).items():
        address = re.sub(r"\{[^}]*\}", str(nobody), path)
        (needed,) = said
        for held, headers in [
            (None, {}),
            (None, bearer("hr_" + "A" * 43)),
            (None, bearer(revoked)),
            (None, {"Authorization": "Basic aHI6aHI="}),
            *((scope, bearer(secret)) for scope, secret in keys.items()),
        ]:
            status = (await client.request(method, address, headers=headers)).status_code
            if needed is None or held == needed:
                right = status not in (401, 403) or address == "/session"
            else:
                right = status == (401 if held is None else 403)
            if not right:
                wrong.append((method, path, held, status))
    assert wrong == []


async def test_without_keys_everything_is_allowed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 200
    assert (await client.get("/session")).json() == {"keys_enforced": False, "scopes": sorted(Scope)}


async def test_keys_are_enforced_from_the_first_on_and_revoking_it_locks(
    api: FastAPI, client: httpx.AsyncClient, make_key: MakeKey
) -> None:
    secret = await make_key(Scope.READ)
    refused = await client.get("/metrics")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.json()["type"] == "urn:headroom:problem:unauthenticated"
    assert (await client.get("/metrics", headers=bearer(secret))).status_code == 200
    await api.state.services.keys.revoke(secret[:9])
    assert (await client.get("/metrics", headers=bearer(secret))).status_code == 401
    assert (await client.get("/metrics")).status_code == 401


async def test_a_process_sees_the_first_key_that_another_made(settings: Settings, client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 200
    other = create_app(settings)
    async with other.router.lifespan_context(other):
        await other.state.services.keys.create("elsewhere", ["read"])
    assert (await client.get("/metrics")).status_code == 401


async def test_a_missing_scope_is_named(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    refused = await client.get("/metrics", headers=bearer(await make_key(Scope.WRITE)))
    assert refused.status_code == 403
    assert refused.json()["type"] == "urn:headroom:problem:insufficient-scope"
    assert "`read`" in refused.json()["detail"]


async def test_only_a_hash_and_a_prefix_are_kept(api: FastAPI, make_key: MakeKey) -> None:
    secret = await make_key(Scope.READ, Scope.PAID)
    (kept,) = await api.state.services.keys.list()
    assert len(secret) == len("hr_") + 43
    assert kept.hash == digest(secret)
    assert kept.prefix == secret[:9]
    assert kept.scopes == {Scope.READ, Scope.PAID}
    assert kept.is_live


async def test_keys_with_a_bad_name_or_scope_are_not_made(api: FastAPI) -> None:
    keys = api.state.services.keys
    for name, scopes in [("", ["read"]), ("a\nb", ["read"]), ("ok", []), ("ok", ["root"]), ("x" * 201, ["read"])]:
        with pytest.raises(Invalid):
            await keys.create(name, scopes)
    with pytest.raises(NotFound):
        await keys.revoke("hr_nobody")
    assert not await keys.enforced()


async def test_a_page_signs_in_with_a_cookie_that_is_not_the_key(client: httpx.AsyncClient, make_key: MakeKey) -> None:
    secret = await make_key(Scope.READ)
    signed_in = await client.post("/session", json={"key": secret})
    assert signed_in.json() == {"keys_enforced": True, "scopes": ["read"]}
    cookie = signed_in.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert secret not in cookie
    assert (await client.get("/metrics")).status_code == 200
    held = client.cookies[COOKIE]
    assert (await client.delete("/session")).status_code == 204
    # Signing out ends the session itself, not just this browser's copy of it.
    assert (await client.get("/metrics", headers={"Cookie": f"{COOKIE}={held}"})).status_code == 401


@pytest.mark.parametrize("key", ["hr_\ud800", "hr_\0"])
async def test_a_key_is_text(api: FastAPI, client: httpx.AsyncClient, key: str) -> None:
    await api.state.services.keys.create("planner", ["read"])
    answer = await client.post(
        "/session", content=json.dumps({"key": key}), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/key")


async def test_a_session_ends_with_its_key_and_a_bad_key_gets_none(
    api: FastAPI, client: httpx.AsyncClient, make_key: MakeKey
) -> None:
    secret = await make_key(Scope.READ)
    refused = await client.post("/session", json={"key": "hr_wrong"})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    await client.post("/session", json={"key": secret})
    assert (await client.get("/session")).json()["scopes"] == ["read"]
    await api.state.services.keys.revoke(secret[:9])
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/session")).json() == {"keys_enforced": True, "scopes": []}


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({"Host": "127.0.0.1:8000"}, True),
        ({"Host": "localhost:8000"}, True),
        ({"Host": "LOCALHOST.:8000"}, True),
        ({"Host": "[::1]:8000"}, True),
        ({"Host": "planner.example"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "evil.example:8000"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Host": "10.9.8.7"}, False),
        ({"Host": ""}, False),
        ({"Host": "["}, False),
        ({"Host": "[::1"}, False),
        ({"Host": "127.0.0.1:8000:8000"}, False),
        ({"Host": "127.0.0.1@evil.example"}, False),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Origin": "https://planner.example"}, True),
        ({"Origin": "https://partner.example"}, True),
        ({"Origin": "http://127.0.0.1:9000"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "https://evil.example:8000"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
    ],
    ids=str,
)
async def test_host_and_origin_are_checked(headers: dict[str, str], admitted: bool) -> None:
    app = create_app(Settings(allowed_hosts="planner.example", cors_origins="https://partner.example"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        answer = await client.post("/healthz", headers=headers)
    # The method is wrong on purpose: who is let in gets as far as being told so.
    assert answer.status_code == (405 if admitted else 403)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_other_sites_may_not_read_answers_unless_configured() -> None:
    for origins, allowed in [("", None), ("https://partner.example", "https://partner.example")]:
        app = create_app(Settings(cors_origins=origins))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            answer = await client.get("/healthz", headers={"Origin": "https://partner.example"})
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert (answer.status_code == 200) == bool(allowed)


async def test_without_a_key_only_a_loopback_address_is_listened_on(settings: Settings) -> None:
    exposed = settings.model_copy(update={"host": "0.0.0.0"})
    app = create_app(exposed)
    with pytest.raises(CannotStart, match="headroom keys create"):
        async with app.router.lifespan_context(app):
            pass
    local = create_app(settings)
    async with local.router.lifespan_context(local):
        await local.state.services.keys.create("first", ["read"])
    async with app.router.lifespan_context(app):
        assert await app.state.services.keys.enforced()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("", False), ("db", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback

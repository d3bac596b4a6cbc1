"""Every error is a problem+json that tells what, where and what to do, and nothing that it should not."""

import base64
import errno
import json
import logging
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, Query
from pydantic import Field, StrictInt, TypeAdapter, ValidationError

from app.api import reference
from app.api.auth import OPEN
from app.api.pages import Page, PagingParameters
from app.api.problems import kinds
from app.api.strict import Body, Time, declared_queries
from app.errors import Conflict, HeadroomError, QueueFull
from app.logs import JsonLines
from app.main import create_app
from app.settings import Settings
from app.storage import faults

SECRET = "hr_canary-secret"


class Order(Body):
    horizon: StrictInt
    quantiles: list[float] = Field(default=[])


probe = APIRouter(dependencies=[OPEN])


@probe.post("/probe")
async def take(order: Order) -> int:
    return order.horizon


@probe.get("/probe/things/{thing}")
async def look(thing: UUID, start: str | None = None) -> str:
    return str(thing)


@probe.get("/probe/fail/{how}")
async def fail(how: str) -> None:
    match how:
        case "ours":
            raise Conflict("It is running; cancel it first.")
        case "full":
            raise QueueFull("10000 runs wait.")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case _:
            raise RuntimeError(f"SELECT password FROM t -- {SECRET}")


@probe.get("/probe/database")
async def database() -> None:
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with engine.connect():
        pass


@probe.get("/probe/list")
async def count_up(
    paging: PagingParameters,
    region: str = "",
    tag: Annotated[list[str] | None, Query()] = None,
    mark: Annotated[list[str], Query()] = [],  # noqa: B006
) -> Page[int]:
    first = paging.after(tuple[int]) or (0,)
    rows = list(range(first[0] + 1, min(first[0] + paging.limit + 1, 250) + 1))
    return paging.page(rows, [(row,) for row in rows])


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application with routes that go wrong on demand; not started, for none of them needs a service."""
    app = create_app(Settings(data_dir=tmp_path))
    app.include_router(probe)
    app.openapi_schema = None
    app.state.queries = declared_queries(app.openapi())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        yield client


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The body, after the checks that hold for every problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:headroom:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == answer.request.url.path
    assert body["request_id"] == answer.headers["x-request-id"]
    for leak in ("Traceback", "SELECT", SECRET, "psycopg", "site-packages"):
        assert leak not in answer.text
    return body


BODIES = [
    (b'{"horizon": 90', 400, "bad-request", None),
    (b"", 422, "validation", ""),
    (b"\xff\xfe", 400, "bad-request", None),
    (b'{"horizon": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, "bad-request", None),
    (b'{"horizon": ' + b"9" * 5_000 + b"}", 400, "bad-request", None),
    (b"[]", 422, "validation", ""),
    (b'{"horizon": "7"}', 422, "validation", "/horizon"),
    (b'{"horizon": 1.5}', 422, "validation", "/horizon"),
    (b'{"horizon": 1, "quantiles": [0.5, NaN]}', 422, "validation", "/quantiles/1"),
    (b'{"horizon": 1, "quantiles": [1e400]}', 422, "validation", "/quantiles/0"),
    (b'{"horizon": 1, "role_arn": "x"}', 422, "unknown-field", "/role_arn"),
    (b'{"horizon": 1, "a/b~c": 1}', 422, "unknown-field", "/a~1b~0c"),
    (b'{"horizon": 1, "\\ud800": 1}', 422, "validation", ""),
    (b'{"horizon": 1, "x": "' + b"a" * 9_000_000 + b'"}', 413, "too-large", None),
]


@pytest.mark.parametrize(("body", "status", "slug", "pointer"), BODIES, ids=lambda value: repr(value)[:40])
async def test_a_bad_body_is_named(
    client: httpx.AsyncClient, body: bytes, status: int, slug: str, pointer: str | None
) -> None:
    answer = await client.post("/probe", content=body, headers={"content-type": "application/json"})
    found = problem(answer, status, slug)
    assert [error["pointer"] for error in found["errors"]] == ([] if pointer is None else [pointer])


async def test_a_body_of_another_type_is_not_guessed_at(client: httpx.AsyncClient) -> None:
    problem(
        await client.post("/probe", content=b"horizon=1", headers={"content-type": "text/plain"}),
        415,
        "unsupported-media-type",
    )


REQUESTS = [
    ("GET", "/nowhere", 404, "not-found"),
    ("GET", "/probe/things/7", 404, "not-found"),
    ("GET", "/probe/things/%00", 404, "not-found"),
    ("DELETE", "/probe", 405, "method-not-allowed"),
    ("GET", "/probe/things/00000000-0000-0000-0000-000000000000?colour=red", 422, "unknown-field"),
    ("GET", "/healthz?verbose=1", 422, "unknown-field"),
    ("GET", "/probe/things/00000000-0000-0000-0000-000000000000?start=%00", 422, "validation"),
    ("GET", "/probe/fail/ours", 409, "conflict"),
    ("GET", "/probe/fail/unforeseen", 500, "internal"),
    ("GET", "/probe/fail/disk", 507, "insufficient-storage"),
    ("GET", "/probe/database", 503, "unavailable"),
    ("GET", "/probe/list?limit=0", 422, "validation"),
    ("GET", "/probe/list?limit=1001", 422, "validation"),
    ("GET", "/probe/list?limit=ten", 422, "validation"),
    ("GET", "/probe/list?cursor=rubbish", 400, "bad-cursor"),
    ("GET", "/probe/list?cursor=%C3%A4", 400, "bad-cursor"),
    ("GET", "/probe/list?cursor=" + "W1" * 5_000, 400, "bad-cursor"),
]


@pytest.mark.parametrize(("method", "path", "status", "slug"), REQUESTS, ids=lambda value: str(value)[:60])
async def test_a_bad_request_is_named(
    client: httpx.AsyncClient, method: str, path: str, status: int, slug: str
) -> None:
    problem(await client.request(method, path), status, slug)


async def test_only_lists_may_be_given_more_than_once(client: httpx.AsyncClient) -> None:
    assert (await client.get("/probe/list?tag=a&tag=b&mark=a&mark=a")).status_code == 200
    answer = await client.get("/probe/list?limit=5&region=north&tag=a&tag=b&limit=5&region=south&region=west")
    found = problem(answer, 422, "validation")
    assert [(error["pointer"], error["code"]) for error in found["errors"]] == [
        ("?limit", "repeated"),
        ("?region", "repeated"),
    ]
    assert "limit, region takes one value" in found["detail"]
    assert "mark, tag may repeat" in found["detail"]


async def test_help_resolves_for_every_problem(client: httpx.AsyncClient) -> None:
    found = problem(await client.get("/nowhere"), 404, "not-found")
    address, anchor = found["help"].split("#")
    page = (await client.get(address)).text
    assert anchor == "not-found"
    for kind in kinds():
        assert f'id="{kind.slug}"' in page


def test_advice_and_error_tree_name_the_same_problems() -> None:
    assert {kind.slug for kind in kinds()} == set(reference.ADVICE)


async def test_who_should_wait_is_told_how_long(client: httpx.AsyncClient) -> None:
    assert (await client.get("/probe/fail/full")).headers["retry-after"] == str(QueueFull.retry_after)
    assert (await client.get("/probe/database")).headers["retry-after"] == "5"


async def test_a_method_that_is_not_there_names_those_that_are(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/probe")).headers["allow"] == "POST"
    assert (await client.delete("/datasets")).headers["allow"] == "GET, HEAD, POST"


async def test_an_unforeseen_error_is_in_the_log_under_its_request_id(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/probe/fail/unforeseen", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert "mine-1" in answer.json()["detail"]
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], RuntimeError)


async def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"X-Request-ID": "a b"})
    assert answer.headers["x-request-id"] != "a b"


async def test_secrets_and_line_breaks_stay_out_of_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.get(
        f"/no%0d%0awhere?key={SECRET}",
        headers={"Authorization": f"Bearer {SECRET}", "Cookie": f"headroom_session={SECRET}"},
    )
    await client.post("/probe", json={"horizon": SECRET, SECRET: SECRET})
    lines = [JsonLines().format(record) for record in caplog.records if record.name != "httpx"]
    assert any("where" in line for line in lines)
    for line in lines:
        assert SECRET not in line
        assert "\n" not in line
        assert "\r" not in line
        json.loads(line)


def test_our_own_errors_are_logged_without_a_traceback() -> None:
    try:
        raise HeadroomError("The folder is gone.")
    except HeadroomError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert json.loads(JsonLines().format(record))["error"] == "The folder is gone."


async def test_pages_follow_each_other_without_gap_or_overlap(client: httpx.AsyncClient) -> None:
    seen: list[int] = []
    cursor = ""
    while True:
        page = (
            await client.get("/probe/list", params={"region": "north"} | ({"cursor": cursor} if cursor else {}))
        ).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["items"]) == 100
    assert seen == list(range(1, 251))


async def test_a_cursor_is_bound_to_its_list_and_filters(client: httpx.AsyncClient) -> None:
    cursor = (await client.get("/probe/list?region=north&limit=5")).json()["next_cursor"]
    assert (await client.get(f"/probe/list?region=north&limit=7&cursor={cursor}")).json()["items"] == list(range(6, 13))
    problem(await client.get(f"/probe/list?region=south&cursor={cursor}"), 400, "bad-cursor")
    problem(await client.get(f"/probe/list?cursor={cursor}"), 400, "bad-cursor")


async def test_head_is_a_get_without_its_body(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/probe/list"):
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("2023-01-01", date(2023, 1, 1)),
        ("2023-01-01T00:00:00", datetime(2023, 1, 1, tzinfo=UTC)),
        ("2023-01-01T00:00:00Z", datetime(2023, 1, 1, tzinfo=UTC)),
        ("2023-01-01T00:00+02:00", datetime(2022, 12, 31, 22, tzinfo=UTC)),
    ],
)
def test_a_time_is_in_utc_and_a_written_midnight_is_no_date(written: str, time: date) -> None:
    found = TypeAdapter(Time).validate_python(written)
    assert (type(found), found) == (type(time), time)


@pytest.mark.parametrize("written", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "soon", "2023-01-01Tx"])
def test_what_is_no_time_in_utc_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Time).validate_python(written)


async def test_a_cursor_holds_text(client: httpx.AsyncClient) -> None:
    """Half of a character, which JSON can write and PostgreSQL cannot keep, was never in one of ours."""
    ours = (await client.get("/probe/list?limit=5")).json()["next_cursor"]
    binding, _ = json.loads(base64.urlsafe_b64decode(ours + "=" * (-len(ours) % 4)))
    for part in ("\ud800", "a\0b"):
        forged = base64.urlsafe_b64encode(json.dumps([binding, [part]]).encode()).decode().rstrip("=")
        problem(await client.get(f"/probe/list?cursor={forged}"), 400, "bad-cursor")


@pytest.mark.parametrize(
    ("raised", "slug"),
    [
        (psycopg.errors.DiskFull(), "insufficient-storage"),
        (psycopg.errors.AdminShutdown(), "unavailable"),
        (psycopg.errors.ReadOnlySqlTransaction(), "unavailable"),
        (psycopg.errors.LockNotAvailable(), "unavailable"),
        (psycopg.OperationalError("connection refused"), "unavailable"),
        (psycopg.errors.UniqueViolation(), None),
        (psycopg.errors.UndefinedTable(), None),
        (ValueError(), None),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_a_fault_of_the_database_is_told_from_one_of_ours(raised: Exception, slug: str | None) -> None:
    wrapped = sa.exc.DBAPIError("SELECT 1", {}, raised) if isinstance(raised, psycopg.Error) else raised
    for error in (raised, wrapped):
        found = faults.classify(error)
        assert (found.slug if found else None) == slug

"""Liveness, readiness that names what is missing, and figures for Prometheus."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_healthy_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    ready = await client.get("/readyz")
    assert ready.status_code == 200, ready.text
    assert ready.json() == {"status": "ready", "parts": {"database": True, "store": True, "queue": True}}


@pytest.fixture
def closed(postgres_url: str, database_url: str) -> Iterator[None]:
    """The database, refusing and ending every connection, as in a restart or a failover."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


async def test_without_a_database_it_says_so(client: httpx.AsyncClient, request: pytest.FixtureRequest) -> None:
    assert (await client.get("/readyz")).status_code == 200
    request.getfixturevalue("closed")
    unready = await client.get("/readyz")
    assert unready.status_code == 503
    assert unready.headers["retry-after"]
    assert {error["pointer"] for error in unready.json()["errors"]} == {"database", "queue"}
    assert (await client.get("/healthz")).status_code == 200
    away = await client.get("/metrics")
    assert away.status_code == 503
    assert away.json()["type"] == "urn:headroom:problem:unavailable"


async def test_a_missing_queue_is_named(client: httpx.AsyncClient, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("DROP TABLE procrastinate_jobs CASCADE")
    assert [error["pointer"] for error in (await client.get("/readyz")).json()["errors"]] == ["queue"]


async def test_answers_are_counted_by_route_not_by_path(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/healthz", "/nowhere/1", "/nowhere/2"):
        await client.get(path)
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    counted = {frozenset(labels): value for (name, labels), value in found.items() if name == "headroom_requests_total"}
    assert counted == {
        frozenset({("method", "GET"), ("route", "/healthz"), ("status", "200")}): 2,
        frozenset({("method", "(any)"), ("route", "(none)"), ("status", "404")}): 2,
    }
    assert found["headroom_runs", frozenset({("status", "queued")})] == 0


async def test_every_answer_wears_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere", "/docs", "/static/reference.js", "/static/reference/swagger-ui-bundle.js"):
        headers = (await client.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-request-id"]

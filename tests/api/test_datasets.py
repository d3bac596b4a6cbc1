"""Datasets over HTTP: every form of upload, every refusal at the edge, and that nothing is left of what was refused."""

import gzip
import hashlib
import io
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from fastapi import FastAPI
from psycopg import sql

from app.main import create_app
from app.settings import Settings

HEADER = "server_id,timestamp,cpu_p95,region\n"
DAYS = [f"2024-01-{day:02}" for day in range(1, 21)]
CSV = HEADER + "".join(f"{name},{day},{number + 40},north\n" for name in "ba" for number, day in enumerate(DAYS))
CSV_TYPE = {"Content-Type": "text/csv"}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(postgres_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of one service for all tests of this module: starting its child process is most of an upload's time."""
    name = sql.Identifier(f"headroom_test_{uuid4().hex}")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template_database)))
        url = urlsplit(postgres_url)._replace(path=f"/{name.as_string(None).strip(chr(34))}").geturl()
        yield Settings(
            data_dir=tmp_path_factory.mktemp("data"),
            database_url=url,
            compute_processes=1,
            max_upload_mb=1,
            max_columns=50,
            s3_allowed="",
        )
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest_asyncio.fixture(loop_scope="module")
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller on this machine; what it made is deleted after the test."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000") as client:
        yield client
        for kind in ("forecasts", "datasets"):
            for item in (await client.get(f"/{kind}")).json()["items"]:
                assert (await client.delete(f"/{kind}/{item['id']}")).status_code == 204


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pacsv.read_csv(io.BytesIO(CSV.encode())), sink)
    return sink.getvalue()


def kept(settings: Settings) -> list[Path]:
    """Every file that the service keeps, of datasets and of uploads on their way in."""
    folders = (settings.data_dir / "datasets", settings.data_dir / "uploads")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


async def nothing_is_kept(client: httpx.AsyncClient, settings: Settings) -> None:
    assert (await client.get("/datasets")).json() == {"items": [], "next_cursor": None}
    assert kept(settings) == []


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).removeprefix("urn:headroom:problem:")


async def made(client: httpx.AsyncClient, content: str | bytes = CSV, **params: str) -> dict[str, Any]:
    answer = await client.post("/datasets", content=content, headers=CSV_TYPE, params=params)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


FORMS: dict[str, dict[str, Any]] = {
    "raw csv": {"content": CSV, "headers": CSV_TYPE},
    "raw gzip": {"content": gzip.compress(CSV.encode()), "headers": {"Content-Type": "application/gzip"}},
    "raw parquet": {"content": parquet(), "headers": {"Content-Type": "application/vnd.apache.parquet"}},
    "the bytes decide": {"content": parquet(), "headers": {"Content-Type": "text/csv; charset=utf-8"}},
    "form csv": {"files": {"file": ("fleet.csv", CSV)}},
    "form gzip": {"files": {"file": ("fleet.csv", gzip.compress(CSV.encode()), "text/plain")}},
    "form parquet": {"files": {"file": ("fleet", parquet())}, "data": {"name": "fleet.csv"}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_every_form_of_upload(client: httpx.AsyncClient, form: dict[str, Any]) -> None:
    params = {} if "files" in form else {"name": "fleet.csv"}
    answer = await client.post("/datasets", params=params, **form)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert answer.headers["location"] == f"/datasets/{body['id']}"
    assert (await client.get(answer.headers["location"])).json() == body
    sent = form["content"] if "content" in form else form["files"]["file"][1]
    sha256 = hashlib.sha256(sent if isinstance(sent, bytes) else sent.encode()).hexdigest()
    assert {name: body[name] for name in body.keys() - {"id", "created_at", "quality"}} == {
        "name": "fleet.csv",
        "servers": 2,
        "rows": 40,
        "metrics": ["cpu_p95"],
        "units": {"cpu_p95": "percent"},
        "attributes": ["region"],
        "known_ahead": [],
        "start": "2024-01-01",
        "end": "2024-01-20",
        "frequency": "D",
        "sha256": sha256,
        "parent_id": None,
    }
    assert body["quality"] == {"missing": 0, "gaps": 0, "constant_servers": 0, "short_servers": 0, "warnings": []}
    assert body["created_at"].endswith("Z")


async def test_hourly_times_end_in_z(client: httpx.AsyncClient) -> None:
    body = await made(
        client, "server_id,timestamp,x\n" + "".join(f"a,2024-01-01T{h:02}:00:00+02:00,1\n" for h in range(24))
    )
    assert (body["start"], body["end"], body["frequency"]) == ("2023-12-31T22:00:00Z", "2024-01-01T21:00:00Z", "H")


@pytest.mark.parametrize("where", ["query", "form"])
async def test_the_schema_is_heard(client: httpx.AsyncClient, where: str) -> None:
    schema = json.dumps({"units": {"load": "ratio"}, "attributes": ["rack"], "known_ahead": ["promo"]})
    content = "server_id,timestamp,load,rack,promo\n" + "".join(f"a,{day},0.5,7,1\n" for day in DAYS)
    if where == "query":
        answer = await client.post("/datasets", content=content, headers=CSV_TYPE, params={"schema": schema})
    else:
        answer = await client.post("/datasets", files={"file": ("x", content)}, data={"schema": schema})
    body = answer.json()
    assert (body["units"], body["attributes"], body["known_ahead"]) == ({"load": "ratio"}, ["rack"], ["promo"])


@pytest.mark.parametrize("name", ["../../etc/passwd", "<script>alert(1)</script>", "=cmd|' /C calc'!A0"])
async def test_a_file_name_is_only_metadata(client: httpx.AsyncClient, settings: Settings, name: str) -> None:
    answer = await client.post("/datasets", files={"file": (name, CSV)})
    assert answer.status_code == 201
    assert answer.json()["name"] == name
    assert {path.name for path in kept(settings)} == {f"{answer.json()['id']}.parquet"}


async def test_odd_server_ids_are_inert(client: httpx.AsyncClient) -> None:
    body = await made(client, HEADER + "".join(f"{name},{day},1,x\n" for name in ("<script>", "=cmd") for day in DAYS))
    answer = await client.get(f"/datasets/{body['id']}/canvas.csv", params={"metric": "cpu_p95"})
    ids = {line.split(",")[0] for line in answer.text.splitlines()[1:]}
    assert ids == {'"<script>"', '"=cmd"'}


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> dict[str, Any]:
    return {"content": b"".join(parts) + end, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


def part(name: bytes, content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + content + b"\r\n"


FILE = part(b"file", CSV.encode())
PLACE = {"bucket": "somebody-elses", "key": "x.csv"}
JSON_TYPE = {"Content-Type": "application/json"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no type": ({"content": CSV}, 415, "unsupported-media-type"),
    "another type": ({"content": CSV, "headers": {"Content-Type": "image/png"}}, 415, "unsupported-media-type"),
    "empty": ({"content": b"", "headers": CSV_TYPE}, 422, "empty-file"),
    "header only": ({"content": HEADER, "headers": CSV_TYPE}, 422, "no-rows"),
    "a fault with its row": ({"content": CSV + "c,2024-01-01,much,x\n", "headers": CSV_TYPE}, 422, "validation"),
    "over the limit": ({"content": bytes(2 << 20), "headers": CSV_TYPE}, 413, "too-large"),
    "a form over the limit": ({"files": {"file": ("x", bytes(2 << 20))}}, 413, "too-large"),
    "announced over the limit": ({"content": bytes(6 << 20), "headers": CSV_TYPE}, 413, "too-large"),
    "gzip bomb": ({"content": gzip.compress(bytes(20 << 20)), "headers": CSV_TYPE}, 413, "too-large"),
    "too many columns": (
        {"content": ",".join(["server_id", "timestamp", *map(str, range(60))]), "headers": CSV_TYPE},
        413,
        "too-large",
    ),
    "a form cut short": (multipart(FILE, end=b""), 400, "incomplete-body"),
    "a form cut in its file": (multipart(FILE[:300], end=b""), 400, "incomplete-body"),
    "no form": (
        {"content": b"hello", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        400,
        "bad-request",
    ),
    "a form without a boundary": (
        {"content": FILE, "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "bad-request",
    ),
    "a form without a file": (multipart(part(b"name", b"x")), 422, "validation"),
    "two files": (multipart(FILE, FILE), 422, "validation"),
    "an unknown field": (multipart(FILE, part(b"role_arn", b"x")), 422, "unknown-field"),
    "an unknown parameter": ({"content": CSV, "headers": CSV_TYPE, "params": {"format": "csv"}}, 422, "unknown-field"),
    "a huge field": (multipart(part(b"schema", b"x" * (2 << 20))), 413, "too-large"),
    "a name with a line break": (multipart(part(b"name", b"a\nb"), FILE), 422, "validation"),
    "an endless name": (multipart(part(b"name", b"n" * 300), FILE), 422, "validation"),
    "a name that is no text": (multipart(part(b"name", b"\xff"), FILE), 422, "encoding"),
    "a schema that is no JSON": ({"content": CSV, "headers": CSV_TYPE, "params": {"schema": "{"}}, 422, "validation"),
    "a schema of another form": (
        multipart(part(b"schema", b'{"units": {"cpu_p95": "furlongs"}}'), FILE),
        422,
        "validation",
    ),
    "a schema too deep": (multipart(part(b"schema", b"[" * 20_000), FILE), 422, "validation"),
    "an unknown part of the schema": (
        {"content": CSV, "headers": CSV_TYPE, "params": {"schema": '{"unit": {}}'}},
        422,
        "unknown-field",
    ),
    "malformed JSON": ({"content": "{", "headers": JSON_TYPE}, 400, "bad-request"),
    "JSON too deep": ({"content": "[" * 20_000, "headers": JSON_TYPE}, 400, "bad-request"),
    "JSON without s3": ({"json": {"name": "x"}}, 422, "validation"),
    "JSON with a role": ({"json": {"s3": PLACE, "role_arn": "x"}}, 422, "unknown-field"),
    "another bucket": ({"json": {"s3": PLACE}}, 403, "s3-not-allowed"),
    "an address": ({"json": {"s3": "http://169.254.169.254/"}}, 422, "s3-uri"),
    "an address as bucket": ({"json": {"s3": {"bucket": "http://169.254.169.254", "key": "x"}}}, 422, "s3-uri"),
    "a host as bucket": ({"json": {"s3": {"bucket": "169.254.169.254", "key": "x"}}}, 422, "s3-uri"),
    "an address as key": ({"json": {"s3": {"bucket": "mine", "key": "s3://other/x"}}}, 422, "s3-uri"),
}


@pytest.mark.parametrize(("request_", "status", "kind"), REFUSED.values(), ids=REFUSED)
async def test_refused_and_nothing_kept(
    client: httpx.AsyncClient, settings: Settings, request_: dict[str, Any], status: int, kind: str
) -> None:
    answer = await client.post("/datasets", **request_)
    assert (answer.status_code, slug(answer)) == (status, kind), answer.text
    await nothing_is_kept(client, settings)


async def test_over_the_limit_without_a_length(client: httpx.AsyncClient, settings: Settings) -> None:
    """Chunked, so that nothing announces the size; the service stops reading long before the end."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 40:
            sent += 1 << 16
            yield bytes(1 << 16)

    answer = await client.post("/datasets", content=endless(), headers=CSV_TYPE)
    assert (answer.status_code, slug(answer)) == (413, "too-large")
    assert sent < 1 << 30
    await nothing_is_kept(client, settings)


async def test_complaints_name_their_rows(client: httpx.AsyncClient) -> None:
    answer = await client.post("/datasets", content=CSV + "c,2024-01-01,much,x\nc,2024-01-01,inf,x\n", headers=CSV_TYPE)
    assert slug(answer) == "validation"
    found = {error["code"]: (error["pointer"], error["rows"]) for error in answer.json()["errors"]}
    assert found == {
        "text-in-number": ("/file/cpu_p95", [41]),
        "non-finite": ("/file/cpu_p95", [42]),
        "duplicate-timestamp": ("/file/timestamp", [42]),
    }


async def test_a_client_that_goes_away_leaves_nothing(server: str, tmp_path: Path) -> None:
    """Over a socket: half a body, then silence for good. A retry works, and finds no trace of the first."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = (
            f"POST /datasets HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: text/csv\r\nContent-Length: 9999\r\n\r\n"
        )
        raw.sendall(head.encode() + CSV.encode())
    async with httpx.AsyncClient(base_url=server, timeout=60) as client:
        body = await made(client)
        assert [item["id"] for item in (await client.get("/datasets")).json()["items"]] == [body["id"]]
    assert {path.name for path in (tmp_path / "datasets").rglob("*.parquet")} == {f"{body['id']}.parquet"}


async def test_the_next_upload_sweeps_what_a_dead_process_left(client: httpx.AsyncClient, settings: Settings) -> None:
    left = settings.data_dir / "uploads" / uuid4().hex
    left.mkdir(parents=True)
    (left / "upload").write_text(CSV)
    await made(client)
    assert not left.exists()


async def test_lists_are_paged_newest_first(client: httpx.AsyncClient) -> None:
    ids = [(await made(client, name=str(number)))["id"] for number in range(3)]
    first = (await client.get("/datasets", params={"limit": 2})).json()
    assert [item["id"] for item in first["items"]] == ids[:0:-1]
    second = (await client.get("/datasets", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([item["id"] for item in second["items"]], second["next_cursor"]) == (ids[:1], None)


async def test_a_dataset_that_a_forecast_uses_stays(client: httpx.AsyncClient, settings: Settings) -> None:
    body = await made(client)
    asked = {"dataset_id": body["id"], "metric": "cpu_p95", "horizon": 3, "models": ["seasonal_naive"]}
    forecast = (await client.post("/forecasts", json=asked)).json()
    refused = await client.delete(f"/datasets/{body['id']}")
    assert (refused.status_code, slug(refused)) == (409, "conflict")
    await client.post(f"/forecasts/{forecast['id']}/cancel")
    assert (await client.delete(f"/forecasts/{forecast['id']}")).status_code == 204
    assert (await client.delete(f"/datasets/{body['id']}")).status_code == 204
    assert (await client.get(f"/datasets/{body['id']}")).status_code == 404
    assert (await client.delete(f"/datasets/{body['id']}")).status_code == 404
    assert kept(settings) == []


async def test_newer_rows_make_a_new_dataset(client: httpx.AsyncClient) -> None:
    first = await made(client)
    newer = HEADER + "a,2024-01-21,50,north\nc,2024-01-21,50,south\n"
    answer = await client.post(f"/datasets/{first['id']}/versions", files={"file": ("day 21", newer)})
    assert answer.status_code == 201, answer.text
    second = answer.json()
    assert (second["parent_id"], second["rows"], second["servers"], second["end"]) == (first["id"], 42, 3, "2024-01-21")
    assert (await client.get(f"/datasets/{first['id']}")).json() == first
    assert (await client.delete(f"/datasets/{first['id']}")).status_code == 204
    assert (await client.get(f"/datasets/{second['id']}")).json() == second | {"parent_id": None}


async def test_newer_rows_of_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/datasets/{uuid4()}/versions", content=CSV, headers=CSV_TYPE)
    assert (answer.status_code, slug(answer)) == (404, "not-found")


async def test_the_file_for_canvas(client: httpx.AsyncClient) -> None:
    body = await made(client, CSV + "c,2024-01-01,,x\n")
    answer = await client.get(f"/datasets/{body['id']}/canvas.csv", params={"metric": "cpu_p95"})
    assert answer.headers["content-type"].startswith("text/csv")
    table = pacsv.read_csv(pa.BufferReader(answer.content))
    assert table.column_names[:3] == ["item_id", "timestamp", "target_value"]
    assert {"weekday", "holiday", "end_of_quarter"} <= set(table.column_names[3:])
    assert table.column("item_id").to_pylist() == ["a"] * 20 + ["b"] * 20 + ["c"]
    assert [str(day) for day in table.column("timestamp").to_pylist()] == DAYS * 2 + DAYS[:1]
    assert table.column("target_value").to_pylist() == [*range(40, 60), *range(40, 60), None]
    assert table.column("weekday").to_pylist()[:7] == list(range(7))
    assert not np.isnan(table.column("day_of_year").to_numpy()).any()


async def test_no_file_for_canvas_without_the_metric(client: httpx.AsyncClient) -> None:
    body = await made(client)
    for params, status in (({"metric": "mem"}, 422), ({}, 422), ({"metric": "cpu_p95", "bom": "1"}, 422)):
        assert (await client.get(f"/datasets/{body['id']}/canvas.csv", params=params)).status_code == status
    assert (await client.get(f"/datasets/{uuid4()}/canvas.csv", params={"metric": "cpu_p95"})).status_code == 404


async def test_a_store_that_cannot_take_it(client: httpx.AsyncClient, settings: Settings) -> None:
    """Half-way through, the file is checked and has no place to go: nothing is kept of it, and the next one is."""
    stored = settings.data_dir / "datasets"
    await made_and_gone(client)
    assert kept(settings) == []
    shutil.rmtree(stored)
    stored.write_text("no folder")
    answer = await client.post("/datasets", content=CSV, headers=CSV_TYPE)
    assert answer.status_code >= 500
    stored.unlink()
    await nothing_is_kept(client, settings)
    await made(client)


async def made_and_gone(client: httpx.AsyncClient) -> None:
    assert (await client.delete(f"/datasets/{(await made(client))['id']}")).status_code == 204

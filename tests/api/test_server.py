"""The service over a real socket: what an in-process call cannot show."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

HEADROOM = Path(sys.executable).with_name("headroom")


def test_a_key_made_on_the_command_line_closes_a_running_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("HEADROOM_DATA_DIR", str(tmp_path))
    assert httpx.get(f"{server}/metrics").status_code == 200
    made = subprocess.run(
        [HEADROOM, "keys", "create", "planner", "--scopes", "read", "--json"], check=True, capture_output=True
    )
    secret = json.loads(made.stdout)["key"]
    assert httpx.get(f"{server}/metrics").status_code == 401
    assert httpx.get(f"{server}/metrics", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    listed = subprocess.run([HEADROOM, "keys", "list"], check=True, capture_output=True, text=True).stdout
    assert "planner" in listed
    assert secret not in listed


def test_a_foreign_name_and_an_endless_body_are_refused(server: str) -> None:
    port = urlsplit(server).port
    with httpx.Client(base_url=server) as client:
        assert client.get("/healthz", headers={"Host": f"rebound.example:{port}"}).status_code == 403
        assert client.get("/healthz", headers={"Host": f"localhost:{port}"}).status_code == 200
        assert client.get("/healthz", headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/healthz", headers={"Origin": server}).status_code == 200

    def chunks() -> Iterator[bytes]:
        for _ in range(1_000):
            yield b" " * 65_536

    try:
        answer = httpx.post(f"{server}/session", content=chunks(), headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.RemoteProtocolError):
        return  # the server hung up on us before we looked for its answer
    assert answer.status_code == 413


def test_a_server_without_keys_does_not_start_on_an_open_address(tmp_path: Path, database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "HEADROOM_DATA_DIR": str(tmp_path), "HEADROOM_HOST": "0.0.0.0"}
    ended = subprocess.run([HEADROOM, "serve"], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "headroom keys create" in ended.stderr
    assert "Traceback" not in ended.stderr

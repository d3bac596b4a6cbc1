"""What is sent, how it is signed, and where nothing is sent to: against real receivers, plain and TLS."""

import base64
import hashlib
import hmac
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.errors import CannotStart, WebhookAddress
from app.services.webhooks import Allowed, Webhooks, new_secret, secret_bytes
from tests.receiver import Received, receiver

DOCS = (Path(__file__).parents[2] / "docs/alerts.md").read_text()
LOCAL = Allowed.of(["127.0.0.1"])
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def shown(language: str, word: str) -> str:
    """The block of docs/alerts.md in this language that has this word."""
    return next(block for block in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if word in block)


def resolving(*answers: Sequence[str]) -> Any:
    """A resolver that gives one answer after the other, whatever the name; it fails when asked too often."""
    waiting = list(answers)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return waiting.pop(0)

    return resolve


def signature(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    """By the convention's own words, with nothing of ours nor of the library that signs."""
    key = base64.b64decode(secret.split("_", 1)[1])
    mac = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mac).decode()


def verified(secret: str, got: Received) -> bool:
    headers = got.headers
    signed = signature(secret, headers["webhook-id"], headers["webhook-timestamp"], got.body)
    return headers["webhook-signature"] == signed


def test_the_convention_s_own_example() -> None:
    signed = signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", BODY)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_both_ways_of_the_docs_verify_what_is_sent(tmp_path: Path) -> None:
    secret = new_secret()
    with receiver() as there:
        outcome = await Webhooks(LOCAL).send(there.url, secret, "6d0f", BODY)
    assert outcome.is_delivered
    (got,) = there.received
    assert (got.path, got.body, got.headers["content-type"]) == ("/hook", BODY, "application/json")
    assert got.headers["webhook-id"] == "6d0f"

    python: dict[str, Any] = {}
    exec(shown("python", "is_ours"), python)  # the page is what is tested
    is_ours: Callable[..., bool] = python["is_ours"]
    assert is_ours(secret, got.headers, got.body)
    assert not is_ours(secret, got.headers, got.body + b" ")
    assert not is_ours(new_secret(), got.headers, got.body)

    (tmp_path / "body.json").write_bytes(got.body)
    told = {"SECRET": secret, "WEBHOOK_ID": "6d0f", "WEBHOOK_TIMESTAMP": got.headers["webhook-timestamp"]}
    assert f"v1,{ran_in_a_shell(shown('sh', 'openssl'), tmp_path, told)}" == got.headers["webhook-signature"]


def ran_in_a_shell(lines: str, folder: Path, variables: dict[str, str]) -> str:
    environment = os.environ | variables
    ran = subprocess.run(["sh", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_a_secret_that_is_made_is_one_of_the_convention() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert len(secret_bytes(one)) == 32


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_*", "whsec_" + "AAAA" * 7, "whsec_" + "AAAA" * 22],
)
def test_what_is_no_secret_says_so(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64 bytes"):
        secret_bytes(secret)


NOT_REACHED = [
    "https://127.0.0.1/",
    "https://127.0.0.1:8443/hook",
    "https://localhost/",
    "https://LOCALHOST./",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.1.2.3/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://192.0.2.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[fe80::1]/",
    "https://[fec0::1]/",
    "https://[fd00::1]/",
    "https://[ff02::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:1:2:3:4:f5ff:fffe]/",
    "http://1.1.1.1/",
    "https://user@1.1.1.1/",
    "https://user:password@1.1.1.1/",
    "https://1.1.1.1/#there",
    "https://nowhere.invalid/",
    "https:///hook",
    "https://",
    "https://[::1/",
    "https://1.1.1.1:99999/",
    "ftp://1.1.1.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/",
    "https://1.1.1.1/\r\nX-Injected: 1",
    "1.1.1.1/hook",
    "//1.1.1.1/hook",
    "https://1.1.1.1/" + "a" * 2_000,
    "https://\udcff.example/",
    "https://xn--\x00.example/",
]


@pytest.mark.parametrize("url", NOT_REACHED)
async def test_what_is_not_to_be_reached_is_refused_and_not_reached(url: str) -> None:
    webhooks = Webhooks(Allowed.of([]))
    with pytest.raises(WebhookAddress) as refused:
        await webhooks.check(url)
    assert refused.value.slug == "webhook-address"
    assert refused.value.errors[0].pointer == "/url"
    outcome = await webhooks.send(url, SECRET, "1", BODY)
    assert (outcome.status, outcome.is_delivered) == (None, False)
    assert outcome.problem


@pytest.mark.parametrize("url", ["https://1.1.1.1/hook", "https://[2606:4700:4700::1111]/?a=b", "https://1.1.1.1:8443"])
async def test_an_address_of_the_internet_will_do(url: str) -> None:
    await Webhooks(Allowed.of([])).check(url)


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    webhooks = Webhooks(Allowed.of([]), resolve=resolving(["1.1.1.1", "10.0.0.1"]))
    with pytest.raises(WebhookAddress, match="not at an address of the internet"):
        await webhooks.check("https://two.example/")


async def test_a_name_that_moves_inside_later_is_refused_then() -> None:
    with receiver() as there:
        webhooks = Webhooks(Allowed.of([]), resolve=resolving(["1.1.1.1"], ["127.0.0.1"]))
        await webhooks.check(f"https://moving.example:{there.port}/")
        outcome = await webhooks.send(f"https://moving.example:{there.port}/", SECRET, "1", BODY)
    assert outcome.problem == "the host 'moving.example' is not at an address of the internet"
    assert there.received == []


async def test_what_was_judged_is_what_is_connected_to() -> None:
    """One look at the name, which no other resolver knows; the receiver is told the name all the same."""
    with receiver() as there:
        webhooks = Webhooks(Allowed.of(["only.example"]), resolve=resolving(["127.0.0.1"]))
        assert (await webhooks.send(f"http://only.example:{there.port}/x?y=1", SECRET, "1", BODY)).is_delivered
    assert [(one.path, one.headers["host"]) for one in there.received] == [("/x?y=1", f"only.example:{there.port}")]


async def test_the_next_address_is_tried_where_nobody_listens() -> None:
    with receiver() as there:
        webhooks = Webhooks(Allowed.of(["127.0.0.0/8"]), resolve=resolving(["127.0.0.9", "127.0.0.1"]))
        assert (await webhooks.send(f"http://two.example:{there.port}/", SECRET, "1", BODY)).is_delivered


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of receiver.example, signed by itself, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver.example")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("receiver.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "receiver.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


async def test_the_certificate_must_be_that_of_the_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiver(certificate=str(certificate)) as there:

        async def sent(host: str) -> str | None:
            webhooks = Webhooks(Allowed.of(["127.0.0.1"]), resolve=resolving(["127.0.0.1"]))
            return (await webhooks.send(f"https://{host}:{there.port}/", SECRET, "1", BODY)).problem

        assert await sent("receiver.example") is None
        assert await sent("other.example") == "could not be reached (ConnectError)"
    assert len(there.received) == 1


async def test_a_redirect_is_not_followed() -> None:
    with receiver(200) as inside, receiver(307) as there:
        there.location = inside.url
        outcome = await Webhooks(LOCAL).send(there.url, SECRET, "1", BODY)
    assert (outcome.status, outcome.is_delivered) == (307, False)
    assert outcome.problem == "answered 307, a redirect, which is not followed"
    assert inside.received == []


async def test_a_receiver_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(silent=True) as there:
        outcome = await Webhooks(LOCAL, at_most=0.3).send(there.url, SECRET, "1", BODY)
        assert len(there.received) == 1
    assert (outcome.status, outcome.problem) == (None, "no answer within 0.3 s")


async def test_the_environment_s_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as there:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert (await Webhooks(LOCAL).send(there.url, SECRET, "1", BODY)).is_delivered
    assert proxy.received == []


@pytest.mark.parametrize("word", ["10.1.0.0/33", "https://host", "a b", "10.1.0.1/16"])
def test_what_cannot_be_allowed_says_so(word: str) -> None:
    with pytest.raises(CannotStart, match="neither a host name nor a network"):
        Allowed.of([word])


async def test_each_attempt_is_signed_anew() -> None:
    secret = new_secret()
    with receiver(500, 200) as there:
        webhooks = Webhooks(LOCAL)
        first, second = [await webhooks.send(there.url, secret, "same", BODY) for _ in range(2)]
    assert (first.problem, second.problem) == ("answered 500", None)
    assert all(verified(secret, one) for one in there.received)

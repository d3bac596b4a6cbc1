"""Webhooks: signed after the Standard Webhooks convention, and sent to no address that is not meant to be reached.

    webhook-id: 6d0f…                 the same for every attempt at one delivery
    webhook-timestamp: 1700000000     of the attempt
    webhook-signature: v1,<base64 of HMAC-SHA256(secret, "{id}.{timestamp}.{body}")>

A name is resolved once per attempt, each address that it has is judged, and the connection goes to one that was judged:
a name that points elsewhere a moment later changes nothing. Redirects are not followed, proxies not used.
It leaves out what is sent and when it is tried again (services/alerts.py).
"""

import asyncio
import base64
import ipaddress
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from app.errors import CannotStart, Complaint, WebhookAddress

PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
"""How long a secret may be, by the convention."""

MAX_URL = 2_000
MAX_BODY = 256 << 10

_LIMITS = httpx.Timeout(10.0, connect=3.0)
AT_MOST = 20.0
"""Seconds for one attempt in all: a receiver that trickles its answer does not hold a sender."""

_ADDRESSES_TRIED = 2

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last four bytes are the IPv4 address that is reached."""

_OF_A_CLOUD = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Global by its number, yet inside a provider's network: the host agent of Azure."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, in the order to try them. Raises OSError where it has none."""


class Refused(Exception):
    """The address may not be reached, or is none; the message says why, for the person who gave it."""


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt: the status that was answered, or why there was none."""

    status: int | None
    problem: str | None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more of this."""
        return self.status == 410


@dataclass(frozen=True)
class Allowed:
    """Hosts and networks that may be reached although they are private, also over plain HTTP."""

    hosts: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Allowed":
        """Raises CannotStart for what is neither a host name nor a network."""
        hosts, networks = set(), []
        for word in words:
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError:
                if not set(word) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"):
                    raise CannotStart(
                        f"HEADROOM_WEBHOOK_ALLOW: {word!r} is neither a host name nor a network such as 10.1.0.0/16."
                    ) from None
                hosts.add(_plain(word))
        return cls(frozenset(hosts), tuple(networks))

    def covers(self, host: str, address: Address) -> bool:
        return host in self.hosts or any(address in network for network in self.networks)


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_bytes(secret: str) -> bytes:
    """The bytes that sign. Raises ValueError for what is no secret of the convention, which the library would take."""
    wrong = f"must be {PREFIX} and the base64 of {SECRET_BYTES.start} to {SECRET_BYTES.stop - 1} bytes"
    if not secret.startswith(PREFIX):
        raise ValueError(wrong)
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise ValueError(wrong) from None
    if len(key) not in SECRET_BYTES:
        raise ValueError(wrong)
    return key


class Webhooks:
    """The one way out of this service to addresses that callers name."""

    def __init__(self, allowed: Allowed, *, resolve: Resolve | None = None, at_most: float = AT_MOST) -> None:
        self._allowed = allowed
        self._resolve = resolve or _resolved
        self._at_most = at_most
        self._trusted: ssl.SSLContext | None = None

    async def check(self, url: str) -> None:
        """Raises WebhookAddress for a URL that nothing would be sent to."""
        try:
            async with asyncio.timeout(self._at_most):
                await self._places(_parsed(url))
        except (Refused, TimeoutError) as error:
            refused = error if isinstance(error, Refused) else "the name of the host was not resolved in time"
            detail = f"{refused}. Give an https:// address that can be reached from the internet, or have whoever runs "
            detail += "Headroom list the host in HEADROOM_WEBHOOK_ALLOW."
            raise WebhookAddress(detail, errors=[Complaint("/url", "webhook-address", str(refused))]) from None

    async def send(self, url: str, secret: str, webhook_id: str, body: bytes) -> Outcome:
        """One attempt. Whatever goes wrong is an outcome, in words that name neither URL nor secret."""
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "Headroom",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(webhook_id, now, body.decode()),
        }
        try:
            async with asyncio.timeout(self._at_most):
                return await self._sent(url, headers, body)
        except Refused as refused:
            return Outcome(None, str(refused))
        except TimeoutError:
            return Outcome(None, f"no answer within {self._at_most:g} s")
        except httpx.TimeoutException as error:
            return Outcome(None, f"timed out ({type(error).__name__})")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            return Outcome(None, f"could not be reached ({type(error).__name__})")

    async def _sent(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        asked = _parsed(url)
        places = (await self._places(asked))[:_ADDRESSES_TRIED]
        async with httpx.AsyncClient(
            verify=self._trust(), timeout=_LIMITS, follow_redirects=False, trust_env=False
        ) as client:
            for place in places:
                request = client.build_request(
                    "POST",
                    asked.copy_with(host=str(place)),
                    content=body,
                    headers={**headers, "host": asked.netloc.decode("ascii")},
                    # The certificate must be that of the name, not of the address that it has just now.
                    extensions={"sni_hostname": asked.raw_host.decode("ascii")},
                )
                try:
                    answer = await client.send(request, stream=True)
                except httpx.ConnectError:
                    if place == places[-1]:
                        raise
                    continue
                await answer.aclose()  # what a receiver says beside its status is not read
                said = f"answered {answer.status_code}"
                if answer.is_redirect:
                    said += ", a redirect, which is not followed"
                return Outcome(answer.status_code, None if answer.is_success else said)
        raise AssertionError("a name without an address is refused")

    async def _places(self, url: httpx.URL) -> list[Address]:
        """The addresses to connect to, all of which may be reached. Raises Refused."""
        host = _plain(url.host)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise Refused(f"the host {host!r} has no address") from None
        addresses = list(dict.fromkeys(map(ipaddress.ip_address, found)))
        if not addresses:
            raise Refused(f"the host {host!r} has no address")
        for address in addresses:
            if self._allowed.covers(host, address):
                continue
            if not is_public(address):
                # Not which one: that would tell a caller what names inside stand for.
                raise Refused(f"the host {host!r} is not at an address of the internet")
            if url.scheme != "https":
                raise Refused(f"the host {host!r} may only be reached over https")
        return addresses

    def _trust(self) -> ssl.SSLContext:
        """Made once: to load the authorities takes longer than to send. SSL_CERT_FILE adds one's own."""
        if self._trusted is None:
            self._trusted = httpx.create_ssl_context()
        return self._trusted


async def _resolved(host: str, port: int) -> Sequence[str]:
    """As the system does, which also reads numbers in other forms: 127.1, 0x7f000001, 2130706433."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether it is an address of the internet, however it is written: also inside an IPv6 address that carries it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local:
            return False
        if (carried := _carried(address)) is not None:
            return is_public(carried)
    return address.is_global and not (address.is_multicast or address.is_reserved or address in _OF_A_CLOUD)


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is reached by way of this one: mapped, translated (NAT64), 6to4 or Teredo."""
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _parsed(url: str) -> httpx.URL:
    """Raises Refused for what is no plain http(s) URL."""
    if len(url) > MAX_URL:
        raise Refused(f"the URL is longer than {MAX_URL:,} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise Refused("the URL cannot be read") from None
    if parsed.scheme not in ("http", "https"):
        raise Refused("the URL must begin with https://")
    if parsed.userinfo:
        raise Refused("the URL must not hold a user name or a password")
    if not parsed.host:
        raise Refused("the URL names no host")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise Refused("the URL names no port that there is")
    if parsed.fragment:
        raise Refused("the URL must not hold a #fragment")
    return parsed


def _plain(host: str) -> str:
    """A name is the same with and without the dot at its end, in whatever case."""
    return host.lower().rstrip(".")

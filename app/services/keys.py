"""Who may ask: keys are made, listed, revoked and checked here.

Keys are enforced as soon as one exists, and from then on for good: revoking the last one locks the service rather than
opening it, and `headroom keys create` on its machine is the way back in.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from app.domain.keys import ANYONE, SHOWN, ApiKey, Principal, digest, new_secret, scopes_of
from app.errors import CannotStart, Invalid, NotFound, Unauthenticated
from app.storage.keys import KeyRows

SESSION = timedelta(hours=12)
"""How long a page stays signed in."""


class Keys:
    def __init__(self, rows: KeyRows) -> None:
        self._rows = rows
        self._enforced = False

    async def enforced(self) -> bool:
        """Whether callers need a key. Once true it stays true, so a yes is remembered and a no asked again."""
        self._enforced = self._enforced or await self._rows.any()
        return self._enforced

    async def create(self, name: str, scopes: Iterable[str]) -> tuple[ApiKey, str]:
        """A new key and its secret, which can never be shown again."""
        if not name.strip() or not name.isprintable() or len(name) > 200:
            raise Invalid("A key's name is 1 to 200 printable characters.")
        granted = scopes_of(scopes)
        secret = new_secret()
        key = ApiKey(uuid4(), name.strip(), secret[:SHOWN], digest(secret), granted, datetime.now(UTC))
        await self._rows.add(key)
        self._enforced = True
        return key, secret

    async def list(self) -> Sequence[ApiKey]:
        """Every key ever made, newest first."""
        return await self._rows.all()

    async def revoke(self, which: str) -> ApiKey:
        """End the one live key whose id or prefix (in whole) is `which`; its sessions end with it."""
        found = [key for key in await self._rows.all() if key.is_live and which in (str(key.id), key.prefix)]
        if len(found) != 1 or not await self._rows.revoke(found[0].id):
            count = "No live key has" if not found else f"{len(found)} live keys have"
            raise NotFound(f"{count} the id or prefix {which}. `headroom keys list` shows them.")
        return found[0]

    async def authenticate(self, secret: str | None, session: str | None) -> Principal:
        """Who sent this key, or else holds this session. Raises Unauthenticated."""
        if not await self.enforced():
            return ANYONE
        if secret is not None:
            key = await self._rows.by_hash(digest(secret))
            if key is not None and key.is_live and key.matches(secret):
                return Principal(str(key.id), key.scopes)
            raise Unauthenticated("This API key is unknown or revoked. `headroom keys create` makes one.")
        if session is not None:
            key = await self._rows.by_session(digest(session))
            if key is not None and key.is_live:
                return Principal(str(key.id), key.scopes)
            raise Unauthenticated("Your session has ended. Sign in again with your API key.")
        raise Unauthenticated("Send your API key as `Authorization: Bearer <key>`. `headroom keys create` makes one.")

    async def open_session(self, secret: str) -> str:
        """A random token that stands for the key for `SESSION`. Raises Unauthenticated for a bad key."""
        principal = await self.authenticate(secret, None)
        token = new_secret()
        if principal.key_id:
            await self._rows.add_session(digest(token), UUID(principal.key_id), SESSION)
        return token

    async def close_session(self, token: str) -> None:
        await self._rows.end_session(digest(token))

    async def check_exposure(self, host: str) -> None:
        """Refuse to listen where others can reach us while anyone may do anything. Raises CannotStart."""
        if not is_loopback(host) and not await self.enforced():
            raise CannotStart(
                f"Without API keys Headroom listens on a loopback address only, and {host or 'every address'} is none. "
                "Make a key first (`headroom keys create NAME --scopes read write`), or set HEADROOM_HOST=127.0.0.1."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: 127.0.0.0/8, ::1 or localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""API keys and page sessions in PostgreSQL: of either secret only its SHA-256. Rows of keys are never deleted."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.domain.keys import ApiKey, Scope
from app.storage.database import Database
from app.storage.tables import api_keys, sessions

_ANY = sa.select(sa.exists(sa.select(api_keys.c.id)))


class KeyRows:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def any(self) -> bool:
        """Whether a key was ever made, also when it has been revoked since."""
        async with self._database.connect() as connection:
            return bool(await connection.scalar(_ANY))

    async def add(self, key: ApiKey) -> None:
        async with self._database.begin() as connection:
            await connection.execute(
                api_keys.insert().values(
                    id=key.id,
                    name=key.name,
                    prefix=key.prefix,
                    hash=key.hash,
                    scopes=sorted(key.scopes),
                    created_at=key.created_at,
                )
            )

    async def by_hash(self, hash: bytes) -> ApiKey | None:
        async with self._database.connect() as connection:
            rows = await connection.execute(sa.select(api_keys).where(api_keys.c.hash == hash))
            return next(map(_key, rows), None)

    async def all(self) -> Sequence[ApiKey]:
        """Newest first."""
        async with self._database.connect() as connection:
            rows = await connection.execute(
                sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc())
            )
            return [_key(row) for row in rows]

    async def revoke(self, key: UUID) -> bool:
        """Ends a live key and its sessions; whether there was one."""
        async with self._database.begin() as connection:
            await connection.execute(sessions.delete().where(sessions.c.key_id == key))
            ended = await connection.execute(
                api_keys.update()
                .where(api_keys.c.id == key, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=sa.func.now())
            )
            return ended.rowcount == 1

    async def add_session(self, hash: bytes, key: UUID, lifetime: timedelta) -> None:
        """Keep a session by the database's clock, and forget those that have run out."""
        async with self._database.begin() as connection:
            await connection.execute(sessions.delete().where(sessions.c.expires_at < sa.func.now()))
            await connection.execute(
                sessions.insert().values(hash=hash, key_id=key, expires_at=sa.func.now() + lifetime)
            )

    async def by_session(self, hash: bytes) -> ApiKey | None:
        """The key that a session stands for, while the session lasts."""
        live = sa.select(api_keys).join(sessions).where(sessions.c.hash == hash, sessions.c.expires_at > sa.func.now())
        async with self._database.connect() as connection:
            return next(map(_key, await connection.execute(live)), None)

    async def end_session(self, hash: bytes) -> None:
        async with self._database.begin() as connection:
            await connection.execute(sessions.delete().where(sessions.c.hash == hash))


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        hash=bytes(row.hash),
        scopes=frozenset(map(Scope, row.scopes)),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )

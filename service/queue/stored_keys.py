"""API keys in the database: the digests of their secrets, and who may do what with them until when."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, insert, or_, select, update

from service.access.caller import Scope
from service.access.keys import ApiKey
from service.errors import NotFound
from service.jobs.job import utc_now
from service.queue import audit_rows, database
from service.queue.tables import api_keys

USED_EVERY = timedelta(minutes=1)
"""How often the use of a key is written down at most: not a write for each request."""


class StoredKeys:
    """The stored API keys. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def add_key(self, key: ApiKey) -> None:
        """Stores a new key."""
        row = {column.name: getattr(key, column.name) for column in api_keys.columns}
        with database.writing(self._engine) as connection:
            connection.execute(insert(api_keys).values(row))
            audit_rows.record(connection, f"/v1/keys/{key.id}")

    def find_key(self, key_id: str) -> ApiKey | None:
        """Returns the key with this id; None if there is none."""
        with database.reading(self._engine) as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        return None if row is None else key_of(row)

    def list_keys(self) -> list[ApiKey]:
        """Returns all keys, also those that open nothing any more, newest first."""
        with database.reading(self._engine) as connection:
            query = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
            return [key_of(row) for row in connection.execute(query)]

    def revoke_key(self, key_id: str) -> ApiKey:
        """Ends a key at once, and returns it. Idempotent: the first time is kept. Raises NotFound."""
        statement = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        with database.writing(self._engine) as connection:
            if connection.execute(statement.values(revoked_at=utc_now())).rowcount:
                audit_rows.record(connection)
        if (key := self.find_key(key_id)) is None:
            raise NotFound(f"no key {key_id!r}: syncbn keys list shows the ids of all keys")
        return key

    def note_use(self, key: ApiKey, now: datetime) -> None:
        """Writes down that the key was used now. Does nothing if that was written in the last minute."""
        before = now - USED_EVERY
        if key.last_used_at is not None and key.last_used_at > before:
            return
        # Race closed: many requests with one key come at once. One of them writes.
        unused = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= before)
        with database.writing(self._engine) as connection:
            statement = update(api_keys).where(api_keys.c.id == key.id, unused)
            connection.execute(statement.values(last_used_at=now))


def key_of(row: Row[Any]) -> ApiKey:
    """Returns the key of a row of `api_keys`."""
    return ApiKey(**{**row._mapping, "scope": Scope(row.scope), "digest": bytes(row.digest)})

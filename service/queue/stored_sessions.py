"""Sessions of browsers in the database, so that every API process knows them, also after a restart."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Engine, delete, insert, select

from service.access import sessions as access_sessions
from service.access.sessions import Session
from service.queue import audit_rows, database
from service.queue.stored_keys import key_of
from service.queue.tables import api_keys, sessions


class StoredSessions:
    """The stored sessions. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def add_session(self, session: Session) -> None:
        """Stores a new session, and removes those that have ended."""
        row = {column.name: getattr(session, column.name) for column in sessions.columns}
        with database.writing(self._engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= session.created_at))
            connection.execute(insert(sessions).values(row))
            audit_rows.record(connection)

    def find_session(self, digest: bytes) -> Session | None:
        """Returns the session with this digest, and its key; None if there is none, or its key is gone."""
        with database.reading(self._engine) as connection:
            row = connection.execute(select(sessions).where(sessions.c.digest == digest)).one_or_none()
            if row is None:
                return None
            found = Session(**{**row._mapping, "digest": bytes(row.digest)})
            key_id = access_sessions.key_id(found.credential)
            if key_id is None:
                return found
            key = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        return None if key is None else replace(found, key=key_of(key))

    def end_session(self, digest: bytes) -> None:
        """Ends a session at once. Idempotent."""
        with database.writing(self._engine) as connection:
            if connection.execute(delete(sessions).where(sessions.c.digest == digest)).rowcount:
                audit_rows.record(connection)

"""The audit log in the database: entries are added and listed, never changed or deleted."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, select

from service.access.audit import AuditEntry, Note
from service.jobs.job import new_id
from service.queue import audit_rows, cursors, database
from service.queue.audit_rows import AUDIT_PREFIX
from service.queue.tables import audit


class StoredAudit:
    """The audit log. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def add_audit(self, note: Note, status: int) -> None:
        """Adds the entry of a request that changed nothing, or failed after a change. status: its answer."""
        with database.writing(self._engine) as connection:
            audit_rows.add(connection, note, status)
            note.stored = True

    def list_audit(
        self,
        *,
        who: str | None = None,
        about: str | None = None,
        since: datetime | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[AuditEntry], str | None]:
        """Returns a page of entries, newest first, and the cursor of the next page (None: this is the last).

        who: only of this user. about: only about this id or path: what contains this text. since: only of
        then and later. Raises Refused for a bad cursor.
        """
        query = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
        if who is not None:
            query = query.where(audit.c.who == who)
        if about is not None:
            query = query.where(audit.c.about.contains(about, autoescape=True))
        if since is not None:
            query = query.where(audit.c.id >= new_id(since, AUDIT_PREFIX)[:12])
        if cursor is not None:
            query = query.where(audit.c.id < cursors.decode(cursor, AUDIT_PREFIX))
        with database.reading(self._engine) as connection:
            found = [AuditEntry(**row._mapping) for row in connection.execute(query)]
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None

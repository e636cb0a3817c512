"""The audit log in the database: entries are added and listed, never changed, and removed by age alone."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select

from service.access.audit import AuditEntry, Note
from service.jobs.job import new_id
from service.queue import audit_rows, cursors, database
from service.queue.audit_rows import AUDIT_PREFIX
from service.queue.tables import audit
from service.queue.writes import Writes

_REMOVED_AT_ONCE = 1000


class StoredAudit(Writes):
    """The audit log. Every method raises `Unavailable` as `Store`'s methods do."""

    def add_audit(self, note: Note, status: int, count: int = 1) -> None:
        """Adds the entry of a request that changed nothing, or failed after a change. status: its answer.

        count: how many requests it stands for.
        """
        with database.writing(self._engine) as connection:
            audit_rows.add(connection, note, status, count)
            note.stored = True

    def remove_old_audit(self, moment: datetime) -> int:
        """Removes a bounded number of entries from before `moment`, oldest first; returns how many.

        Raises Superseded for a scheduler without the lease.
        """
        old = select(audit.c.id).where(audit.c.id < _first_id(moment))
        oldest = old.order_by(audit.c.id).limit(_REMOVED_AT_ONCE)
        with self._writing() as connection:
            return connection.execute(delete(audit).where(audit.c.id.in_(oldest))).rowcount

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
            query = query.where(audit.c.id >= _first_id(since))
        if cursor is not None:
            query = query.where(audit.c.id < cursors.decode(cursor, AUDIT_PREFIX))
        with database.reading(self._engine) as connection:
            found = [AuditEntry(**row._mapping) for row in connection.execute(query)]
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None


def _first_id(moment: datetime) -> str:
    """Returns what the ids of entries of this moment begin with: those of earlier ones are smaller."""
    return new_id(moment, AUDIT_PREFIX)[:12]

"""Adds the audit log's entries within the transactions that make the changes."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from service.access.audit import AuditEntry, Note, pending
from service.jobs.job import new_id, utc_now
from service.queue.tables import audit

AUDIT_PREFIX = "a"
"""The first character of an entry's id."""


def record(connection: Connection, about: str | None = None) -> None:
    """Adds the entry of the request that is being answered, if any, to the transaction of its change.

    So there is no change without its entry, whatever is killed when. Call it once something has changed.
    about: the path of what the request creates.
    """
    note = pending.get()
    if note is not None and not note.stored:
        record_of(connection, note, about)
        note.stored = True


def record_of(connection: Connection, note: Note | None, about: str | None = None) -> None:
    """Adds the entry of a request, if any, whose change is committed by another thread."""
    if note is not None:
        note.about = about or note.about
        add(connection, note, None)


def add(connection: Connection, note: Note, status: int | None) -> None:
    """Adds an entry. status: what was answered; None: not known yet."""
    now = utc_now()
    entry = AuditEntry(
        id=new_id(now, AUDIT_PREFIX),
        at=now,
        who=note.who,
        credential=note.credential,
        address=note.address,
        action=note.action,
        about=note.about,
        status=status,
    )
    row = {column.name: getattr(entry, column.name) for column in audit.columns}
    connection.execute(insert(audit).values(row))

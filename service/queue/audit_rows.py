"""Adds the audit log's entries within the transactions that make the changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, insert

from service.access.audit import Note, pending
from service.jobs.job import new_id, utc_now
from service.queue.tables import audit

AUDIT_PREFIX = "a"
"""The first character of an entry's id."""

_INSERT = insert(audit)


def record(connection: Connection, about: str | None = None) -> None:
    """Adds the entry of the request that is being answered, if any, to the transaction of its change.

    So there is no change without its entry, whatever is killed when. Call it once something has changed.
    about: the path of what the request creates.
    """
    note = pending.get()
    if note is not None and not note.stored:
        connection.execute(_INSERT, rows_of([(note, about)]))
        note.stored = True


def rows_of(changes: Iterable[tuple[Note | None, str | None]]) -> list[dict[str, Any]]:
    """Returns the entries of requests, if any, whose changes are committed together, by another thread.

    changes: the note of each, and the path of what it creates.
    """
    rows = []
    for note, about in changes:
        if note is not None:
            note.about = about or note.about
            rows.append(_row(note, None))
    return rows


def add(connection: Connection, note: Note, status: int | None, count: int = 1) -> None:
    """Adds an entry. status: what was answered; None: not known yet. count: how many requests it is for."""
    connection.execute(_INSERT, [_row(note, status, count)])


def _row(note: Note, status: int | None, count: int = 1) -> dict[str, Any]:
    now = utc_now()
    return {
        "id": new_id(now, AUDIT_PREFIX),
        "at": now,
        "who": note.who,
        "credential": note.credential,
        "address": note.address,
        "action": note.action,
        "about": note.about,
        "status": status,
        "count": count,
    }

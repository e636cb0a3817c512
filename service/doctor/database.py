"""Checks of the database: it answers, can be written, and has this version's tables; its clock is right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy.exc import DBAPIError

from service.doctor.clock import offset_finding
from service.doctor.finding import Finding, fault, ok
from service.errors import ServiceError
from service.queue import condition
from service.queue.condition import Condition

ABOUT = "database"


def check(url: str) -> Iterator[Finding]:
    """Yields what is wrong with the database, or that it is well."""
    path = condition.sqlite_file(url)
    if path is not None and not path.exists():
        create = "start the service once, or run `syncbn migrate`, if it should be new"
        yield fault(
            ABOUT, f"there is no database {path}", f"check SYNCBN_DATABASE_URL or --data-dir; {create}"
        )
        return
    try:
        found = condition.look(url)
    except (ServiceError, DBAPIError) as error:
        yield _of_error(str(error))
        return
    problem = _of_schema(found) or _of_writing(url)
    yield problem or ok(ABOUT, f"answers, can be written, tables of revision {found.revision}")
    yield from offset_finding("the database's clock", (found.now - datetime.now(UTC)).total_seconds())


def _of_schema(found: Condition) -> Finding | None:
    if found.revision == found.head:
        return None
    if found.revision is None:
        return fault(ABOUT, "it has no tables of this service", "run `syncbn migrate`, or start the API")
    if not found.known:
        return fault(
            ABOUT,
            f"its tables (revision {found.revision}) are those of a newer version of this software",
            "install that version here, or restore a backup from before it",
        )
    return fault(
        ABOUT,
        f"its tables are old: revision {found.revision}, this version needs {found.head}",
        "back it up, then run `syncbn migrate` or restart the API",
    )


def _of_writing(url: str) -> Finding | None:
    try:
        condition.try_to_write(url)
    except (ServiceError, DBAPIError) as error:
        return _of_error(str(error))
    return None


def _of_error(text: str) -> Finding:
    """
    >>> _of_error("connection refused").message
    'it is down: connection refused'
    """
    line, lower = " ".join(text.split())[:300], text.lower()
    if any(words in lower for words in ("read-only", "readonly", "read only")):
        advice = (
            "make its file system or server writable: a standby, default_transaction_read_only, a full disk"
        )
        return fault(ABOUT, f"it is read-only: {line}", advice)
    if any(words in lower for words in ("timeout", "timed out")):
        advice = "it is frozen or overloaded: look at its processes and disk, restart it"
        return fault(ABOUT, f"it is frozen: it accepts connections and does not answer ({line})", advice)
    if "locked" in lower:
        advice = "find the process that holds it: fuser FILE. A stopped process keeps its lock"
        return fault(ABOUT, f"another process keeps it locked: {line}", advice)
    if any(words in lower for words in ("disk is full", "no space", "disk full")):
        return fault(ABOUT, f"its disk is full: {line}", "free space; `syncbn doctor` lists the disks")
    if any(words in lower for words in ("password", "authentication", "role ")):
        return fault(ABOUT, f"it refuses the user or password: {line}", "check SYNCBN_DATABASE_URL")
    if any(words in lower for words in ("malformed", "not a database")):
        return fault(ABOUT, f"its file is damaged: {line}", "restore a backup")
    advice = "start it, and check SYNCBN_DATABASE_URL"
    return fault(ABOUT, f"it is down: {line}", advice)

"""The condition of a database, looked at without changing it: for `syncbn doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, func, make_url, select, text

from service.queue import database
from service.queue.room import check_room
from service.queue.tables import UtcDateTime

SECONDS = 5
"""How long a lock or a statement may take."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the database says. revision: of its tables, None if it has none. head: of this version.

    known: whether this version knows the revision. now: the database's clock.
    """

    revision: str | None
    head: str
    known: bool
    now: datetime


def sqlite_file(url: str) -> Path | None:
    """Returns the file of a SQLite database; None for another one."""
    parsed = make_url(url)
    return (
        Path((parsed.database or "").removeprefix("file:")) if parsed.get_backend_name() == "sqlite" else None
    )


def look(url: str) -> Condition:
    """Reads the condition of the database. Raises Unavailable if it does not answer, within seconds."""
    with _engine(url) as engine, database.reading(engine) as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        now: datetime = connection.execute(select(func.current_timestamp(type_=UtcDateTime()))).scalar_one()
    script = ScriptDirectory.from_config(database.alembic_config())
    return Condition(
        revision=revision,
        head=str(script.get_current_head()),
        known=revision in {each.revision for each in script.walk_revisions()},
        now=now.astimezone(UTC),
    )


def try_to_write(url: str) -> None:
    """Begins to write and changes nothing.

    Raises Unavailable or DatabaseError if it is not allowed, or if there is no room.
    """
    with _engine(url) as engine, database.writing(engine) as connection:
        connection.execute(text("UPDATE jobs SET priority = priority WHERE 1 = 0"))
        check_room(connection)


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = database.make_engine(url)
    limit = f"PRAGMA busy_timeout = {SECONDS * 1000}"
    if engine.dialect.name == "postgresql":
        limit = f"SET statement_timeout = {SECONDS * 1000}"

    def set_limit(connection: Any, _record: object) -> None:
        connection.execute(limit).close()
        connection.commit()  # PostgreSQL forgets the setting with a transaction that is rolled back

    event.listen(engine, "connect", set_limit, insert=True)  # before the engine's own statements
    try:
        yield engine
    finally:
        engine.dispose()

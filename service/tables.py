"""The tables, as SQLAlchemy sees them; `migrations/` creates them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC on both sides; SQLite, which has no time zones, stores UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


JobId = String(32).with_variant(String(32, collation="C"), "postgresql")
"""Compared byte by byte whatever the database's locale: the order of ids is the order of creation."""

_LEFT = text("archived_at IS NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", JobId, primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("state", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("priority", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("workers", Integer),
    Column("wanted_workers", Integer),
    Column("grows_after", UtcDateTime),
    Column("preempted_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("experiment_id", Text),
    Column("run_id", Text),
    Column("archived_at", UtcDateTime),
    Index(None, "state", "priority", "id"),
    # The dispatcher looks for these in every round: not through all that have ended since the first.
    Index("ix_jobs_unarchived", "id", postgresql_where=_LEFT, sqlite_where=_LEFT),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", JobId, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "key", "value"),
)
"""The labels of each spec once more, so that they can be searched by an index on either database."""

code_archives = Table(
    "code_archives",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

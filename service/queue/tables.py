"""The database tables for SQLAlchemy; `migrations/` creates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)

from service.jobs.expected import ExpectedStart
from service.queue import storable
from service.queue.took import took
from training.protocol import Failure, Progress

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC datetime on every database; SQLite, which has no time zones, stores it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


class AsJson(TypeDecorator[Any]):
    """A value stored as JSON: `write` converts it to JSON, `read` converts it back. None is NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, write: Callable[[Any], object], read: Callable[[Any], object]) -> None:
        super().__init__()
        self.write, self.read = write, read

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else storable.plain(self.write(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else self.read(value)


def _progress(data: Mapping[str, Any]) -> Progress:
    """Reads progress; a metric stored as null was not finite and becomes NaN."""
    metrics = {name: math.nan if value is None else value for name, value in data["metrics"].items()}
    return Progress.from_json({**data, "metrics": metrics})


def _failure(data: Mapping[str, Any]) -> Failure:
    return Failure(**data)


JobId = String(32).with_variant(String(32, collation="C"), "postgresql")
"""Compared byte by byte whatever the database's locale, so that ids sort by creation time."""

_LEFT = text("archived_at IS NULL")
_PENDING = text("state = 'pending'")
_REMOVING = text("removing <> 0")
_DELETED = text("deleted_at IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", JobId, primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("error", AsJson(dict, dict)),
    Column("priority", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempt", Integer, nullable=False),
    Column("start", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False),
    Column("last_failure", AsJson(Failure.to_json, _failure)),
    Column("restarts", AsJson(list, tuple), nullable=False, server_default="[]"),
    Column("progress", AsJson(Progress.to_json, _progress)),
    Column("workers", Integer),
    Column("wanted_workers", Integer),
    Column("ran_seconds", Float, nullable=False, server_default="0"),
    Column("grows_after", Float),
    Column("waits_until", Float),
    Column("preempted_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("experiment_id", Text),
    Column("run_id", Text),
    Column("archived_at", UtcDateTime),
    Column("sweep_id", JobId, ForeignKey("sweeps.id")),
    Column("point", Integer),
    Column("experiment", Text),
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("backoff_seconds", Float, nullable=False, server_default="0"),
    Column("not_before", UtcDateTime),
    Column("ended_by", Text),
    Column("last_command", AsJson(dict, dict)),
    Column("from_scratch", Boolean, nullable=False, server_default=false()),
    Column("removed", Integer, nullable=False, server_default="0"),
    Column("removing", Integer, nullable=False, server_default="0"),
    Column("deleted_at", UtcDateTime),
    Column("code", String(64), index=True),
    Column("user", Text),
    Column("expected", AsJson(ExpectedStart.to_json, ExpectedStart.from_json)),
    Column("weights_sha256", String(64)),
    # A list is read newest first from one of these, or from the primary key, however many jobs there are.
    Index(None, "name", "id"),
    Index(None, "state", "id"),
    Index(None, "experiment", "id"),
    Index(None, "sweep_id", "id"),
    Index(None, "user", "id"),
    # The finisher queries these often; the index spares it all other ended jobs.
    Index("ix_jobs_unarchived", "id", postgresql_where=_LEFT, sqlite_where=_LEFT),
    Index("ix_jobs_deleted", "id", postgresql_where=_DELETED, sqlite_where=_DELETED),
    Index("ix_jobs_removing", "id", postgresql_where=_REMOVING, sqlite_where=_REMOVING),
    Index(None, "finished_at", "removed"),
)

Index("ix_jobs_took", took(jobs.c.finished_at, jobs.c.started_at), jobs.c.id)
Index("ix_jobs_queue", jobs.c.state, jobs.c.priority.desc(), jobs.c.id)

sweeps = Table(
    "sweeps",
    metadata,
    Column("id", JobId, primary_key=True),
    Column("name", Text, nullable=False),
    Column("document", JSON, nullable=False),
    Column("points", AsJson(list, tuple), nullable=False),
    Column("max_running", Integer),
    Column("idempotency_key", Text, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("paused_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("experiment_id", Text),
    Column("run_id", Text),
    Column("archived_at", UtcDateTime),
    Column("user", Text),
    Index("ix_sweeps_unarchived", "id", postgresql_where=_LEFT, sqlite_where=_LEFT),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", JobId, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "key", "value", "job_id"),
)
"""A copy of each spec's labels, so that both databases can search them by index."""

Number = BigInteger().with_variant(Integer, "sqlite")
"""A number that the database gives out, in rising order."""

job_events = Table(
    "job_events",
    metadata,
    Column("id", Number, Identity(), primary_key=True),
    Column("job_id", JobId, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("workers", Integer),
    Column("wanted_workers", Integer),
    Column("priority", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "job_id", "id"),
    sqlite_autoincrement=True,
)
"""One row for each change of a job, written by triggers on `jobs` (service.queue.stored_events)."""

code_archives = Table(
    "code_archives",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("unused_since", UtcDateTime),
)
"""unused_since: when the last job that used it was deleted, or retention gave it up; then it goes soon."""

secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token", LargeBinary, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""Encrypted values of secrets, by name (service.secrets)."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", JobId, primary_key=True),
    Column("url", Text, nullable=False),
    Column("states", AsJson(list, tuple), nullable=False),
    Column("labels", AsJson(dict, dict), nullable=False),
    Column("token", LargeBinary, nullable=False),
    Column("position", Number, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Number, Identity(), primary_key=True),
    Column("webhook_id", JobId, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("message_id", Text, nullable=False, unique=True),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("status", Integer),
    Column("problem", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Index(None, "webhook_id", "id"),
    Index(
        "ix_webhook_deliveries_pending", "webhook_id", "id", postgresql_where=_PENDING, sqlite_where=_PENDING
    ),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("user", Text, nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)
"""API keys. Of each secret only the SHA-256 is here (service.access.keys)."""

sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("credential", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)
"""Sessions of browsers. Of each cookie only the SHA-256 is here (service.access.sessions)."""

audit = Table(
    "audit",
    metadata,
    Column("id", JobId, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("who", Text, nullable=False),
    Column("credential", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("about", Text, nullable=False),
    Column("status", Integer),
    Column("count", Integer, nullable=False, server_default="1"),
    Index(None, "who", "id"),
)
"""The audit log (service.access.audit). Rows are added, never changed, and removed by age alone."""

scheduler = Table(
    "scheduler",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("queue", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("beat", Integer, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("holder", Text, nullable=False),
    Column("nodes", JSON, nullable=False),
    Column("problem", Text, nullable=False),
    Column("clock", Float, nullable=False, server_default="0"),
    Column("versions", JSON, nullable=False, server_default="{}"),
)
"""One row: the scheduler's lease (service.queue.lease)."""

totals = Table(
    "totals",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("labels", Text, primary_key=True),
    Column("value", Float(53), nullable=False),
)
"""Numbers for operators that only grow; labels: as JSON (service.queue.totals)."""

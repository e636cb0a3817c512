"""Adds starts and progress to the job's row, and the scheduler's row; requeues attempts under Ray Jobs.

An attempt that an older version submitted to Ray Jobs is not continued. Its job waits for the next attempt,
which resumes from the last checkpoint and uses no retry.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_ACTIVE = ("starting", "running", "pausing", "preempting")
_jobs = sa.table(
    "jobs",
    sa.column("state", sa.String),
    sa.column("reason", sa.Text),
    sa.column("workers", sa.Integer),
    sa.column("finished_at", _TIME),
    sa.column("cancel_requested_at", _TIME),
)


def upgrade() -> None:
    _add_columns()
    _create_scheduler()
    _end_old_attempts()


def downgrade() -> None:
    op.drop_table("scheduler")
    for name in ("progress", "restarts", "last_failure", "start"):
        op.drop_column("jobs", name)


def _add_columns() -> None:
    op.add_column("jobs", sa.Column("start", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("last_failure", sa.JSON))
    op.add_column("jobs", sa.Column("restarts", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("progress", sa.JSON))


def _create_scheduler() -> None:
    op.create_table(
        "scheduler",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("beat", sa.Integer, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("nodes", sa.JSON, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_scheduler"),
    )


def _end_old_attempts() -> None:
    cancelled = {"finished_at": datetime.now(UTC), "reason": "cancelled while the service was updated"}
    _move("cancelled", _jobs.c.cancel_requested_at.is_not(None), **cancelled)
    paused = "paused while the service was updated; goes on from its last checkpoint"
    _move("paused", _jobs.c.state == "pausing", workers=None, reason=paused)
    queued = "the service was updated: goes on from its last checkpoint"
    _move("queued", sa.true(), workers=None, reason=queued)


def _move(to: str, those: sa.ColumnElement[bool], **values: Any) -> None:
    """Moves the active jobs that match `those`."""
    op.execute(sa.update(_jobs).where(_jobs.c.state.in_(_ACTIVE), those).values(state=to, **values))

"""Adds who ended and changed a job, its wait after failures, retries from step 0, deletion and retention."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_PARTIAL = {"ix_jobs_deleted": "deleted_at IS NOT NULL", "ix_jobs_removing": "removing <> 0"}
_ENDED = "ix_jobs_finished_at_removed"
_CODE = "ix_jobs_code"


def upgrade() -> None:
    for column in (
        sa.Column("failures_in_row", sa.Integer, nullable=False, server_default="0"),
        sa.Column("backoff_seconds", sa.Float, nullable=False, server_default="0"),
        sa.Column("not_before", _TIME),
        sa.Column("ended_by", sa.Text),
        sa.Column("last_command", sa.JSON),
        sa.Column("from_scratch", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("removed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("removing", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deleted_at", _TIME),
        sa.Column("code", sa.String(64)),
    ):
        op.add_column("jobs", column)
    for name, condition in _PARTIAL.items():
        where = sa.text(condition)
        op.create_index(name, "jobs", ["id"], postgresql_where=where, sqlite_where=where)
    op.create_index(_ENDED, "jobs", ["finished_at", "removed"])
    jobs = sa.table("jobs", sa.column("code", sa.String), sa.column("spec", sa.JSON))
    op.execute(sa.update(jobs).values(code=jobs.c.spec["code"].as_string()))
    op.create_index(_CODE, "jobs", ["code"])
    op.add_column("code_archives", sa.Column("unused_since", _TIME))


def downgrade() -> None:
    op.drop_column("code_archives", "unused_since")
    for name in (_CODE, _ENDED, *_PARTIAL):
        op.drop_index(name, "jobs")
    for name in (
        "code",
        "deleted_at",
        "removing",
        "removed",
        "from_scratch",
        "last_command",
        "ended_by",
        "not_before",
        "backoff_seconds",
        "failures_in_row",
    ):
        op.drop_column("jobs", name)

"""Adds the table of sweeps, and the sweep of a job with its number there."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_ID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
_TIME = sa.DateTime(timezone=True)
_KEY = "fk_jobs_sweep_id"


def upgrade() -> None:
    _create_sweeps()
    # Not in batch mode: there SQLite copies the table and drops the old one, which deletes the jobs' labels.
    reference = sa.ForeignKey("sweeps.id", name=_KEY)
    op.add_column("jobs", sa.Column("sweep_id", _ID, reference), inline_references=True)
    op.add_column("jobs", sa.Column("point", sa.Integer))
    op.create_index("ix_jobs_sweep_id", "jobs", ["sweep_id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_sweep_id", "jobs")
    op.drop_column("jobs", "point")
    op.drop_column("jobs", "sweep_id")
    op.drop_table("sweeps")


def _create_sweeps() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("points", sa.JSON, nullable=False),
        sa.Column("max_running", sa.Integer),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("paused_at", _TIME),
        sa.Column("cancel_requested_at", _TIME),
        sa.Column("experiment_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("archived_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("idempotency_key", name="uq_sweeps_idempotency_key"),
    )
    left = sa.text("archived_at IS NULL")
    op.create_index("ix_sweeps_unarchived", "sweeps", ["id"], postgresql_where=left, sqlite_where=left)

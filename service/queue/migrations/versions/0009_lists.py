"""Adds a job's experiment, and the indices by which lists are read in order, however long they are."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_jobs = sa.table("jobs", sa.column("spec", sa.JSON), sa.column("experiment", sa.Text))
_LABELS = ("key", "value", "job_id")
_OLD = {
    "ix_jobs_name": ("name",),
    "ix_jobs_state_priority_id": ("state", "priority", "id"),
    "ix_jobs_sweep_id": ("sweep_id",),
}
_NEW = [(column, "id") for column in ("name", "state", "experiment", "sweep_id")]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("experiment", sa.Text))
    op.execute(sa.update(_jobs).values(experiment=_jobs.c.spec[("tracking", "experiment")].as_string()))
    for name in _OLD:
        op.drop_index(name, "jobs")
    for columns in _NEW:
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)
    op.create_index("ix_jobs_queue", "jobs", ["state", sa.text("priority DESC"), "id"])
    op.drop_index("ix_job_labels_key_value", "job_labels")
    op.create_index("ix_job_labels_key_value_job_id", "job_labels", _LABELS)


def downgrade() -> None:
    op.drop_index("ix_job_labels_key_value_job_id", "job_labels")
    op.create_index("ix_job_labels_key_value", "job_labels", _LABELS[:2])
    op.drop_index("ix_jobs_queue", "jobs")
    for columns in _NEW:
        op.drop_index(f"ix_jobs_{'_'.join(columns)}", "jobs")
    for name, old in _OLD.items():
        op.create_index(name, "jobs", old)
    op.drop_column("jobs", "experiment")

"""Adds the columns for preemption: a job's requested workers and when it may grow or was preempted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("wanted_workers", sa.Integer))
    op.add_column("jobs", sa.Column("grows_after", _TIME))
    op.add_column("jobs", sa.Column("preempted_at", _TIME))


def downgrade() -> None:
    for name in ("preempted_at", "grows_after", "wanted_workers"):
        op.drop_column("jobs", name)

"""Adds the queue's clock, by which jobs wait and grow: no step of a wall clock moves it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scheduler", sa.Column("clock", sa.Float, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("waits_until", sa.Float))
    # Its times were those of a wall clock; without one a job may grow at once.
    op.drop_column("jobs", "grows_after")
    op.add_column("jobs", sa.Column("grows_after", sa.Float))


def downgrade() -> None:
    op.drop_column("jobs", "grows_after")
    op.add_column("jobs", sa.Column("grows_after", sa.DateTime(timezone=True)))
    op.drop_column("jobs", "waits_until")
    op.drop_column("scheduler", "clock")

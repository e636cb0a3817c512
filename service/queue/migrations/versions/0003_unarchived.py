"""Adds the index of ended jobs that are not archived yet."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAME = "ix_jobs_unarchived"


def upgrade() -> None:
    left = sa.text("archived_at IS NULL")
    op.create_index(_NAME, "jobs", ["id"], postgresql_where=left, sqlite_where=left)


def downgrade() -> None:
    op.drop_index(_NAME, "jobs")

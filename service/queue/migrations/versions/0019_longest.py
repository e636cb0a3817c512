"""Adds the index by which ended jobs are listed by how long they took.

A later revision that copies the table `jobs` (Alembic's batch mode on SQLite) loses it: SQLAlchemy does not
read indices of expressions.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_TOOK = {
    "sqlite": "(julianday(finished_at) - julianday(started_at))",
    "postgresql": "(finished_at - started_at)",
}


def upgrade() -> None:
    op.create_index("ix_jobs_took", "jobs", [sa.text(_TOOK[op.get_bind().dialect.name]), "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_took", "jobs")

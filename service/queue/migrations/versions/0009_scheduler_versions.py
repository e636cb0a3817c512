"""Adds the versions of the scheduler at work to its row."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scheduler", sa.Column("versions", sa.JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("scheduler", "versions")

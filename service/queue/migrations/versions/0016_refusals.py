"""Adds to the audit log how many requests an entry stands for."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit", sa.Column("count", sa.Integer, nullable=False, server_default="1"))


def downgrade() -> None:
    op.drop_column("audit", "count")

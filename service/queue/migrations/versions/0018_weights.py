"""Adds the SHA-256 of the weights that a job has delivered."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("weights_sha256", sa.String(64)))


def downgrade() -> None:
    op.drop_column("jobs", "weights_sha256")

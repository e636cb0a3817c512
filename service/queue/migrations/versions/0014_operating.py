"""Adds the table of totals for operators, which start at zero, and the versions of the scheduler at work."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name="pk_totals"),
    )
    op.add_column("scheduler", sa.Column("versions", sa.JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("scheduler", "versions")
    op.drop_table("totals")

"""Adds the table of events, and the triggers that write one in the transaction of each change of a job.

A later revision that copies the table `jobs` (Alembic's batch mode on SQLite) loses the triggers and has to
create them again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_COPIED = ("state", "reason", "attempt", "start", "workers", "wanted_workers", "priority")
_WATCHED = ("state", "attempt", "start", "wanted_workers", "priority", "cancel_requested_at")
_CHANGED = " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in _WATCHED)
_CREATED = "'state'"
_TYPE = """CASE
    WHEN OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt THEN 'state'
    WHEN OLD.start <> NEW.start THEN 'restart'
    WHEN OLD.cancel_requested_at IS DISTINCT FROM NEW.cancel_requested_at THEN 'cancel_requested'
    WHEN OLD.wanted_workers IS DISTINCT FROM NEW.wanted_workers THEN 'resize'
    ELSE 'priority'
END"""
# With microseconds, as SQLAlchemy writes times.
_NOW = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')", "postgresql": "clock_timestamp()"}


def upgrade() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", _NUMBER, sa.Identity(), nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("workers", sa.Integer),
        sa.Column("wanted_workers", sa.Integer),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_events"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,  # ids of deleted events are not used again
    )
    op.create_index("ix_job_events_job_id_id", "job_events", ["job_id", "id"])
    dialect = op.get_bind().dialect.name
    copied = ", ".join(_COPIED)
    present = (
        f"INSERT INTO job_events (job_id, type, {copied}, at) "
        f"SELECT id, {_CREATED}, {copied}, {_NOW[dialect]} FROM jobs ORDER BY id"
    )
    for statement in [present, *(_postgresql() if dialect == "postgresql" else _sqlite())]:
        op.execute(statement.replace(":", r"\:"))  # no colon is that of a parameter


def _insert(type_: str, dialect: str) -> str:
    new = ", ".join(f"NEW.{column}" for column in _COPIED)
    return (
        f"INSERT INTO job_events (job_id, type, {', '.join(_COPIED)}, at) "
        f"VALUES (NEW.id, {type_}, {new}, {_NOW[dialect]});"
    )


def _sqlite() -> list[str]:
    return [
        f"CREATE TRIGGER job_created AFTER INSERT ON jobs BEGIN {_insert(_CREATED, 'sqlite')} END",
        f"CREATE TRIGGER job_changed AFTER UPDATE OF {', '.join(_WATCHED)} ON jobs WHEN {_CHANGED} "
        f"BEGIN {_insert(_TYPE, 'sqlite')} END",
    ]


def _postgresql() -> list[str]:
    def function(name: str, type_: str) -> str:
        body = f"BEGIN {_insert(type_, 'postgresql')} RETURN NULL; END"
        return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"

    return [
        function("job_created", _CREATED),
        function("job_changed", _TYPE),
        "CREATE TRIGGER job_created AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION job_created()",
        f"CREATE TRIGGER job_changed AFTER UPDATE OF {', '.join(_WATCHED)} ON jobs FOR EACH ROW "
        f"WHEN ({_CHANGED}) EXECUTE FUNCTION job_changed()",
    ]


def downgrade() -> None:
    on_table = " ON jobs" if op.get_bind().dialect.name == "postgresql" else ""
    for name in ("job_created", "job_changed"):
        op.execute(f"DROP TRIGGER {name}{on_table}")
        if on_table:
            op.execute(f"DROP FUNCTION {name}()")
    op.drop_table("job_events")

"""Database engines for SQLite and PostgreSQL that behave alike, and the migrations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import alembic.command
import alembic.config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url, text

from service.circuit import Circuit
from service.errors import Refused, Unavailable

CONNECT_S = 5
_LOCK_WAIT_S = 15
_POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 30, "pool_timeout": 10}  # the API has 40 threads
_IDLE_TRANSACTION_MS = 5_000
_migrating = threading.Lock()  # Alembic's context is global in a process
_MIGRATION_LOCK = 0x53594E43424E  # "SYNCBN": an advisory lock key that other programs are unlikely to use


def make_engine(url: str) -> Engine:
    """Returns an engine for `sqlite:///PATH` or `postgresql://...` (psycopg 3). It connects on first use."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in {None, "", ":memory:"}:
            raise Refused(f"{url}: the queue must outlive this process; name a file, sqlite:///PATH")
        return _sqlite_engine(parsed.render_as_string(hide_password=False))
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(
        parsed,
        pool_pre_ping=True,  # a restarted server costs a reconnect, not an error
        **_POOL,
        connect_args={"connect_timeout": CONNECT_S, "tcp_user_timeout": 15_000},
    )
    event.listen(engine, "connect", _set_up_postgres)
    event.listen(engine, "do_connect", _connect_postgres)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Opens a transaction for reading. Raises Unavailable."""
    read_only = engine.execution_options(read_only=True)
    with _circuit(engine).call(), _translated(), read_only.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Opens a transaction that commits at the end and rolls back on an error. Raises Unavailable."""
    with _circuit(engine).call(), _translated(), engine.begin() as connection:
        yield connection


_circuits: WeakKeyDictionary[Engine, Circuit] = WeakKeyDictionary()


def _circuit(engine: Engine) -> Circuit:
    return _circuits.setdefault(engine, Circuit("the database"))


def migrate(engine: Engine) -> None:
    """Brings the tables up to date. Idempotent, and safe in several processes at once: they take turns.

    Raises Refused if a newer version made the tables.
    """
    config = alembic_config()
    with _migrating, writing(engine) as connection, ExitStack() as stack:
        # Race closed: two processes that both see an empty database. SQLite's BEGIN IMMEDIATE lets in one
        # at a time; PostgreSQL needs an explicit lock.
        if connection.dialect.name == "postgresql":
            stack.enter_context(_without_deadline(connection))
            # A revision computes between its statements, for as long as the tables are large.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        _upgrade(config)


def alembic_config() -> alembic.config.Config:
    """Returns Alembic's configuration, which names the migrations."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _upgrade(config: alembic.config.Config) -> None:
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        if isinstance(error.__cause__, ResolutionError):
            raise Refused(
                "the tables are those of a newer version of this software: run that version, or restore a "
                "backup from before it"
            ) from error
        raise


def _set_up_postgres(connection: Any, _record: object) -> None:
    """Bounds how long a client that is suspended in a transaction holds its locks: on a job, or the lease."""
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_TRANSACTION_MS}ms'")
    connection.autocommit = False


def _connect_postgres(_dialect: object, _record: object, arguments: Any, options: Any) -> object:
    from service.queue.postgres import Connection  # psycopg is needed for PostgreSQL alone

    return Connection.connect(*arguments, **options)


@contextmanager
def _without_deadline(connection: Connection) -> Iterator[None]:
    """A migration may take its time."""
    driver: Any = connection.connection.driver_connection
    driver.deadline_s = None
    try:
        yield
    finally:
        del driver.deadline_s


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _LOCK_WAIT_S}, **_POOL)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # keeps sqlite3 from beginning transactions itself
    connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    connection.execute("PRAGMA synchronous = FULL")  # a job acknowledged with 201 survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    """Begins a transaction. A writer takes the lock at once: after a read, SQLite would fail, not wait."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError):
        raise  # what was asked is wrong, not the server
    except exc.DBAPIError as error:  # it is away, full, read-only, damaged, or does not answer in time
        raise Unavailable("the database", str(error.orig).strip()) from error
    except exc.TimeoutError as error:
        raise Unavailable("the database", "all connections are busy") from error

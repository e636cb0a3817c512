"""The database of a run, and what can go wrong with it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psycopg

from testing.chaos.plan import POSTGRESQL, SQLITE, SQLITE_ON_A_FULL_DISK, Kind
from testing.postgres import Postgres, postgres

_DISK_BYTES = 64 * 2**20


class Database(Protocol):
    """url: as the service takes it. kinds: the faults that are possible here."""

    @property
    def url(self) -> str: ...

    @property
    def kinds(self) -> Sequence[Kind]: ...

    def begin(self, kind: Kind) -> Callable[[], None]:
        """Begins a fault; returns what ends it."""


class PostgresDatabase:
    kinds: Sequence[Kind] = POSTGRESQL

    def __init__(self, server: Postgres) -> None:
        self._server, self._name = server, f"chaos_{time.time_ns()}"
        self.url = server.create(self._name)

    def begin(self, kind: Kind) -> Callable[[], None]:
        server = self._server
        match kind:
            case Kind.DATABASE_RESTARTED:
                server.crash()
                server.start()
            case Kind.CONNECTIONS_CUT:
                server.disconnect(self._name)
            case Kind.DATABASE_FROZEN:
                server.freeze()
                return server.thaw
            case Kind.DATABASE_READ_ONLY:
                self._read_only("on")
                return lambda: self._read_only("off")
            case _:
                raise AssertionError(kind)
        return _nothing

    def _read_only(self, value: str) -> None:
        where = {"host": str(self._server.folder), "user": "postgres", "dbname": "postgres"}
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(**where, options=options, autocommit=True) as admin:  # type: ignore[arg-type]
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            admin.execute("SELECT pg_reload_conf()")


class SqliteDatabase:
    def __init__(self, folder: Path, *, full_disk: bool) -> None:
        self._folder = folder
        self.kinds: Sequence[Kind] = SQLITE_ON_A_FULL_DISK if full_disk else SQLITE
        self.url = f"sqlite:///{folder / 'queue.db'}"

    def begin(self, kind: Kind) -> Callable[[], None]:
        return self._locked() if kind is Kind.DATABASE_LOCKED else self._full()

    def _locked(self) -> Callable[[], None]:
        # One thread begins and ends the faults, another one may close.
        connection = sqlite3.connect(
            self._folder / "queue.db", timeout=10, isolation_level=None, check_same_thread=False
        )
        with suppress(sqlite3.OperationalError):  # a stopped process has the lock
            connection.execute("BEGIN IMMEDIATE")
        return connection.close

    def _full(self) -> Callable[[], None]:
        ballast = self._folder / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))
        return lambda: ballast.unlink(missing_ok=True)


@contextmanager
def sqlite_database(folder: Path) -> Iterator[SqliteDatabase]:
    """On a disk of its own, which can be full, if this user may mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(disk)]
    mounted = not os.geteuid() and not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield SqliteDatabase(disk, full_disk=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextmanager
def postgres_database(**settings: str) -> Iterator[PostgresDatabase]:
    """On a server of its own, with these settings. Raises NotInstalled."""
    with postgres(max_connections="200", **settings) as server:
        yield PostgresDatabase(server)


def _nothing() -> None:
    pass


NAMES: Mapping[str, str] = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}

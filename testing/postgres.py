"""A temporary PostgreSQL server with its own data folder, reached through a Unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

SECONDS_TO_START = 30.0


class NotInstalled(RuntimeError):
    """PostgreSQL is not installed on this machine."""


class Postgres:
    """A running server. folder: the folder of its socket. command: what starts it."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder, self._command = folder, command
        self.start()

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._server.pid

    def start(self) -> None:
        """Blocks until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                self._command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the benchmark, which stops the server
            )
        _wait_for(self, self._server)

    def crash(self) -> None:
        """Ends it at once: what it has not written to the disk yet goes, too. `start` starts it again."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(60)

    def freeze(self) -> None:
        """Stops all its processes until `thaw`."""
        for process in self._processes():
            _signal(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._processes():
            _signal(process, signal.SIGCONT)

    def _processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.pid)
        return [server, *server.children(recursive=True)]  # the first starts no more once it is stopped

    def create(self, database: str, *, template: str = "template1") -> str:
        """Creates a database and returns its URL."""
        with self.connect("postgres") as admin:
            admin.execute(f"CREATE DATABASE {database} TEMPLATE {template}".encode())
        return self.url(database)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def disconnect(self, database: str) -> None:
        """Its clients lose their connections."""
        with self.connect("postgres") as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database]
            )

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)


@contextmanager
def postgres(folder: Path | None = None, /, **settings: str) -> Iterator[Postgres]:
    """Runs a server and stops it when the context ends. Raises NotInstalled.

    folder: where its own folder is made; any user may enter it, and its path is short. With the default
    `settings` each commit waits for the disk.
    """
    binaries = _binaries()
    # Short: a socket's path may have at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="syncbn-pg-", dir=folder))
    as_user = _as_postgres(home)
    data = str(home / "data")
    initdb = [str(binaries / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=home)
    options = ["-D", data, "-k", str(home), "-c", "listen_addresses="]
    options += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    try:
        running = Postgres(home, [*as_user, str(binaries / "postgres"), *options])
        try:
            yield running
        finally:
            running.crash()
    finally:
        shutil.rmtree(home)


def _binaries() -> Path:
    for directory in [*os.get_exec_path(), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]:
        if all((Path(directory) / name).exists() for name in ("initdb", "postgres")):
            return Path(directory)
    raise NotInstalled("needs PostgreSQL: no initdb and postgres on PATH or in /usr/lib/postgresql")


def _as_postgres(home: Path) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    shutil.chown(home, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # a connection may end meanwhile
        process.send_signal(number)


def _wait_for(running: Postgres, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            running.connect("postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((running.folder / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return

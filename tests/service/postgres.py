"""A real PostgreSQL of our own, in a temporary directory, reached by a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


@contextmanager
def running_postgres() -> Iterator[str]:
    """Yields the server's socket directory. Skips the test where PostgreSQL is not installed."""
    binaries = _binaries()
    home = Path(tempfile.mkdtemp(prefix="syncbn-pg-"))  # short: a socket's path may have 107 bytes
    as_user = _as_postgres(home)
    data = str(home / "data")
    initdb = [
        str(binaries / "initdb"),
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=home)
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*as_user, str(binaries / "postgres"), "-D", data, "-k", str(home), "-c", "listen_addresses=",
             "-c", "fsync=off", "-c", "max_connections=200"],
            cwd=home, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _wait_for(home, server)
            yield str(home)
        finally:
            server.terminate()
            server.wait(timeout=30)
    shutil.rmtree(home)


def create_database(socket_directory: str, name: str, template: str = "template1") -> str:
    """A new database; returns the URL for the store."""
    with psycopg.connect(host=socket_directory, user="postgres", dbname="postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return f"postgresql://postgres@/{name}?host={socket_directory}"


def _binaries() -> Path:
    for directory in [*os.get_exec_path(), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]:
        if all((Path(directory) / name).exists() for name in ("initdb", "postgres")):
            return Path(directory)
    pytest.skip("PostgreSQL is not installed: no initdb and postgres on PATH or in /usr/lib/postgresql")


def _as_postgres(home: Path) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    shutil.chown(home, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _wait_for(home: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host=str(home), user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((home / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return

"""An API without a scheduler: it uses the database alone."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.servers import SYNCBN, environment, wait_until
from service.ports import free_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Api:
    """A running API. key: its API key. pid: its process."""

    url: str
    key: str
    pid: int


@contextmanager
def api(database_url: str, folder: Path) -> Iterator[Api]:
    """Runs `syncbn serve --role api`; stops it when the context ends. folder: for its log."""
    port, key, log = free_port(), secrets.token_hex(16), folder / "api.log"
    variables = {**environment(ROOT), "SYNCBN_DATABASE_URL": database_url, "SYNCBN_API_KEY": key}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [SYNCBN, "serve", "--role", "api", "--port", str(port)],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), lambda: process.poll() is None, log)
        yield Api(url=url, key=key, pid=process.pid)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.HTTPError:
        return False

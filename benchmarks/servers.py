"""The servers that a benchmark measures against, real ones, in a folder that goes with them."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.client import Client, ClientError
from service.processes import State
from service.servers import MlflowServer

SECONDS_TO_START = 180.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where an embedded stack answers."""

    folder: Path
    api_url: str
    ray_url: str
    ray_token: str


@contextmanager
def embedded_stack() -> Iterator[Stack]:
    """`syncbn up` on free ports; all of it is ended with the context, however that ends.

    Raises RuntimeError with the end of its log when it does not become ready.
    """
    with _folder() as folder:
        port = free_port()
        up = _syncbn("up", folder, "--port", str(port), "--mlflow-port", str(free_port()))
        try:
            url = f"http://127.0.0.1:{port}"
            with Client(url) as client:
                wait_until(lambda: _is_ready(client), lambda: up.poll() is None, folder / "up.log")
            yield Stack(
                folder=folder,
                api_url=url,
                ray_url=State.load(folder).ray_url,
                ray_token=(folder / "ray.token").read_text(),
            )
        finally:
            _end(up)
            _syncbn("down", folder).wait()  # what it may have left


@contextmanager
def mlflow_server() -> Iterator[str]:
    """The URL of an MLflow server as the embedded stack starts it; it is ended with the context."""
    with _folder() as folder:
        server = MlflowServer(State.load(folder), free_port())
        try:
            server.start()
            wait_until(server.is_ready, server.is_alive, server.log)
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.end()


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="syncbn-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def _syncbn(command: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """In a session of its own: a Ctrl-C at the terminal is for the benchmark, which then ends the stack."""
    program = str(Path(sys.executable).with_name("syncbn"))
    with (folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(
            [program, command, "--data-dir", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(up: subprocess.Popen[bytes]) -> None:
    up.terminate()
    try:
        up.wait(60)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_ready(client: Client) -> bool:
    try:
        return client.ready()
    except ClientError:
        return False


def wait_until(is_ready: Callable[[], bool], is_alive: Callable[[], bool], log: Path) -> None:
    begun = time.monotonic()
    while not is_ready():
        if not is_alive() or time.monotonic() - begun > SECONDS_TO_START:
            raise RuntimeError(f"a server did not start; its log ends:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)

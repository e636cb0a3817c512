"""The real servers that benchmarks use, each with a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from service.client import Client, ClientError
from service.client.local_token import LocalToken
from service.embedded.processes import MARK, StackState, marked, sweep
from service.embedded.servers import MlflowServer
from service.ports import free_port

SECONDS_TO_START = 240.0
SYNCBN = str(Path(sys.executable).with_name("syncbn"))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The addresses of a running embedded stack, and its folder."""

    folder: Path
    api_url: str
    mlflow_url: str
    up: int
    """The process of `syncbn up`."""

    @property
    def auth(self) -> LocalToken:
        """What opens the API to an httpx client."""
        return LocalToken(httpx.URL(self.api_url).port or 80)

    def roots(self) -> list[psutil.Process]:
        """Returns the root processes; all others are their descendants."""
        return [psutil.Process(self.up), *marked(self.folder)]


@contextmanager
def embedded_stack(checkout: Path | None = None, *, folder: Path | None = None) -> Iterator[Stack]:
    """Runs `syncbn up` on free ports; stops all its processes when the context ends.

    checkout: a checkout of another version to run instead. folder: where its data is kept; None: in a
    temporary one. Raises RuntimeError with the end of its log if it does not become ready.
    """
    with folder_of_our_own(folder) as folder:
        port, mlflow_port = free_port(), free_port()
        options = ("--port", str(port), "--mlflow-port", str(mlflow_port))
        up = _in_background("up", folder, environment(checkout), *options)
        try:
            url = f"http://127.0.0.1:{port}"
            with Client(url) as client:
                wait_until(lambda: _is_ready(client), lambda: up.poll() is None, folder / "up.log")
            mlflow_url = f"http://127.0.0.1:{mlflow_port}"
            yield Stack(folder=folder, api_url=url, mlflow_url=mlflow_url, up=up.pid)
        finally:
            _end(up)
            _in_background(
                "down", folder, environment(checkout)
            ).wait()  # processes that it may have left behind


@contextmanager
def mlflow_server(folder: Path | None = None) -> Iterator[str]:
    """Runs an MLflow server as the embedded stack does and yields its URL; stops it with the context.

    folder: that of an embedded stack whose runs it has; None: a temporary one.
    """
    with folder_of_our_own(folder) as folder:
        server = MlflowServer(StackState.load(folder), free_port())
        try:
            server.start()
            wait_until(server.is_ready, server.is_alive, server.log)
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.end()


@contextmanager
def folder_of_our_own(given: Path | None = None) -> Iterator[Path]:
    """Yields the given folder, or a temporary one."""
    if given is not None:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="syncbn-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def environment(checkout: Path | None = None) -> dict[str, str]:
    """Returns this process's variables without those that would change a stack's settings.

    checkout: the version of this project that runs with them; None: this one.
    """
    others = ("SYNCBN_", "RAY_", "MLFLOW_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    path = {} if checkout is None else {"PYTHONPATH": str(checkout)}
    return {**kept, "OMP_NUM_THREADS": "1", **path}


def seconds_of(command: list[str], folder: Path, variables: Mapping[str, str]) -> float:
    """Returns the seconds that a command takes. Leaves no process of it behind.

    Raises RuntimeError with the end of its output if it fails.
    """
    marked_variables = {**variables, MARK: str(folder)}
    with (folder / "command.log").open("w+") as log:
        begun = time.monotonic()
        running = subprocess.Popen(
            command, cwd=folder, env=marked_variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            code = running.wait()
            took = time.monotonic() - begun
        finally:
            _end(running)
            sweep(folder)
        if code:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} exited with {code}:\n{log.read()[-3000:]}")
    return took


def _in_background(
    command: str, folder: Path, variables: Mapping[str, str], *options: str
) -> subprocess.Popen[bytes]:
    """Starts a command in a new session: Ctrl-C reaches only the benchmark, which then stops the stack."""
    with (folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(
            [SYNCBN, command, "--data-dir", str(folder), *options],
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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

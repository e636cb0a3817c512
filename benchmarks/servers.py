"""The servers that a benchmark measures against, real ones, in a folder that goes with them."""

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

import psutil

from service.client import Client, ClientError
from service.embedded.processes import MARK, StackState, marked, sweep
from service.embedded.servers import MlflowServer
from service.ports import free_port

SECONDS_TO_START = 240.0
SYNCBN = str(Path(sys.executable).with_name("syncbn"))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where an embedded stack answers."""

    folder: Path
    api_url: str
    up: int
    """The process of `syncbn up`."""

    def roots(self) -> list[psutil.Process]:
        """All its processes are among these and below them."""
        return [psutil.Process(self.up), *marked(self.folder)]


@contextmanager
def embedded_stack(checkout: Path | None = None) -> Iterator[Stack]:
    """`syncbn up` on free ports; all of it is ended with the context, however that ends.

    checkout: of another version of this project, which runs instead. Raises RuntimeError with the end of its
    log when it does not become ready.
    """
    with folder_of_our_own() as folder:
        port = free_port()
        options = ("--port", str(port), "--mlflow-port", str(free_port()))
        up = _in_background("up", folder, environment(checkout), *options)
        try:
            url = f"http://127.0.0.1:{port}"
            with Client(url) as client:
                wait_until(lambda: _is_ready(client), lambda: up.poll() is None, folder / "up.log")
            yield Stack(folder=folder, api_url=url, up=up.pid)
        finally:
            _end(up)
            _in_background("down", folder, environment(checkout)).wait()  # what it may have left


@contextmanager
def mlflow_server() -> Iterator[str]:
    """The URL of an MLflow server as the embedded stack starts it; it is ended with the context."""
    with folder_of_our_own() as folder:
        server = MlflowServer(StackState.load(folder), free_port())
        try:
            server.start()
            wait_until(server.is_ready, server.is_alive, server.log)
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.end()


@contextmanager
def folder_of_our_own() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="syncbn-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def environment(checkout: Path | None = None) -> dict[str, str]:
    """This process's variables, but for those that would make a stack another one.

    checkout: what runs with them is that version of this project.
    """
    others = ("SYNCBN_", "RAY_", "MLFLOW_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    path = {} if checkout is None else {"PYTHONPATH": str(checkout)}
    return {**kept, "OMP_NUM_THREADS": "1", **path}


def seconds_of(command: list[str], folder: Path, variables: Mapping[str, str]) -> float:
    """How long a command takes. Nothing of it is left afterwards, however this ends.

    Raises RuntimeError with the end of what it printed when it fails.
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
    """In a session of its own: a Ctrl-C at the terminal is for the benchmark, which then ends the stack."""
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

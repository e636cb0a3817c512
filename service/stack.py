"""`syncbn up`: Ray, MLflow, the API and the dispatcher on one machine, all in one folder.

    DIR/syncbn.db      the queue                DIR/mlflow.db, DIR/artifacts   what MLflow keeps
    DIR/checkpoints    of the jobs              DIR/logs                       of Ray and MLflow
    DIR/stack.json     which processes are ours DIR/ray.token                  Ray's secret

API and dispatcher live in the process of `up`; Ray and MLflow are its children, in sessions of their own.
When `up` is killed they go on, and so does a job; the next `up` on the folder takes them over.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from pydantic import SecretStr

from service.errors import Refused, ServiceError
from service.processes import Child, State, sweep
from service.servers import MlflowServer, RayHead
from service.serving import check_address, running, stop_on_signals
from service.settings import Settings

SECONDS_TO_START = 120.0


def run(*, data_dir: Path, host: str, port: int, mlflow_port: int) -> int:
    """Runs the stack in the foreground until SIGINT or SIGTERM; returns the exit code.

    0: ended as asked; 2: it could not start, and the reason is on stderr.
    """
    stop = stop_on_signals()
    try:
        with _stack(data_dir.resolve(), host, port, mlflow_port, stop) as children:
            while not stop.wait(1.0):
                for child in children:
                    child.restart_if_dead()
            _say("\nending: API, jobs, Ray, MLflow")
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def down(*, data_dir: Path) -> bool:
    """Ends the stack of a folder, also what is left of one whose `up` was killed; blocks until it is gone.

    Returns whether there was anything to end.
    """
    folder = data_dir.resolve()
    pid = _holder(folder / "up.lock")
    if pid is not None:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(60)
    return sweep(folder) or pid is not None


@contextmanager
def _stack(
    folder: Path, host: str, port: int, mlflow_port: int, stop: threading.Event
) -> Iterator[list[Child]]:
    """Everything started, and ended in the opposite order when the context ends."""
    settings = Settings.from_env()
    check_address(host, port, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(folder))
        state = State.load(folder)
        stack.callback(sweep, folder)  # whatever else carries our mark: workers, drivers
        children: list[Child] = [RayHead(state), MlflowServer(state, mlflow_port)]
        sweep(folder, spare=[child for child in children if child.is_alive()])
        for child in children:
            stack.callback(child.end)
            _say(f"{child.name}: {'taking over' if child.is_alive() else 'starting'}")
            child.take_over_or_start()
        _wait_until_ready(children, stop)
        if not stop.is_set():
            settings = _completed(settings, state, mlflow_port)
            stack.enter_context(running(settings, host=host, port=port, stop=stop))
            _say_ready(settings, host, port)
        yield children


def _completed(settings: Settings, state: State, mlflow_port: int) -> Settings:
    """The settings of the embedded stack: what the environment says, and where its own parts are."""
    own_database = f"sqlite:///{state.folder / 'syncbn.db'}"
    return settings.model_copy(
        update={
            "database_url": settings.database_url
            if "database_url" in settings.model_fields_set
            else own_database,
            "ray_url": state.ray_url,
            "ray_token": SecretStr(state.token),
            "mlflow_url": f"http://127.0.0.1:{mlflow_port}",
            "mlflow_public_url": f"http://127.0.0.1:{mlflow_port}",
            "storage": str(state.folder / "checkpoints"),
        }
    )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the kernel lets go of it however this process ends."""
    with (folder / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another `syncbn up` runs on {folder}: use that one, or give another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _holder(path: Path) -> int | None:
    """The process that holds the lock; None if nobody does."""
    if not path.exists():
        return None
    with path.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read())
    return None


def _wait_until_ready(children: list[Child], stop: threading.Event) -> None:
    begun = time.monotonic()
    for child in children:
        while not stop.is_set() and not child.is_ready():
            if not child.is_alive() or time.monotonic() - begun > SECONDS_TO_START:
                raise Refused(f"{child.name} did not start; its log is {child.log}")
            stop.wait(0.2)
        if not stop.is_set():
            _say(f"{child.name} is up after {time.monotonic() - begun:.0f} s")


def _say_ready(settings: Settings, host: str, port: int) -> None:
    _say(
        f"\nready\n  API     http://{host}:{port}        (try http://{host}:{port}/docs)\n"
        f"  MLflow  {settings.mlflow_public_url}\n"
        f"  jobs    syncbn --url http://{host}:{port} submit SPEC.yaml --follow\n\nCtrl-C ends all of it."
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201

"""`syncbn up`: Ray, MLflow, the scheduler and the API on one machine, with all data in one folder.

    DIR/syncbn.db      the queue                DIR/mlflow.db, DIR/artifacts   MLflow's data
    DIR/checkpoints    of the jobs              DIR/logs                       of Ray, MLflow and scheduler
    DIR/stack.json     the stack's processes    DIR/ray.token, DIR/secrets.key Ray's token, the secrets' key

The API runs in the process of `up`. The other servers are its children, each in its own session. If `up` is
killed, they and the jobs go on; the next `up` on the folder takes over Ray and MLflow and replaces the
scheduler.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import psutil
from pydantic import SecretStr

from service import logs
from service.client.local_token import token_file
from service.embedded.private_folder import make_private
from service.embedded.processes import LOGS, Child, StackState, end_all, sweep
from service.embedded.servers import MLFLOW_DATABASE, MlflowServer, RayHead, SchedulerServer
from service.errors import Refused
from service.foreground import open_store, print_line, reported_errors, stop_on_signals
from service.server import check_address, running
from service.settings import Settings
from training.host.job_user import AS_ROOT, JobUserError, JobUsers, of_environment
from training.host.own_folder import remove_abandoned

DATABASE = "syncbn.db"
RUNS = "checkpoints"
FOLDERS = (LOGS, RUNS, "artifacts")
SECONDS_TO_START = 200.0
SECONDS_TO_END = 60.0


def run(*, data_dir: Path, host: str, port: int, mlflow_port: int) -> int:
    """Runs the stack in the foreground until SIGINT or SIGTERM; returns the exit code.

    Exit code 0: stopped by a signal; 2: it could not start, and the reason is on stderr.
    """
    stop = stop_on_signals()
    with reported_errors() as failed, _stack(data_dir.resolve(), host, port, mlflow_port, stop) as children:
        while not stop.wait(1.0):
            _keep_running(children)
        print_line("\nending: API, jobs, scheduler, Ray, MLflow")
    return 2 if failed else 0


def down(*, data_dir: Path) -> bool:
    """Ends the stack of a folder, including what is left after `up` was killed. Blocks until it is gone.

    Returns whether there was anything to end.
    """
    folder = data_dir.resolve()
    pid = _holder(folder / "up.lock")
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            end_all([psutil.Process(pid)], SECONDS_TO_END)
    found = sweep(folder)
    remove_abandoned()
    return found or pid is not None


@contextmanager
def _stack(
    folder: Path, host: str, port: int, mlflow_port: int, stop: threading.Event
) -> Iterator[list[Child]]:
    """Starts everything, and ends it in reverse order when the context ends."""
    given = Settings.from_env()
    logs.configure(given.log_format)
    check_address(host, port, given)
    own = () if "database_url" in given.model_fields_set else (DATABASE,)
    users = _job_users()
    make_private(folder, (*own, MLFLOW_DATABASE), FOLDERS, () if users is None else (RUNS,))
    _check(users, folder / RUNS)
    with ExitStack() as stack:
        stack.enter_context(_only_one(folder))
        state = StackState.load(folder)
        store = open_store(_database_url(given, folder))
        stack.callback(store.close)
        stack.callback(remove_abandoned)  # of the host agent, which Ray kills
        stack.callback(sweep, folder)  # any other process with our mark
        ray, mlflow = RayHead(state), MlflowServer(state, mlflow_port)
        scheduler = SchedulerServer(state, store, lambda: _completed(given, state, mlflow_port))
        sweep(folder, spare=[child for child in (ray, mlflow) if child.is_alive()])
        children: list[Child] = [ray, mlflow, scheduler]
        for child in children:
            stack.callback(child.end)
            print_line(f"{child.name}: {'taking over' if child.is_alive() else 'starting'}")
            child.take_over_or_start()
        settings = _completed(given, state, mlflow_port)
        stack.enter_context(running(settings, store, host=host, port=port, stop=stop))
        _wait_until_ready(children, stop)
        if not stop.is_set():
            _say_ready(settings, host, port)
        yield children


def _job_users() -> JobUsers | None:
    try:
        return of_environment(os.environ)
    except JobUserError as error:
        raise Refused(str(error)) from None


def _check(users: JobUsers | None, runs: Path) -> None:
    """Raises Refused if jobs cannot run as their system users; says if they run as root."""
    if users is not None:
        try:
            users.check(runs)
        except JobUserError as error:
            raise Refused(str(error)) from None
    elif os.geteuid() == 0:
        print_line(AS_ROOT)


def _keep_running(children: list[Child]) -> None:
    restarted = [child for child in children if child.restart_if_dead()]
    for child in children:
        if isinstance(child, SchedulerServer) and any(isinstance(other, RayHead) for other in restarted):
            child.take_over_or_start()  # the old scheduler belongs to the Ray that has ended


def _database_url(given: Settings, folder: Path) -> str:
    own = f"sqlite:///{folder / DATABASE}"
    return given.database_url if "database_url" in given.model_fields_set else own


def _completed(given: Settings, state: StackState, mlflow_port: int) -> Settings:
    """Returns the settings of the environment, with the addresses and paths of the stack's own servers."""
    return given.of_stack(
        state.folder / LOGS,
        database_url=_database_url(given, state.folder),
        ray_address=state.ray_address,
        ray_token=SecretStr(state.token),
        mlflow_url=f"http://127.0.0.1:{mlflow_port}",
        mlflow_public_url=f"http://127.0.0.1:{mlflow_port}",
        storage=str(state.folder / RUNS),
        secrets_key=given.secrets_key or SecretStr(state.secrets_key),
    )


def settings_of(folder: Path) -> Settings | None:
    """Returns the settings of the parts that the last `up` on the folder started; None if none ever has."""
    if not (folder / "stack.json").exists():
        return None
    state = StackState.load(folder)
    if "gcs_port" not in state.servers.get("ray", {}) or "port" not in state.servers.get("mlflow", {}):
        return None
    return _completed(Settings.from_env(), state, state.servers["mlflow"]["port"])


def runs_on(folder: Path) -> bool:
    """Returns whether an `up` runs on the folder."""
    return _holder(folder / "up.lock") is not None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel releases when the process ends. Raises Refused if taken."""
    with open(folder / "up.lock", "a+", opener=_private) as lock:
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _holder(path: Path) -> int | None:
    """Returns the pid of the process that holds the lock; None if none does."""
    if not path.exists():
        return None
    with path.open("r") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # Race closed: the holder has locked the file but not yet written its pid.
                if text := lock.read():
                    return int(text)
                time.sleep(0.01)
            else:
                return None


def _wait_until_ready(children: list[Child], stop: threading.Event) -> None:
    begun = time.monotonic()
    for child in children:
        while not stop.is_set() and not child.is_ready():
            if child.was_killed:
                child.restart_if_dead()  # it did not end by itself, so there is nothing wrong with it
            elif not child.is_alive() or time.monotonic() - begun > SECONDS_TO_START:
                raise Refused(f"{child.name} did not start; its log is {child.log}")
            stop.wait(0.2)
        if not stop.is_set():
            print_line(f"{child.name} is up after {time.monotonic() - begun:.0f} s")


def _say_ready(settings: Settings, host: str, port: int) -> None:
    token = f"  token   {token_file(port)}\n" if settings.api_key is None else ""
    print_line(
        f"\nready\n  console {_console_link(settings, host, port)}\n"
        f"  API     http://{host}:{port}        (try http://{host}:{port}/docs)\n{token}"
        f"  MLflow  {settings.mlflow_public_url}\n"
        f"  jobs    syncbn --url http://{host}:{port} submit SPEC.yaml --follow\n\nCtrl-C ends all of it."
    )


def _console_link(settings: Settings, host: str, port: int) -> str:
    """Returns the address of the console; where the API has no key, one that signs in.

    Whoever reads that may do everything: what `up` prints for people is as secret as the token's file. JSON
    goes to a log collector, so there the address is without the token.
    """
    address = f"http://{host}:{port}/"
    if settings.api_key is not None or settings.log_format is logs.LogFormat.JSON:
        return address
    with suppress(OSError):
        return f"{address}sign-in?{urlencode({'token': token_file(port).read_text()})}"
    return address

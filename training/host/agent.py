"""The host agent: forks the ranks of this machine, watches them, ends them, and reports their state.

Each machine has one: in the process of `syncbn train`, or in a Ray actor (`training.host.ray_agent`). It has
no durable state: when it is killed, its ranks end with it.

    agent ── fork server ── supervisor of a start ── ranks ── their child processes
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic

import psutil

from training.host.accounts import Accounts
from training.host.code import CodeCache
from training.host.environment import (
    FORK_SERVER_VARIABLES,
    RANK_DEFAULTS,
    machine_variables,
    rank_environment,
    storage_variables,
)
from training.host.fork_server import PRELOAD, ForkServer
from training.host.gang import Gang
from training.host.job_user import JobUserError, JobUsers
from training.host.own_folder import compiler_folder, matplotlib_folder
from training.host.packages import PackageFolder
from training.host.preparation import Preparation
from training.host.supervisor import supervise
from training.protocol import CodeMissing, News, Order, log_folder

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class HostAgent:
    """Forks and watches ranks. Thread-safe; only `news` and `close` block for longer than a fork takes.

    folder: a folder on this machine for this agent alone; `close` deletes it.
    environment: the variables of every rank; None: `machine_variables(os.environ)`.
    on_cluster: see ForkServer. environments: the folder for environments with jobs' requirements, which
    outlive this agent; None: that of `package_folder`. users: the system users of jobs, for an agent of root;
    None: jobs run as the user of the agent; an error: no job can start, for that reason.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        on_cluster: bool = True,
        environments: Path | None = None,
        users: JobUsers | JobUserError | None = None,
    ) -> None:
        given = machine_variables(os.environ) if environment is None else environment
        # A folder of a user's own run would go with it, and what torch has compiled.
        compiler = compiler_folder(folder) if on_cluster else {}
        self._base = {**given, **compiler, **matplotlib_folder(folder)}
        self._storage = storage_variables(os.environ) if environment is None else {}
        self._folder = folder
        self._code = CodeCache(folder)
        self._accounts = Accounts(users, self._base, folder, environments)
        self._server = ForkServer(
            {**RANK_DEFAULTS, **self._base, **FORK_SERVER_VARIABLES}, on_cluster=on_cluster
        )
        self._gangs: dict[str, Gang] = {}
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._version = 0
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._closing = False
        self._warm = threading.Event()
        self._selector = DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._selector.register(self._wake_receiver, EVENT_READ, None)
        self._threads = [
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True),
            threading.Thread(target=self._watch, name="host-agent", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # State

    def news(self, seen: int, seconds: float) -> News:
        """Returns the state of all starts. Blocks until its version is not `seen`, for at most `seconds`."""
        with self._news:
            self._news.wait_for(lambda: self._version != seen or self._closing, seconds)
            starts = tuple(gang.status() for gang in self._gangs.values())
            return News(version=self._version, starts=starts, warm=self._warm.is_set())

    # Orders

    def rendezvous(self, attempt: str, start: int, address: str) -> str:
        """Returns the "ADDRESS:PORT" at which the ranks of a start join their process group. Idempotent.

        The agent listens there until it launches rank 0, which takes the socket over.
        """
        with self._lock:
            listener = self._listeners.get((attempt, start))
            if listener is None:
                for old in [key for key in self._listeners if key[0] == attempt]:
                    self._listeners.pop(old).close()
                listener = socket.create_server((address, 0), family=_family(address), backlog=1024)
                self._listeners[attempt, start] = listener
            return f"{address}:{listener.getsockname()[1]}"

    def put_code(self, digest: str, archive: bytes) -> None:
        """Stores the zip archive of uploaded code under its `digest`. Idempotent."""
        self._code.put(digest, archive)

    def prepare(self, order: Order) -> None:
        """Installs the requirements of `order`, so that `launch` forks its ranks at once. Does not block.

        Idempotent. `news` tells how far it is. Raises CodeMissing as `launch` does.
        """
        self._begin(order, may_fork=False)

    def launch(self, order: Order) -> None:
        """Forks the ranks of `order`, once its requirements are installed.

        Idempotent: ignores a start whose ranks it has forked already, or an older one.
        If an older start of the attempt still runs, only ends that one: the caller sends the order again.
        Raises CodeMissing if `put_code` was not called for `order.code`. Any other error is recorded as the
        exit of the ranks.
        """
        self._begin(order, may_fork=True)

    def _begin(self, order: Order, *, may_fork: bool) -> None:
        with self._lock:
            current = self._gangs.get(order.attempt)
            if current is not None and current.order.start == order.start and may_fork:
                self._fork_prepared(current)
            if current is not None and current.order.start >= order.start:
                return
            if current is not None and not current.ended:
                current.end()  # two starts never run at once; the caller sends the order again
                return
            gang = Gang(order, self._changed)
            try:
                account = self._accounts.of(order)
                gang.user, gang.variables = account.user, account.variables
                gang.delete_files_of_earlier_launch()
                code = self._code.folder_for(order, gang.user)
                self._prepare_or_fork(gang, code, account.packages, may_fork=may_fork)
            except CodeMissing:
                raise
            except Exception as error:
                log.exception("%s could not be started", order.attempt)
                gang.launch_failed(error)
            self._gangs[order.attempt] = gang
            self._changed()

    def stop(self, attempt: str, *, seconds: float) -> None:
        """Asks the ranks of `attempt` to write a checkpoint and exit. Does not block.

        Kills them if they make no progress, or after `seconds`. Does nothing if the attempt is unknown or has
        ended.
        """
        with self._lock:
            if (gang := self._gangs.get(attempt)) is not None and not gang.ended:
                gang.stop(seconds)

    def end(self, attempt: str) -> None:
        """Kills the ranks of `attempt` and their child processes. Does not block.

        Does nothing if the attempt is unknown or has ended.
        """
        with self._lock:
            if (gang := self._gangs.get(attempt)) is not None and not gang.ended:
                gang.end()

    def forget(self, attempt: str) -> None:
        """Drops an attempt that has ended from `news` and deletes its working directory. Idempotent.

        Keeps an attempt that still runs.
        """
        with self._lock:
            gang = self._gangs.get(attempt)
            if gang is not None and gang.ended:
                del self._gangs[attempt]
                self._code.remove(gang.order)
                self._changed()
            for key in [key for key in self._listeners if key[0] == attempt]:
                self._listeners.pop(key).close()

    def close(self) -> None:
        """Kills all ranks and blocks until none of their processes is left, for at most 30 s."""
        with self._news:
            for gang in self._gangs.values():
                if not gang.ended:
                    gang.end()
            self._news.wait_for(lambda: all(gang.ended for gang in self._gangs.values()), 30.0)
            self._closing = True
            self._news.notify_all()
        self._wake_sender.send(b"x")
        self._threads[1].join()
        self._selector.close()
        for end in (self._wake_receiver, self._wake_sender, *self._listeners.values()):
            end.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Internals

    def _warm_up(self) -> None:
        try:
            self._server.warm_up()
        except Exception:
            # Ctrl-C ends the fork server too, and then this agent is about to be closed.
            with self._news:
                closing = self._news.wait_for(lambda: self._closing, 1.0)
            if not closing:
                log.exception("the fork server did not start")
        self._warm.set()
        self._changed()

    def _prepare_or_fork(self, gang: Gang, folder: Path, packages: PackageFolder, *, may_fork: bool) -> None:
        if not gang.order.spec.get("environment", {}).get("requirements"):
            self._fork_ranks(gang, folder)
            return
        gang.preparation = Preparation(gang.order, folder, packages, gang.user, partial(self._prepared, gang))
        gang.preparation.may_fork = may_fork
        gang.preparation.start()

    def _prepared(self, gang: Gang, error: Exception | None) -> None:
        with self._lock:
            if gang.prepared(error):
                self._fork_prepared(gang)

    def _fork_prepared(self, gang: Gang) -> None:
        """Forks the ranks of a start, now or once its preparation is done."""
        preparation = gang.preparation
        if preparation is None or gang.is_forked:
            return
        preparation.may_fork = True
        if preparation.provided is None or not preparation.is_done:
            return
        gang.order = replace(gang.order, packages=str(preparation.provided.packages))
        try:
            self._fork_ranks(gang, preparation.code)
        except Exception as error:
            log.exception("%s could not be started", gang.order.attempt)
            gang.launch_failed(error)
        self._changed()

    def _fork_ranks(self, gang: Gang, folder: Path) -> None:
        order = gang.order
        with gang.user.files():
            log_folder(order.folder, order.number).mkdir(parents=True, exist_ok=True)
            if order.runs_script:
                gang.folder.script_checkpoints.mkdir(parents=True, exist_ok=True)
        if order.rendezvous is None:
            # All ranks are on this machine, so the socket listens on loopback only.
            rendezvous = self.rendezvous(order.attempt, order.start, _loopback())
            order = gang.order = _on_loopback(order, rendezvous)
        listener = self._listeners.pop((order.attempt, order.start), None)
        control, for_supervisor = Pipe()
        reports, for_ranks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reports.setblocking(False)
        base = {**self._base, **gang.variables}
        environments = {
            assignment.rank: rank_environment(base, self._storage, order, assignment)
            for assignment in order.ranks
        }
        arguments = (order.to_json(), environments, str(folder), for_supervisor, for_ranks, listener)
        try:
            process = self._server.fork(supervise, gang.user, *arguments)
        except BaseException:
            control.close()
            reports.close()
            raise
        finally:
            for_supervisor.close()
            for_ranks.close()
            if listener is not None:
                listener.close()
        gang.attach(process, control, reports)
        self._selector.register(control, EVENT_READ, (gang, gang.read_control))
        self._selector.register(reports, EVENT_READ, (gang, gang.read_reports))
        self._wake_sender.send(b"x")

    def _watch(self) -> None:
        last_check = monotonic()
        while not self._closing:
            ready = self._selector.select(_POLL_SECONDS if self._gangs else None)
            with self._lock, suppress(BlockingIOError):
                for key, _ in ready:
                    if key.data is None:
                        self._wake_receiver.recv(4096)
                    else:
                        self._handle_readable(*key.data)
                if monotonic() - last_check >= _POLL_SECONDS:
                    last_check = monotonic()
                    for gang in self._gangs.values():
                        gang.check_deadlines()

    def _handle_readable(self, gang: Gang, read: Callable[[], None]) -> None:
        if gang.control is None or gang.reports is None:
            return  # closed since `select` returned it
        try:
            read()
        except Exception:
            log.exception("%s", gang.order.attempt)
        if gang.ended:
            for end in (gang.control, gang.reports):
                self._selector.unregister(end)
            gang.close()
            self._end_orphans()

    def _end_orphans(self) -> None:
        """Kills children of the fork server that a killed supervisor left behind."""
        supervisors = {gang.process.pid for gang in self._gangs.values() if gang.process is not None}
        for process in _fork_servers():
            for child in process.children():
                if child.pid not in supervisors:
                    with suppress(psutil.Error):
                        child.kill()

    def _changed(self) -> None:
        with self._news:
            self._version += 1
            self._news.notify_all()


def _fork_servers() -> list[psutil.Process]:
    servers = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(PRELOAD in word for word in child.cmdline()):
                servers.append(child)
    return servers


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _loopback() -> str:
    """Returns 127.0.0.1, or ::1 on a machine without IPv4."""
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return "::1"
    return "127.0.0.1"


def _on_loopback(order: Order, rendezvous: str) -> Order:
    interface = "lo" if sys.platform == "linux" else "lo0"
    variables = {"GLOO_SOCKET_IFNAME": interface, **order.variables}
    return replace(order, rendezvous=rendezvous, variables=variables)

"""The host agent: forks the ranks of this machine, watches them, ends them, and tells how they are.

A plain class, of which each machine has one: in the process of `syncbn train`, or in an actor of Ray
(`training.host.ray_agent`). It holds no state that matters: when it is killed, its ranks end with it.

    agent ── fork server ── supervisor of a start ── ranks ── what they start
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
from multiprocessing import Pipe
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic

import psutil

from training.host.code import CodeCache
from training.host.environment import OURS, WARM, of_rank, of_storage, of_the_machine
from training.host.fork_server import PRELOAD, ForkServer
from training.host.gang import Gang
from training.host.supervisor import supervise
from training.protocol import CodeMissing, News, Order, log_folder

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2


class HostAgent:
    """Thread-safe; no method but `news` and `close` blocks for longer than a fork takes.

    folder: on this machine, for its use alone. environment: what every rank gets; by default
    `of_the_machine(os.environ)`. on_cluster: see ForkServer.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, on_cluster: bool = True
    ) -> None:
        self._base = of_the_machine(os.environ) if environment is None else dict(environment)
        self._storage = of_storage(os.environ) if environment is None else {}
        self._folder = folder
        self._code = CodeCache(folder)
        self._server = ForkServer({**OURS, **self._base, **WARM}, on_cluster=on_cluster)
        self._gangs: dict[str, Gang] = {}
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._version = 0
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._closing = False
        self._warm = threading.Event()
        self._selector = DefaultSelector()
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, EVENT_READ, None)
        self._threads = [
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True),
            threading.Thread(target=self._watch, name="host-agent", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # What it tells

    def news(self, seen: int, seconds: float) -> News:
        """All that it knows, as soon as its version is another than `seen`, or after `seconds`."""
        with self._news:
            self._news.wait_for(lambda: self._version != seen or self._closing, seconds)
            starts = tuple(gang.status() for gang in self._gangs.values())
            return News(version=self._version, starts=starts, warm=self._warm.is_set())

    # Orders

    def rendezvous(self, attempt: str, start: int, address: str) -> str:
        """Where the ranks of a start meet, "ADDRESS:PORT": a socket that listens there until rank 0, which is
        to be launched by this agent, takes it over. The same answer when asked again.
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
        self._code.put(digest, archive)

    def launch(self, order: Order) -> None:
        """Forks the ranks of the order. Does nothing for a start that it has, or an older one.

        Raises CodeMissing. Whatever else goes wrong becomes the end of the ranks.
        """
        with self._lock:
            known = self._gangs.get(order.attempt)
            if known is not None and known.order.start >= order.start:
                return
            if known is not None and not known.over:
                known.end()  # two starts never run at once; the order comes again when this one has ended
                return
            gang = Gang(order, self._changed)
            try:
                self._begin(gang, self._code.folder_for(order))
            except CodeMissing:
                raise
            except Exception as error:
                log.exception("%s could not be started", order.attempt)
                gang.failed_to_begin(error)
            self._gangs[order.attempt] = gang
            self._changed()

    def stop(self, attempt: str, *, seconds: float) -> None:
        """Asks its ranks to save the run and to end; they are ended when they make no progress, or after
        `seconds`. Harmless for one that is unknown or has ended.
        """
        with self._lock:
            if (gang := self._gangs.get(attempt)) is not None and not gang.over:
                gang.stop(seconds)

    def end(self, attempt: str) -> None:
        """Kills its ranks and what they have started. Harmless for one that is unknown or has ended."""
        with self._lock:
            if (gang := self._gangs.get(attempt)) is not None and not gang.over:
                gang.end()

    def forget(self, attempt: str) -> None:
        """Of an attempt that has ended, or is unknown, nothing is told any more."""
        with self._lock:
            gang = self._gangs.get(attempt)
            if gang is not None and gang.over:
                del self._gangs[attempt]
                self._code.remove(gang.order)
                self._changed()
            for key in [key for key in self._listeners if key[0] == attempt]:
                self._listeners.pop(key).close()

    def close(self) -> None:
        """Ends all ranks, and returns when nothing of them is left."""
        with self._news:
            for gang in self._gangs.values():
                if not gang.over:
                    gang.end()
            self._news.wait_for(lambda: all(gang.over for gang in self._gangs.values()), 30.0)
            self._closing = True
            self._news.notify_all()
        self._wakes.send(b"x")
        self._threads[1].join()
        self._selector.close()
        for end in (self._woken, self._wakes, *self._listeners.values()):
            end.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Its own work

    def _warm_up(self) -> None:
        try:
            self._server.warm_up()
        except Exception:
            log.exception("the fork server did not start")
        self._warm.set()
        self._changed()

    def _begin(self, gang: Gang, folder: Path) -> None:
        order = gang.order
        log_folder(order.folder, order.number).mkdir(parents=True, exist_ok=True)
        if order.rendezvous is None:
            # All ranks are here, so nothing needs to listen beyond this machine.
            meeting = self.rendezvous(order.attempt, order.start, "127.0.0.1")
            order = gang.order = _on_loopback(order, meeting)
        listener = self._listeners.pop((order.attempt, order.start), None)
        control, for_supervisor = Pipe()
        reports, for_ranks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reports.setblocking(False)
        environments = {
            assignment.rank: of_rank(self._base, self._storage, order, assignment)
            for assignment in order.ranks
        }
        arguments = (order.to_json(), environments, str(folder), for_supervisor, for_ranks, listener)
        try:
            process = self._server.fork(supervise, *arguments)
        except BaseException:
            control.close()
            reports.close()
            raise
        finally:
            for_supervisor.close()
            for_ranks.close()
            if listener is not None:
                listener.close()
        gang.began(process, control, reports)
        self._selector.register(control, EVENT_READ, (gang, gang.heard))
        self._selector.register(reports, EVENT_READ, (gang, gang.told))
        self._wakes.send(b"x")

    def _watch(self) -> None:
        looked = monotonic()
        while not self._closing:
            ready = self._selector.select(_LOOK_SECONDS if self._gangs else None)
            with self._lock, suppress(BlockingIOError):
                for key, _ in ready:
                    if key.data is None:
                        self._woken.recv(4096)
                    else:
                        self._hear(*key.data)
                if monotonic() - looked >= _LOOK_SECONDS:
                    looked = monotonic()
                    for gang in self._gangs.values():
                        gang.look()

    def _hear(self, gang: Gang, read: Callable[[], None]) -> None:
        if gang.control is None or gang.reports is None:
            return  # closed since it was found to be readable
        try:
            read()
        except Exception:
            log.exception("%s", gang.order.attempt)
        if gang.over:
            for end in (gang.control, gang.reports):
                self._selector.unregister(end)
            gang.close()
            self._end_orphans()

    def _end_orphans(self) -> None:
        """What is below the fork server and no supervisor of ours: left by one that was killed."""
        known = {gang.process.pid for gang in self._gangs.values() if gang.process is not None}
        for process in _fork_servers():
            for child in process.children():
                if child.pid not in known:
                    with suppress(psutil.Error):
                        child.kill()

    def _changed(self) -> None:
        with self._news:
            self._version += 1
            self._news.notify_all()


def _fork_servers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(PRELOAD in word for word in child.cmdline()):
                found.append(child)
    return found


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _on_loopback(order: Order, meeting: str) -> Order:
    interface = "lo" if sys.platform == "linux" else "lo0"
    variables = {"GLOO_SOCKET_IFNAME": interface, **order.variables}
    return replace(order, rendezvous=meeting, variables=variables)

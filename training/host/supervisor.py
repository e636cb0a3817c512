"""The supervisor of one start: forks its ranks, reports how each exited, and kills what is left of them.

It is a process between the fork server and the ranks. It leads its own session and adopts orphans, so that
every process of the start is its descendant, even a daemon with an empty environment. When its agent goes
away, it kills all of them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from training.host.job_user import AgentUser, JobUser
from training.host.masked_log import MaskedLog
from training.host.memory_limit import MemoryLimit
from training.host.store import serve
from training.linux import adopt_orphans, out_of_memory_kills
from training.protocol import Order, RankAssignment
from training.rank.process import RankProcess
from training.rank.reports import Reports
from training.rank.steps import Steps

TERMINATE = b"terminate"
"""The message on `control` that sends SIGTERM to all ranks. Any other message kills them."""
_POLL_SECONDS = 0.01  # while killed processes have not exited yet


def supervise(
    user: JobUser | AgentUser,
    order: dict[str, Any],
    environments: Mapping[int, Mapping[str, str]],
    folder: str,
    control: Connection,
    reports: socket.socket,
    listener: socket.socket | None,
) -> None:
    """Runs the ranks of `order` (Order as JSON). Blocks until all of their processes have ended.

    user: the system user of this process from now on, and so of all that it starts.
    environments: the environment variables of each rank. folder: the ranks' working directory.
    control: gets {"rank", "status", "step", "out_of_memory"} for each rank that exits, with the status of
    os.waitpid, and "" or why memory ran out; TERMINATE on it sends SIGTERM to all ranks, any other message,
    or its end, kills them.
    reports: the socket to which ranks send their progress. listener: the rendezvous socket, for rank 0.
    """
    user.become()
    Supervisor(Order.from_json(order), environments, folder, control, reports, listener).run()


class Supervisor:
    """The state of `supervise`."""

    def __init__(
        self,
        order: Order,
        environments: Mapping[int, Mapping[str, str]],
        folder: str,
        control: Connection,
        reports: socket.socket,
        listener: socket.socket | None,
    ) -> None:
        self.order, self.environments, self.folder = order, environments, folder
        self.control, self.reports, self.listener = control, reports, listener
        self._ranks: dict[int, int] = {}  # rank by process id
        self._killed_before = out_of_memory_kills()
        self._memory = MemoryLimit(order.spec["resources"].get("memory_per_worker"))
        self._steps = Steps(len(order.ranks))
        self._outputs = {each.rank: MaskedLog(order, each.rank) for each in order.ranks if order.secrets}

    def run(self) -> None:
        """Forks the ranks and blocks until all processes of the start have ended."""
        os.setsid()
        adopt_orphans()
        wake_receiver, wake_sender = socket.socketpair()
        for end in (wake_receiver, wake_sender):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_sender.fileno(), warn_on_full_buffer=False)
        if self.order.runs_script and self.listener is not None:
            self._serve_store(self.listener)
        for assignment in self.order.ranks:
            self._fork(assignment, wake_receiver, wake_sender)
        # Only the agent ends it, through `control`. Not before the fork: a rank must not miss a SIGTERM that
        # comes before it has restored the default.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.listener is not None:
            self.listener.close()
        while self._ranks:
            outputs = [output.source for output in self._outputs.values()]
            ready = wait([self.control, wake_receiver, *outputs], self._memory.seconds_between)
            with suppress(BlockingIOError):
                wake_receiver.recv(4096)
            if self.control in ready and not self._terminated():
                break
            self._copy_output()
            self._reap()
            for pid in self._memory.over_limit(self._ranks):
                os.kill(pid, signal.SIGKILL)
        self._end_all()
        self._copy_output()

    def _serve_store(self, listener: socket.socket) -> None:
        """Forks the process at which the ranks of a script meet. It ends with the start."""
        assert self.order.rendezvous is not None
        if os.fork() == 0:
            self.control.close()
            serve(listener, self.order.rendezvous)
        self.listener = None
        listener.close()

    def _terminated(self) -> bool:
        """Sends SIGTERM to all ranks if the agent orders that; False: it orders the end, or is gone."""
        try:
            if self.control.recv_bytes() != TERMINATE:
                return False
        except (EOFError, OSError):
            return False
        for pid in self._ranks:  # not reaped yet, so these are still the ranks
            os.kill(pid, signal.SIGTERM)
        return True

    def _fork(self, assignment: RankAssignment, *inherited: socket.socket) -> None:
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self.control.close()
            for end in inherited:
                end.close()
            listener = self.listener if assignment.rank == 0 else None
            if self.listener is not None and listener is None:
                self.listener.close()
            reports = Reports(self.reports, assignment.rank, self._steps.writer(self._index(assignment.rank)))
            environment = self.environments[assignment.rank]
            rank = RankProcess(self.order, assignment, environment, self.folder, reports)
            output = self._outputs.get(assignment.rank)
            rank.run(supervisor, listener, output.target if output is not None else None)
        self._ranks[pid] = assignment.rank
        if assignment.rank in self._outputs:
            os.close(self._outputs[assignment.rank].target)

    def _reap(self) -> bool:
        """Reaps all children that have exited and reports the ranks. Returns False if no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self._ranks:
                self._report_exit(self._ranks.pop(pid), pid, status)

    def _copy_output(self) -> None:
        for output in self._outputs.values():
            output.copy()

    def _report_exit(self, rank: int, pid: int, status: int) -> None:
        if rank in self._outputs:
            self._outputs[rank].copy(to_end=True)  # the agent reads the log's last lines next
        killed, out_of_memory = out_of_memory_kills(), ""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            by_kernel = "memory ran out" if killed > self._killed_before else ""
            out_of_memory = self._memory.why(pid) or by_kernel
        self._killed_before = killed
        step = self._steps.read(self._index(rank))
        message = {"rank": rank, "status": status, "step": step, "out_of_memory": out_of_memory}
        with suppress(OSError):  # the agent is gone
            self.control.send_bytes(json.dumps(message).encode())

    def _index(self, rank: int) -> int:
        return next(index for index, assignment in enumerate(self.order.ranks) if assignment.rank == rank)

    def _end_all(self) -> None:
        while self._reap():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(_POLL_SECONDS)

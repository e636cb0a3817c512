"""The agent's view of one start: its ranks on this host, their progress and how they exited."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from training.errors import BuildError
from training.hangs.diagnosis import hang_report
from training.hangs.rank_files import RankFiles
from training.host.job_user import AgentUser, JobUser
from training.host.preparation import Preparation
from training.host.supervisor import TERMINATE
from training.protocol import (
    HANG_EXIT_CODE,
    LONGEST_TAIL,
    TAIL_LINES,
    Exit,
    ExitRecord,
    Order,
    Progress,
    StartStatus,
    exit_file,
    log_file,
    signal_name,
)
from training.rank.process import write_record
from training.run_dir import RunFolder, open_plain
from training.spec import shown

GRACE_SECONDS, LOST_PEER_GRACE_SECONDS = 0.1, 1.0
"""After one rank has failed, or lost a peer: how long the others keep running, to record their own errors."""
SECONDS_TO_SAVE = 120.0
"""How long ranks that have reached the time limit may take to save a checkpoint."""
STALL_SECONDS = 20.0
"""Ranks that were asked to stop are killed after this time without progress; the last checkpoint counts."""
_LONGEST_HANG = 8_000  # characters: the stacks of a few ranks
_LONGEST_RECORD = 2**20  # bytes


class Gang:
    """The ranks of `order`, one start on this host. Not thread-safe: the agent calls it under its lock.

    changed: called whenever the result of `status` may have changed. user, variables: of its Account.
    """

    def __init__(self, order: Order, changed: Callable[[], None]) -> None:
        self.order, self._changed = order, changed
        self.user: JobUser | AgentUser = AgentUser()
        self.variables: Mapping[str, str] = {}
        self.folder = RunFolder(
            path=Path(order.folder),
            checkpoints_url=order.checkpoints,
            attempt=order.number,
            start=order.start,
        )
        self.control: Connection | None = None
        self.reports: socket.socket | None = None
        self.process: BaseProcess | None = None
        self.preparation: Preparation | None = None
        self._progress: Progress | None = None
        self._joined: set[int] = set()
        self._exits: dict[int, ExitRecord] = {}
        self._ended = False  # all processes of the start are gone
        self._ending = False
        self._end_at: float | None = None
        self._began = monotonic()
        self._seconds: float | None = None  # how long it took
        self._timed_out = False
        self._stop: _Stop | None = None

    def delete_files_of_earlier_launch(self) -> None:
        """Deletes what an earlier launch of the same start left: its host was lost before it reported."""
        with self.user.files():
            for rank in self.ranks:
                self._exit_file(rank).unlink(missing_ok=True)
            if 0 in self.ranks:
                self.folder.stop_request.unlink(missing_ok=True)
                shutil.rmtree(self.folder.hang, ignore_errors=True)

    def _exit_file(self, rank: int) -> Path:
        return exit_file(self.order.folder, self.order.number, self.order.start, rank)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(assignment.rank for assignment in self.order.ranks)

    @property
    def ended(self) -> bool:
        return self._ended

    def status(self) -> StartStatus:
        """Returns the start's state for the service."""
        known = tuple(self._exits.values())
        return StartStatus(
            attempt=self.order.attempt,
            start=self.order.start,
            ranks=self.ranks,
            joined=self._joined >= set(self.ranks),
            progress=self._progress,
            # The last exit is withheld until all processes of the start are gone.
            exits=known if self._ended else known[: len(self.ranks) - 1],
            seconds=self._seconds_so_far(),
            installing=self.preparation.message if self.preparation and not self.is_forked else "",
            prepared=self.preparation is not None and self.preparation.is_done,
        )

    @property
    def is_forked(self) -> bool:
        """Whether its ranks have been forked, or never will be."""
        return self.process is not None or self._ended

    def _seconds_so_far(self) -> float:
        if self.process is None:
            return 0.0
        return monotonic() - self._began if self._seconds is None else self._seconds

    def attach(self, process: BaseProcess, control: Connection, reports: socket.socket) -> None:
        """Stores the supervisor's process, its control connection, and the socket of the ranks' reports."""
        self.process, self.control, self.reports = process, control, reports
        self._began = monotonic()

    def prepared(self, error: Exception | None) -> bool:
        """Notes the end of its preparation; returns whether its ranks are to be forked now."""
        assert self.preparation is not None
        self.preparation.is_done = error is None
        if self._ending:
            self._end_unforked()
        elif error is not None:
            self.launch_failed(error)
        self._changed()
        return not self._ended and self.preparation.may_fork

    def _end_unforked(self) -> None:
        for rank in self.ranks:
            self._exits[rank] = ExitRecord(rank=rank, kind=Exit.ENDED, when=time.time())
        self._ended = True
        self.close()
        self._changed()

    def launch_failed(self, error: Exception) -> None:
        """Records `error` as the exit of all ranks: none was forked. A BuildError is final."""
        kind, message = "LaunchFailed", f"the rank could not be started: {type(error).__name__}: {error}"
        if isinstance(error, BuildError):
            kind, message = "BuildError", str(error)
        for rank in self.ranks:
            self._exits[rank] = ExitRecord(
                rank=rank,
                kind=Exit.ERROR,
                type=kind,
                message=message[:_LONGEST_HANG],
                when=time.time(),
            )
        self._ended = True
        self.close()
        self._changed()

    # Messages of the supervisor and the ranks

    def read_control(self) -> None:
        """Reads one message of the supervisor: a rank has exited, or the supervisor has."""
        assert self.control is not None
        try:
            message = json.loads(self.control.recv_bytes())
        except (EOFError, OSError):
            with self.user.files():
                self._supervisor_ended()
            return
        with self.user.files():
            self._rank_ended(**message)

    def read_reports(self) -> None:
        """Reads all messages that ranks have sent with `Reports`."""
        assert self.reports is not None
        with suppress(BlockingIOError):
            while message := self.reports.recv(2**20):
                self._handle_report(json.loads(message))

    def _handle_report(self, report: dict[str, Any]) -> None:
        if report.get("joined"):
            self._joined.add(report["rank"])
        if progress := report.get("progress"):
            self._progress = Progress.from_json(progress)
        self._changed()

    def _rank_ended(self, rank: int, status: int, step: int, *, out_of_memory: str) -> None:
        self.read_reports()
        record = self._own_record(rank) or self._record_death(rank, status, step, out_of_memory=out_of_memory)
        if self.order.runs_script and self._stop is not None and record.when >= self._stop.asked_at:
            # Only the script knows whether it was interrupted or at its end, and can tell when it runs again.
            record = ExitRecord(rank=rank, kind=Exit.STOPPED, when=record.when, counts_steps=False)
        record = self._by_time_limit(record)
        if record.failed:
            record = self._with_log_tail(record)
            grace = LOST_PEER_GRACE_SECONDS if record.lost_peer else GRACE_SECONDS
            self._end_at = min(monotonic() + grace, self._end_at or float("inf"))
        self._exits[rank] = record
        if record.progress is not None:
            self._progress = record.progress
        elif rank == 0 and self._progress is not None:
            # Killed: the last report may be a second old, and the step in progress is known.
            self._progress = replace(self._progress, step=max(self._progress.step, record.step - 1))
        self._changed()

    def _with_log_tail(self, record: ExitRecord) -> ExitRecord:
        path = log_file(self.order.folder, self.order.number, record.rank or 0)
        return replace(record, log_tail=_last_lines(path))

    def _own_record(self, rank: int) -> ExitRecord | None:
        """Returns the exit record that the rank wrote itself; None if there is no readable one."""
        try:
            with open_plain(self._exit_file(rank)) as file:
                return ExitRecord.from_json(json.loads(file.read(_LONGEST_RECORD)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def _by_time_limit(self, record: ExitRecord) -> ExitRecord:
        """Returns the record, as TIMED_OUT if the rank was ended because of the time limit."""
        if not self._timed_out or record.kind not in {Exit.STOPPED, Exit.ENDED}:
            return record
        limit = shown(self.order.spec["time_limit"]["run"])
        message = f"it has run for {limit}, its time limit; its last checkpoint is kept"
        return replace(record, kind=Exit.TIMED_OUT, message=message)

    def _record_death(self, rank: int, status: int, step: int, *, out_of_memory: str) -> ExitRecord:
        record = self._record_from_status(rank, status, step, out_of_memory=out_of_memory)
        with suppress(OSError):
            write_record(record, self.order)
        return record

    def _record_from_status(self, rank: int, status: int, step: int, *, out_of_memory: str) -> ExitRecord:
        record = ExitRecord(
            rank=rank,
            kind=Exit.ENDED,
            step=step,
            when=time.time(),
            counts_steps=not self.order.runs_script,
        )
        if self._ending:
            return record
        if out_of_memory:
            return replace(record, kind=Exit.OUT_OF_MEMORY, type="SIGKILL", message=out_of_memory)
        if os.WIFSIGNALED(status):
            return replace(record, kind=Exit.SIGNAL, type=signal_name(os.WTERMSIG(status)))
        code = os.waitstatus_to_exitcode(status)
        if self.order.runs_script and code == 0:  # os._exit(0), or another program in place of the rank
            return replace(record, kind=Exit.FINISHED)
        if code == HANG_EXIT_CODE and not self.order.runs_script:
            return replace(record, kind=Exit.HUNG, message="the rank made no progress")
        return replace(record, kind=Exit.EXITED, code=code)

    def _supervisor_ended(self) -> None:
        """Records exits for ranks without one: the supervisor was killed, and its ranks with it."""
        steps = {position.rank: position.step for position in self._positions()}
        for rank in set(self.ranks) - self._exits.keys():
            record = self._own_record(rank) or self._lost_record(rank, steps.get(rank, 0))
            self._exits[rank] = self._by_time_limit(record)
        self._ended, self._seconds = True, monotonic() - self._began
        self._mark_if_hung()
        self._changed()

    def _lost_record(self, rank: int, step: int) -> ExitRecord:
        """step: the rank's last known one, which may be a second old."""
        if self._ending:
            return ExitRecord(rank=rank, kind=Exit.ENDED, when=time.time())
        if self._progress is not None:
            step = max(step, self._progress.step + 1)
        message = "the supervisor of its start was killed"
        return self._with_log_tail(
            ExitRecord(rank=rank, kind=Exit.LOST, step=step, message=message, when=time.time())
        )

    def _mark_if_hung(self) -> None:
        """Marks failed ranks as hung if there is a hang report and no rank raised an error of its own."""
        if any(record.kind is Exit.ERROR and not record.lost_peer for record in self._exits.values()):
            return
        try:
            hang = hang_report(self.folder.hang)
        except (OSError, ValueError, TypeError, KeyError):  # user code may write there
            return
        if hang is None:
            return
        for rank, record in self._exits.items():
            if record.failed:
                self._exits[rank] = replace(
                    record,
                    kind=Exit.HUNG,
                    step=hang.step,
                    message=hang.message[:_LONGEST_HANG],
                    blamed_rank=hang.rank,
                )

    def close(self) -> None:
        """Closes the connections to the supervisor, which has ended."""
        for end in (self.control, self.reports):
            if end is not None:
                end.close()
        self.control = self.reports = None
        if self.process is not None:
            self.process.join(5.0)
        if self.preparation is not None:
            self.preparation.release()

    # Orders of the agent

    def stop(self, seconds: float) -> None:
        """Asks the ranks to write a checkpoint and exit within `seconds`. Another call can shorten that.

        The ranks of a script get SIGTERM.
        """
        if not self.is_forked:
            self.end()  # there is nothing to save
        elif self._stop is None:
            # Without the file the ranks are not asked, and killed at the deadline.
            with self.user.files(), suppress(OSError):
                self.folder.stop_request.parent.mkdir(parents=True, exist_ok=True)
                self.folder.stop_request.touch()
            self._stop = _Stop(monotonic() + seconds, monotonic(), saves=not self.order.runs_script)
            if self.order.runs_script and self.control is not None:
                with suppress(OSError):
                    self.control.send_bytes(TERMINATE)
        else:
            self._stop.deadline = min(self._stop.deadline, monotonic() + seconds)

    def end(self) -> None:
        """Makes the supervisor kill all processes of the start."""
        self._ending = True
        if self.control is not None:
            with suppress(OSError):
                self.control.send_bytes(b"end")
        elif self.preparation is not None and not self.is_forked:
            if self.preparation.is_done:
                self._end_unforked()
            self.preparation.cancel()

    def check_deadlines(self) -> None:
        """Ends the ranks once a deadline has passed. The agent calls it several times a second."""
        if self._ended or self._ending or not self.is_forked:
            return
        now, limit = monotonic(), self.order.seconds_left
        if limit is not None and now - self._began >= limit and self._stop is None:
            self._timed_out = True
            self.stop(self.order.grace_seconds if self.order.runs_script else SECONDS_TO_SAVE)
        if (self._end_at is not None and now >= self._end_at) or (
            self._stop is not None and self._stop.is_due(self._positions(), now)
        ):
            self.end()

    def _positions(self) -> list[Any]:
        """Returns where the ranks are, [] if that cannot be read: user code may write there."""
        with self.user.files(), suppress(OSError, ValueError):
            return RankFiles(self.folder.hang).positions()
        return []


class _Stop:
    """A request to stop: its deadline, and since when the ranks make no progress (both `monotonic`).

    saves: whether the ranks show what they are doing, and save a checkpoint; a script has until the deadline.
    """

    def __init__(self, deadline: float, now: float, *, saves: bool) -> None:
        self.deadline, self._stalled_since, self._saves = deadline, now, saves
        self.asked_at = time.time()
        self._last: list[tuple[int, str]] | None = None

    def is_due(self, positions: list[Any], now: float) -> bool:
        """Whether to kill the ranks now, given their current positions."""
        if not self._saves:
            return now >= self.deadline
        doing = [(position.step, position.doing) for position in positions]
        if doing != self._last or any(what.startswith("saving") for _, what in doing):
            self._last, self._stalled_since = doing, now
        if not doing:  # no rank has started training, so there is nothing to save
            return True
        return now >= self.deadline or now - self._stalled_since >= STALL_SECONDS


def _last_lines(path: Path) -> str:
    """Returns the last TAIL_LINES lines of a log, from its last LONGEST_TAIL bytes; "" if there is none."""
    try:
        with open_plain(path) as log:
            log.seek(max(log.seek(0, os.SEEK_END) - LONGEST_TAIL, 0))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])

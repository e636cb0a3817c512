"""The ranks of one start on one host, as their agent sees them: what the supervisor says of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from training.hangs.diagnosis import hang_report
from training.hangs.rank_files import RankFiles
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
from training.run_dir import RunFolder

GRACE_SECONDS, LOST_PEER_GRACE_SECONDS = 0.1, 1.0
"""How long the other ranks may say what they know, once one has failed, or only noticed that another has."""
PATIENCE_SECONDS = 20.0
"""Without any progress of ranks that were asked to stop; then the last checkpoint has to do."""
_LONGEST_HANG = 8_000  # characters: the stacks of a few ranks


class Gang:
    """Not thread-safe: its agent sees to that. `changed` is called when `status` may say something new."""

    def __init__(self, order: Order, changed: Callable[[], None]) -> None:
        self.order, self._changed = order, changed
        self.folder = RunFolder(
            path=Path(order.folder),
            checkpoints_url=order.checkpoints,
            attempt=order.number,
            start=order.start,
        )
        self.control: Connection | None = None
        self.reports: socket.socket | None = None
        self.process: BaseProcess | None = None
        self._progress: Progress | None = None
        self._joined: set[int] = set()
        self._exits: dict[int, ExitRecord] = {}
        self._over = False  # everything below the supervisor is gone
        self._ending = False
        self._end_at: float | None = None
        self._stop: _Stop | None = None
        self._forget_earlier_launch()

    def _forget_earlier_launch(self) -> None:
        """Of this very start, which was lost with the machine that had told of it: nothing of it counts."""
        for rank in self.ranks:
            exit_file(self.order.folder, self.order.number, self.order.start, rank).unlink(missing_ok=True)
        if 0 in self.ranks:
            self.folder.stop_request.unlink(missing_ok=True)
            shutil.rmtree(self.folder.hang, ignore_errors=True)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(assignment.rank for assignment in self.order.ranks)

    @property
    def over(self) -> bool:
        return self._over

    def status(self) -> StartStatus:
        known = tuple(self._exits.values())
        return StartStatus(
            attempt=self.order.attempt,
            start=self.order.start,
            ranks=self.ranks,
            joined=self._joined >= set(self.ranks),
            progress=self._progress,
            # The last one is told when nothing of the start is left.
            exits=known if self._over else known[: len(self.ranks) - 1],
        )

    def began(self, process: BaseProcess, control: Connection, reports: socket.socket) -> None:
        self.process, self.control, self.reports = process, control, reports

    def failed_to_begin(self, error: Exception) -> None:
        for rank in self.ranks:
            self._exits[rank] = ExitRecord(
                rank=rank,
                kind=Exit.ERROR,
                type="LaunchFailed",
                message=f"the rank could not be started: {type(error).__name__}: {error}"[:_LONGEST_HANG],
                when=time.time(),
            )
        self._over = True
        self._changed()

    # What the supervisor and the ranks say

    def heard(self) -> None:
        """Reads what the supervisor has said."""
        assert self.control is not None
        try:
            said = json.loads(self.control.recv_bytes())
        except (EOFError, OSError):
            self._supervisor_ended()
            return
        self._rank_ended(**said)

    def told(self) -> None:
        """Reads what ranks have told of themselves."""
        assert self.reports is not None
        with suppress(BlockingIOError):
            while message := self.reports.recv(2**20):
                self._take(json.loads(message))

    def _take(self, said: dict[str, Any]) -> None:
        if said.get("joined"):
            self._joined.add(said["rank"])
        if progress := said.get("progress"):
            self._progress = Progress.from_json(progress)
        self._changed()

    def _rank_ended(self, rank: int, status: int, step: int, *, out_of_memory: bool) -> None:
        self.told()
        record = self._record(rank) or self._found_dead(rank, status, step, out_of_memory=out_of_memory)
        if record.failed:
            record = replace(record, log_tail=_tail(log_file(self.order.folder, self.order.number, rank)))
            grace = LOST_PEER_GRACE_SECONDS if record.lost_peer else GRACE_SECONDS
            self._end_at = min(monotonic() + grace, self._end_at or float("inf"))
        self._exits[rank] = record
        if record.progress is not None:
            self._progress = record.progress
        self._changed()

    def _record(self, rank: int) -> ExitRecord | None:
        """What the rank has written itself."""
        try:
            text = exit_file(self.order.folder, self.order.number, self.order.start, rank).read_text()
            return ExitRecord.from_json(json.loads(text))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _found_dead(self, rank: int, status: int, step: int, *, out_of_memory: bool) -> ExitRecord:
        record = self._told_by(rank, status, step, out_of_memory=out_of_memory)
        with suppress(OSError):
            write_record(record, self.order)
        return record

    def _told_by(self, rank: int, status: int, step: int, *, out_of_memory: bool) -> ExitRecord:
        record = ExitRecord(rank=rank, kind=Exit.ENDED, step=step, when=time.time())
        if self._ending:
            return record
        if out_of_memory:
            return replace(record, kind=Exit.OUT_OF_MEMORY, type="SIGKILL", message="memory ran out")
        if os.WIFSIGNALED(status):
            return replace(record, kind=Exit.SIGNAL, type=signal_name(os.WTERMSIG(status)))
        code = os.waitstatus_to_exitcode(status)
        if code == HANG_EXIT_CODE:
            return replace(record, kind=Exit.HUNG, message="the rank made no progress")
        return replace(record, kind=Exit.EXITED, code=code)

    def _supervisor_ended(self) -> None:
        """Either all is over, or it was killed, and its ranks with it."""
        for rank in set(self.ranks) - self._exits.keys():
            if self._ending:
                record = ExitRecord(rank=rank, kind=Exit.ENDED, when=time.time())
            else:
                message = "the supervisor of its start was killed"
                record = ExitRecord(rank=rank, kind=Exit.LOST, message=message, when=time.time())
            self._exits[rank] = self._record(rank) or record
        self._over = True
        self._say_if_hung()
        self._changed()

    def _say_if_hung(self) -> None:
        """What the ranks have written before they ended themselves tells more than their exit codes."""
        if any(record.kind is Exit.ERROR and not record.lost_peer for record in self._exits.values()):
            return
        hang = hang_report(self.folder.hang)
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
        """Lets go of what led to the supervisor, which has ended."""
        for end in (self.control, self.reports):
            if end is not None:
                end.close()
        self.control = self.reports = None
        if self.process is not None:
            self.process.join(5.0)

    # What is asked of it

    def stop(self, seconds: float) -> None:
        if self._stop is None:
            self.folder.stop_request.parent.mkdir(parents=True, exist_ok=True)
            self.folder.stop_request.touch()
            self._stop = _Stop(monotonic() + seconds, monotonic())
        else:
            self._stop.until = min(self._stop.until, monotonic() + seconds)

    def end(self) -> None:
        self._ending = True
        if self.control is not None:
            with suppress(OSError):
                self.control.send_bytes(b"end")

    def look(self) -> None:
        """To be called several times a second: what is due by time alone."""
        if self._over or self._ending:
            return
        now = monotonic()
        if (self._end_at is not None and now >= self._end_at) or (
            self._stop is not None and self._stop.is_over(self._positions(), now)
        ):
            self.end()

    def _positions(self) -> list[Any]:
        return RankFiles(self.folder.hang).positions()


class _Stop:
    """A request to stop: `until` when at most, and since when nothing has moved."""

    def __init__(self, until: float, now: float) -> None:
        self.until, self._still_since = until, now
        self._seen: list[tuple[int, str]] | None = None

    def is_over(self, positions: list[Any], now: float) -> bool:
        """Whether ranks with these positions are not waited for any more."""
        doing = [(position.step, position.doing) for position in positions]
        if doing != self._seen or any(what.startswith("saving") for _, what in doing):
            self._seen, self._still_since = doing, now
        if not doing:  # where no rank has begun there is nothing to save
            return True
        return now >= self.until or now - self._still_since >= PATIENCE_SECONDS


def _tail(path: Path) -> str:
    """The last lines of a log, of which there may be any number."""
    try:
        with path.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - LONGEST_TAIL, 0))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])

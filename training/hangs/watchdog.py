"""The watchdog of a rank: detects that the rank makes no progress, reports where it is, and ends it.

Each rank watches itself and does not communicate while it makes progress. A rank without progress for too
long writes a report and reads the files of the other ranks (`hangs.rank_files`). While another rank is alive
and not hung, this one may be waiting for it and keeps waiting: rank 0 may be evaluating or saving alone. If
there is no such rank, the run hangs, and every process ends.

    the training thread waits or loops     this module's thread reports and ends the process
    C code holds Python's global lock      faulthandler's thread writes the stack, the killer kills
    the process is stopped                 the other ranks report that it did not answer, the killer kills

Time is counted in ticks of the watching thread, so a pause of the process or the machine is not a hang.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from training.hangs.killer import Killer
from training.hangs.rank_files import HangReport, Position, PositionFile, RankFiles, cannot_progress
from training.hangs.stack_traces import thread_stacks
from training.protocol import HANG_EXIT_CODE

_LONGEST_TICK = 1.0
_ANSWER_SECONDS = 3.0, 60.0
"""Minimum and maximum seconds that a hung rank waits for a sign of life from another rank."""
_DUMP_AFTER = 1.0  # seconds beyond the limit; shorter than any answer timeout, since a dump is an answer
_KILL_AFTER = 3.0  # seconds beyond limit and answer timeout, so that the other ranks can report first


class Watchdog:
    """Watches the thread that enters this context. Every rank must enter one.

    folder: shared by all ranks and the process that reads the diagnosis. hang_seconds: time without progress
    that counts as a hang. first_step_seconds: replaces it, if larger, until `warmed_up`, because set-up may
    take long. step_made: called with the step at every `progress`.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        hang_seconds: float,
        first_step_seconds: float = 300.0,
        step_made: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.rank, self.world_size, self.hang_seconds = rank, world_size, hang_seconds
        self._files = RankFiles(folder)
        self._limit = max(hang_seconds, first_step_seconds)
        self._busy: list[float] = []
        self._at = (0, "setting up")
        self._step_made = step_made
        self._tick_seconds = min(_LONGEST_TICK, hang_seconds / 10)
        self._ticks = 0
        self._stop = threading.Event()
        self._answer_seconds = min(max(hang_seconds, _ANSWER_SECONDS[0]), _ANSWER_SECONDS[1])
        self._peers = _Peers(self._files, rank, world_size, self._answer_seconds)

    def progress(self, step: int, doing: str) -> None:
        """Reports progress: the rank is now `doing` this at optimizer step `step`, counted from 1.

        As cheap as storing an attribute. Call it between all operations that may take minutes.
        """
        self._step_made(step)
        self._at = (step, doing)  # a new object each time: the watching thread compares identity

    @property
    def step(self) -> int:
        """The step of the last `progress`; 0 before the first."""
        return self._at[0]

    def ranks_ahead(self) -> list[int]:
        """Returns the ranks that, about a second ago, had entered more collectives than this one has."""
        own = _collectives()
        return [
            position.rank
            for position in self._files.positions()
            if own is not None and position.collectives is not None and position.collectives > own
        ]

    def warmed_up(self) -> None:
        """Applies `hang_seconds` from now on. Called after the first step."""
        self._limit = self.hang_seconds

    @contextmanager
    def busy(self, doing: str, seconds: float = 3600.0) -> Iterator[None]:
        """Raises the limit to `seconds`, if larger, during a long operation such as saving."""
        step = self._at[0]
        self.progress(step, doing)
        self._busy.append(seconds)
        try:
            yield
        finally:
            self._busy.pop()
            self.progress(step, f"after {doing}")

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._files.path.mkdir(parents=True, exist_ok=True)
        self._files.withdraw(self.rank)
        self._position_file = PositionFile(self._files.position_file(self.rank))
        self._killer = Killer()
        self._arm()
        self._position_file.write(self._position())
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._watcher.join()
        faulthandler.cancel_dump_traceback_later()
        self.progress(self._at[0], f"ended with {kind.__name__}" if kind else "ended")
        with suppress(OSError):
            self._position_file.write(self._position(ended=True), sync=True)
            if kind is None:
                self._files.withdraw(self.rank)  # kept after an error: it may explain why others are gone
        self._position_file.close()
        self._killer.close()

    @property
    def _current_limit(self) -> float:
        return max([self._limit, *self._busy])

    def _watch(self) -> None:
        seen, stalled, before = self._at, 0.0, monotonic()
        while not self._stop.wait(self._tick_seconds):
            now = monotonic()
            # A wait much longer than requested means that the process was paused.
            elapsed, before = min(now - before, 2 * self._tick_seconds), now
            stalled = stalled + elapsed if self._at is seen else 0.0
            seen = self._at
            self._arm()
            with suppress(OSError):  # a file system that is unavailable for a while must not end the training
                self._tick(stalled, elapsed)

    def _arm(self) -> None:
        """Postpones the dump and the kill, which happen if this thread can no longer run."""
        allowed = self._current_limit
        faulthandler.dump_traceback_later(allowed + _DUMP_AFTER, file=self._position_file.descriptor)
        self._killer.allow(allowed + self._answer_seconds + _KILL_AFTER)

    def _tick(self, stalled: float, elapsed: float) -> None:
        self._ticks += 1
        reported = self._files.reported()
        self._position_file.write(self._position(), sync=bool(reported))
        if stalled < self._current_limit:
            if self.rank in reported:
                self._files.withdraw(self.rank)
            self._peers.forget()
            return
        if self.rank not in reported:
            stack, threads = thread_stacks(self._thread)
            self._files.report(
                HangReport(position=self._position(), seconds=stalled, stack=stack, threads=threads)
            )
        if not self._peers.any_may_progress(elapsed):
            self._end(stalled)

    def _end(self, stalled: float) -> None:
        step, doing = self._at
        text = f"rank {self.rank}: no progress for {stalled:.0f} s at step {step} ({doing}); the run hangs\n"
        os.write(2, text.encode())  # the hung thread may hold the lock of sys.stderr
        os._exit(HANG_EXIT_CODE)

    def _position(self, *, ended: bool = False) -> Position:
        step, doing = self._at
        return Position(
            rank=self.rank,
            world_size=self.world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            thread=self._thread,
            step=step,
            doing=doing,
            collectives=_collectives(),
            limit=self._current_limit,
            tick=self._ticks,
            ended=ended,
        )


class _Peers:
    """The other ranks, as seen by a hung rank."""

    def __init__(self, files: RankFiles, rank: int, world_size: int, answer_seconds: float) -> None:
        self._files, self._answer_seconds = files, answer_seconds
        self._ranks = set(range(world_size)) - {rank}
        self._seen: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}

    def any_may_progress(self, elapsed: float) -> bool:
        """Returns whether any other rank is alive and not hung. elapsed: seconds since the last call."""
        alive = {rank for rank in self._ranks - self._files.reported() if self._is_alive(rank, elapsed)}
        return bool(alive)

    def forget(self) -> None:
        """Forgets what was seen, because this rank makes progress again."""
        self._seen.clear()
        self._silent.clear()

    def _is_alive(self, rank: int, elapsed: float) -> bool:
        content = self._files.position_content(rank)
        if cannot_progress(content):
            return False
        is_news = content != self._seen.get(rank)
        self._seen[rank] = content
        self._silent[rank] = 0.0 if is_news else self._silent[rank] + elapsed
        return self._silent[rank] < self._answer_seconds


def _collectives() -> int | None:
    """Returns the number of collectives that this rank has entered in the default process group, or None."""
    if "torch.distributed" not in sys.modules:
        return None
    from training.internals import collectives_entered

    return collectives_entered()

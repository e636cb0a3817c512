"""Finds a rank that makes no progress, on that rank: it reports where it stands, and ends its process.

Each rank watches itself, without a word to the others while all is well. A rank that made no progress for
too long writes its report and looks at what the other ranks write (`hangs.rank_files`). As long as one of
them is alive and not hung itself, this one may be waiting for it, and goes on waiting: rank 0 may evaluate or
save alone. When none is left the run hangs for certain, and every process ends.

    the training thread waits or loops     this module's thread reports and ends the process
    C code keeps Python's global lock      faulthandler's thread writes the stack, the sentinel kills
    the process is stopped                 the others report that it did not answer, the sentinel kills

Time is counted in ticks of the thread that watches, so a pause of the process or of the machine is no hang.
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
from training.hangs.rank_files import HangReport, Position, PositionFile, RankFiles, is_settled
from training.hangs.stack_traces import stacks
from training.protocol import HANG_EXIT_CODE

_LONGEST_TICK = 1.0
_PATIENCE = 3.0, 60.0
"""At least and at most: seconds that a rank which hangs gives another one to answer."""
_DUMP_AFTER = 1.0  # seconds beyond the limit; less than any patience, since a dump is an answer
_KILL_AFTER = 3.0  # beyond limit and patience: the others say first what they know, then lose their peer


class Watchdog:
    """Watches the thread that enters this context; used on every rank.

    folder: on a file system that all ranks and the driver share. hang_seconds: without progress. A rank gets
    `first_step_seconds` instead, if they are more, until `warmed_up` is called: its set-up may take long.
    step_made: told of every step, at once.
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
        self._patience = min(max(hang_seconds, _PATIENCE[0]), _PATIENCE[1])
        self._others = _Others(self._files, rank, world_size, self._patience)

    def progress(self, step: int, doing: str) -> None:
        """Says that the rank is getting on: `doing` this, at the optimizer's `step`, counted from 1.

        Costs as much as storing an attribute; call it at whatever may be minutes apart.
        """
        self._step_made(step)
        self._at = (step, doing)  # a new object each time, which is how the other thread knows

    @property
    def step(self) -> int:
        """The one that `progress` named last; 0 before."""
        return self._at[0]

    def warmed_up(self) -> None:
        """From now on `hang_seconds` count: the first step is through."""
        self._limit = self.hang_seconds

    @contextmanager
    def busy(self, doing: str, seconds: float = 3600.0) -> Iterator[None]:
        """For what takes long without progress, like saving: `seconds` count meanwhile, if they are more."""
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
        self._sentinel = Killer()
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
            self._position_file.write(self._position(ended=True), through=True)
            if kind is None:
                self._files.withdraw(self.rank)  # after an error it may tell why others are gone
        self._position_file.close()
        self._sentinel.close()

    @property
    def _allowed(self) -> float:
        return max([self._limit, *self._busy])

    def _watch(self) -> None:
        seen, still, before = self._at, 0.0, monotonic()
        while not self._stop.wait(self._tick_seconds):
            now = monotonic()
            # After a pause the wait has lasted much longer than it was asked to.
            elapsed, before = min(now - before, 2 * self._tick_seconds), now
            still = still + elapsed if self._at is seen else 0.0
            seen = self._at
            self._arm()
            with suppress(OSError):  # a file system that is away for a while does not end the training
                self._tick(still, elapsed)

    def _arm(self) -> None:
        """Puts off what would happen if this thread did not run any more."""
        allowed = self._allowed
        faulthandler.dump_traceback_later(allowed + _DUMP_AFTER, file=self._position_file.descriptor)
        self._sentinel.allow(allowed + self._patience + _KILL_AFTER)

    def _tick(self, still: float, elapsed: float) -> None:
        self._ticks += 1
        reported = self._files.reported()
        self._position_file.write(self._position(), through=bool(reported))
        if still < self._allowed:
            if self.rank in reported:
                self._files.withdraw(self.rank)
            self._others.forget()
            return
        if self.rank not in reported:
            stack, threads = stacks(self._thread)
            self._files.report(
                HangReport(position=self._position(), seconds=still, stack=stack, threads=threads)
            )
        if not self._others.may_go_on(elapsed):
            self._end(still)

    def _end(self, still: float) -> None:
        step, doing = self._at
        text = f"rank {self.rank}: no progress for {still:.0f} s at step {step} ({doing}); the run hangs\n"
        os.write(2, text.encode())  # the thread that hangs may hold the lock of sys.stderr
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
            limit=self._allowed,
            tick=self._ticks,
            ended=ended,
        )


class _Others:
    """The other ranks, as seen by one that hangs."""

    def __init__(self, files: RankFiles, rank: int, world_size: int, patience: float) -> None:
        self._files, self._patience = files, patience
        self._ranks = set(range(world_size)) - {rank}
        self._seen: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}

    def may_go_on(self, elapsed: float) -> bool:
        """Whether one of them is alive and not hung; it is given `patience` seconds to say so."""
        alive = {rank for rank in self._ranks - self._files.reported() if self._is_alive(rank, elapsed)}
        return bool(alive)

    def forget(self) -> None:
        self._seen.clear()
        self._silent.clear()

    def _is_alive(self, rank: int, elapsed: float) -> bool:
        content = self._files.sign_of_life(rank)
        if is_settled(content):
            return False
        is_news = content != self._seen.get(rank)
        self._seen[rank] = content
        self._silent[rank] = 0.0 if is_news else self._silent[rank] + elapsed
        return self._silent[rank] < self._patience


def _collectives() -> int | None:
    """How many this rank has entered in the default process group; tells who is behind."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return None
    try:
        return int(distributed.group.WORLD._get_sequence_number_for_group())
    except RuntimeError:  # not every backend counts
        return None

"""When a process that has ended by itself is started again, and how one is kept running beside another."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

from service.foreground import say

STEADY_SECONDS = 30.0
PAUSES = (0.0, 1.0, 2.0, 4.0, 5.0)
SECONDS_TO_END = 10.0


class RestartBackoff:
    """How long to wait before each start: not at all at first, longer the more starts come to nothing.

    A process that has run for STEADY_SECONDS begins anew.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._started_at: float | None = None

    def started(self) -> None:
        self._started_at = self._clock()

    def next(self) -> float:
        """Seconds, for a process that has ended just now, or could not be started."""
        if self._started_at is not None and self._clock() - self._started_at >= STEADY_SECONDS:
            self._count = 0
        self._started_at = None
        self._count += 1
        return PAUSES[min(self._count, len(PAUSES)) - 1]


@contextmanager
def kept_running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Runs `command` for as long as the context lasts, again and again if it ends.

    Its standard input is a pipe that ends with this process, however that ends: a command that reads it can
    go as well. At the end of the context it has SECONDS_TO_END to end by itself.

    environment: what it gets on top of this process's.
    """
    keeper = _KeptRunning(name, command, environment)
    thread = threading.Thread(target=keeper.run, name=f"keeps the {name} running")
    thread.start()
    try:
        yield
    finally:
        keeper.end()
        thread.join()


class _KeptRunning:
    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name, self._command, self._environment = name, command, environment
        self._pauses = RestartBackoff()
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while (process := self._start()) is not None:
            with process:  # closes the pipe at its end
                code = process.wait()
            if self._ending.is_set():
                return
            pause = self._pauses.next()
            when = f"in {pause:g} s" if pause else "now"
            say(f"the {self._name} has ended by itself (exit code {code}): it is started again {when}")
            self._ending.wait(pause)

    def end(self) -> None:
        with self._lock:
            self._ending.set()
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()

    def _start(self) -> subprocess.Popen[bytes] | None:
        """None: it is not wanted any more."""
        with self._lock:  # Race closed: the end is asked for while a process is being started.
            if self._ending.is_set():
                return None
            self._pauses.started()
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | self._environment,
                stdin=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at the terminal is for its parent, which then ends it
            )
            return self._process

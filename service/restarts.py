"""Restarts a process that exits unexpectedly: the backoff, and `kept_running`, which applies it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic

from service.foreground import print_line

STEADY_SECONDS = 30.0
PAUSES = (0.0, 1.0, 2.0, 4.0, 5.0)
SECONDS_TO_END = 10.0


class RestartBackoff:
    """The wait before each restart: none at first, then longer with each failed start.

    A process that has run for STEADY_SECONDS resets the backoff.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._started_at: float | None = None

    def started(self) -> None:
        """Notes that the process has been started."""
        self._started_at = self._clock()

    def next(self) -> float:
        """Returns the seconds to wait. Call it when the process has just ended or could not be started."""
        if self._started_at is not None and self._clock() - self._started_at >= STEADY_SECONDS:
            self._count = 0
        self._started_at = None
        self._count += 1
        return PAUSES[min(self._count, len(PAUSES)) - 1]


@contextmanager
def kept_running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Runs `command` while the context lasts, and restarts it whenever it exits.

    Its standard input is a pipe that closes when this process ends, even when it is killed, so a command that
    reads it can exit too. When the context ends, the command gets SIGTERM, and SIGKILL after SECONDS_TO_END.

    environment: variables added to those of this process.
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
            with process:  # closes the pipe
                code = process.wait()
            if self._ending.is_set():
                return
            pause = self._pauses.next()
            when = f"in {pause:g} s" if pause else "now"
            print_line(f"the {self._name} exited unexpectedly (exit code {code}): restarting it {when}")
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
        """Starts the process; returns None if `end` was called."""
        with self._lock:  # Race closed: `end` is called while a process is being started.
            if self._ending.is_set():
                return None
            self._pauses.started()
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | self._environment,
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at the terminal reaches this process alone, which ends it
            )
            return self._process

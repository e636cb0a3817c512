"""The process of one rank: sets up its environment and log, trains or runs a script, records how it ended."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import resource
import signal
import site
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from json import dumps
from typing import NoReturn

from training.console import say, say_into
from training.errors import full_trace, is_lost_peer, may_pass, message_of
from training.linux import die_with_parent
from training.masking import Masker
from training.protocol import (
    LONGEST_MESSAGE,
    LONGEST_TRACE,
    LONGEST_TYPE,
    Exit,
    ExitRecord,
    Order,
    RankAssignment,
    exit_file,
    log_file,
)
from training.rank.children import exit_code
from training.rank.reports import Reports

_SECONDS_AT_EXIT = 10.0


class RankProcess:
    """One rank in the current, just forked process, which `run` ends."""

    def __init__(
        self,
        order: Order,
        assignment: RankAssignment,
        environment: Mapping[str, str],
        folder: str,
        reports: Reports,
    ) -> None:
        self.order, self.assignment, self.environment, self.folder = order, assignment, environment, folder
        self.reports = reports
        self._masker = Masker(order.secrets.values())

    def run(self, parent: int, listener: socket.socket | None, output: int | None = None) -> NoReturn:
        """Trains, writes the exit record, and exits the process.

        parent: process id of the supervisor. listener: the rendezvous socket, on rank 0. output: the
        descriptor to write output to; None: the rank's log.
        """
        code, umask, limits = 1, _umask(), _limits()
        try:
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)  # the supervisor ended before `die_with_parent` took effect
            self._set_up(output)
            record = self._train(listener)
            code = (
                record.code if record.kind is Exit.EXITED and record.code is not None else int(record.failed)
            )
            # User code may have changed them, and the record must be written.
            os.umask(umask)
            _restore(limits)
            self._write(record)
            _exit_after_timeout(code)
            atexit._run_exitfuncs()
        except BaseException as error:
            say(full_trace(error))
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _set_up(self, output: int | None) -> None:
        os.setsid()
        self._redirect(self._open_log() if output is None else output)
        os.environ.clear()
        os.environ.update(self.environment)
        # Read from the environment of the process that this one was forked from.
        time.tzset()
        tempfile.tempdir = None
        os.chdir(self.folder)
        if self.order.packages is not None:
            _put_first(self.order.packages)
        sys.path.insert(0, self.folder)
        sys.argv = ["syncbn"]
        # Not that of the fork server: processes of a loader are then forked from this one, as in a user's own
        # program, so that data sets need not be pickled, and no process imports torch anew.
        multiprocessing.set_start_method(None, force=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _open_log(self) -> int:
        path = log_file(self.order.folder, self.order.number, self.assignment.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _redirect(self, log: int) -> None:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        say_into(log)  # this descriptor stays open even if user code closes 1 and 2
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        os.close(devnull)
        # Line-buffered, so that each line can be read at once; unencodable text must not end the training.
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            stream = open(  # noqa: SIM115 (for the life of the process)
                descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def _train(self, listener: socket.socket | None) -> ExitRecord:
        if self.order.runs_script:
            return self._run_script()
        from training.rank.rank import RankRun

        run: RankRun | None = None
        try:
            run = RankRun(self.order, self.assignment, self.reports)
            kind = run.run(listener)
        except SystemExit as error:
            say(full_trace(error))
            interrupt = error.__context__  # Lightning turns a KeyboardInterrupt into SystemExit
            if isinstance(interrupt, KeyboardInterrupt):
                record = self._failed(interrupt)
            else:
                record = self._exited(error)
        except BaseException as error:
            builds = run is not None and run.builds and isinstance(error, Exception)
            record = replace(self._failed(error), repeats=builds and not may_pass(error))
            if record.lost_peer:  # the traceback of a rank that only waited would bury the cause
                say(f"rank {self.assignment.rank} lost another rank: {message_of(error)}")
            else:
                say(full_trace(error))
        else:
            record = ExitRecord(rank=self.assignment.rank, kind=kind, weights_sha256=run.weights_sha256)
        step = run.step if run is not None else 0
        return replace(record, step=step, when=time.time(), progress=self.reports.last)

    def _run_script(self) -> ExitRecord:
        from training.rank.script import is_usage_error, run_script

        try:
            error = run_script(self.order, self.reports)
        except BaseException as another:
            say(full_trace(another))
            error = another
        if error is None or (isinstance(error, SystemExit) and exit_code(error) == 0):
            record = ExitRecord(rank=self.assignment.rank, kind=Exit.FINISHED)
        elif isinstance(error, SystemExit):
            record = self._exited(error)
            if is_usage_error(error):
                record = replace(record, message="the script does not take its arguments", repeats=True)
        else:
            # A module that is missing, or is not Python, will be so the next time, too.
            record = replace(self._failed(error), repeats=isinstance(error, ImportError | SyntaxError))
        return replace(record, counts_steps=False, when=time.time())

    def _exited(self, error: SystemExit) -> ExitRecord:
        code = exit_code(error)
        return ExitRecord(
            rank=self.assignment.rank,
            kind=Exit.EXITED,
            code=code,
            message=self._bounded(_said(error, code), LONGEST_MESSAGE),
            trace=self._bounded(f"{full_trace(error)}\n", LONGEST_TRACE),
        )

    def _failed(self, error: BaseException) -> ExitRecord:
        return ExitRecord(
            rank=self.assignment.rank,
            kind=Exit.ERROR,
            type=self._bounded(type(error).__name__, LONGEST_TYPE),
            message=self._bounded(message_of(error), LONGEST_MESSAGE),
            trace=self._bounded(f"{full_trace(error)}\n", LONGEST_TRACE),
            lost_peer=is_lost_peer(error),
        )

    def _write(self, record: ExitRecord) -> None:
        write_record(record, self.order)

    def _bounded(self, text: str, longest: int) -> str:
        """Returns the text for an exit record, its secrets masked before it is cut."""
        return _bounded(self._masker.mask(text), longest)


def write_record(record: ExitRecord, order: Order) -> None:
    """Writes an exit record to the run folder, atomically."""
    path = exit_file(order.folder, order.number, order.start, record.rank or 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(dumps(record.to_json()))
    temporary.replace(path)


def _put_first(packages: str) -> None:
    """Puts a folder of packages first on the import path, and what its .pth files name, as `site` does."""
    before = list(sys.path)
    site.addsitedir(packages)
    sys.path[:] = [path for path in sys.path if path not in before] + before
    importlib.invalidate_caches()


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _limits() -> dict[int, tuple[int, int]]:
    """Returns the limits that would keep a rank from writing a file."""
    return {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)}


def _restore(limits: Mapping[int, tuple[int, int]]) -> None:
    for kind, limit in limits.items():
        with suppress(ValueError, OSError):  # lowered for good; then the agent tells the exit code
            resource.setrlimit(kind, limit)


def _said(error: SystemExit, code: int) -> str:
    """Returns what the caller of sys.exit has said beside the exit code."""
    if error.code is None or error.code == code:
        return "sys.exit was called"
    if isinstance(error.code, int):
        return f"sys.exit({error.code}) was called, of which the system keeps {code}"
    return f"sys.exit: {message_of(error)}"


def _exit_after_timeout(code: int) -> None:
    """Starts a timer that exits the process if functions registered with `atexit` do not return in time."""

    def end() -> None:
        say(f"atexit: a function did not return within {_SECONDS_AT_EXIT:g} s, so the process is ended")
        os._exit(code)

    timer = threading.Timer(_SECONDS_AT_EXIT, end)
    timer.daemon = True
    timer.start()


def _bounded(text: str, longest: int) -> str:
    """Escapes bytes that are not text, and cuts the middle out of a text longer than `longest` characters."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text) <= longest:
        return text
    half = longest // 2
    left_out = f"… ({len(text) - 2 * half} characters are left out; the log has them) …"
    return f"{text[:half]}\n{left_out}\n{text[-half:]}"

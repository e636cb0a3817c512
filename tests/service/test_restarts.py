from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.restarts import PAUSES, STEADY_SECONDS, RestartBackoff, kept_running

# Writes down its pid; goes with its parent.
READS_ITS_INPUT = (
    "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); sys.stdin.read()"
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_start_that_comes_to_nothing_makes_the_next_pause_longer_up_to_a_bound() -> None:
    backoff = RestartBackoff(Clock())

    found = []
    for _ in range(len(PAUSES) + 2):
        backoff.started()
        found.append(backoff.next())

    assert found == [*PAUSES, PAUSES[-1], PAUSES[-1]]
    assert found[0] == 0.0


def test_a_process_that_ran_for_long_is_started_again_at_once() -> None:
    clock = Clock()
    backoff = RestartBackoff(clock)
    for _ in range(4):
        backoff.started()
        backoff.next()

    backoff.started()
    clock.now += STEADY_SECONDS

    assert backoff.next() == PAUSES[0]


def test_a_process_that_could_not_be_started_did_not_run_for_long() -> None:
    clock = Clock()
    backoff = RestartBackoff(clock)
    backoff.started()
    assert backoff.next() == PAUSES[0]
    clock.now += 2 * STEADY_SECONDS

    assert backoff.next() == PAUSES[1]


def test_a_command_is_started_again_when_it_is_killed_and_ended_with_the_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "pid"
    with kept_running("sleeper", [sys.executable, "-c", READS_ITS_INPUT, str(note)], {}):
        until(lambda: note.exists() and note.read_text() != "")
        first = int(note.read_text())
        os.kill(first, signal.SIGKILL)
        until(lambda: note.read_text() not in {"", str(first)})
        second = int(note.read_text())

    assert "the sleeper exited unexpectedly (exit code -9): restarting it now" in capsys.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_it_gets_variables_on_top_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    note = tmp_path / "variables"
    program = f'printf "$OURS$ITS" >"{note}"; read line'

    with kept_running("one", ["sh", "-c", program], {"ITS": "2"}):
        until(lambda: note.exists() and note.read_text() == "12")


def test_one_that_does_not_listen_is_killed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.restarts.SECONDS_TO_END", 0.2)
    note = tmp_path / "pid"
    deaf = (
        "import os, pathlib, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); signal.pause()"
    )

    with kept_running("deaf", [sys.executable, "-c", deaf, str(note)], {}):
        until(lambda: note.exists() and note.read_text() != "")

    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_its_input_ends_with_the_process_that_keeps_it_running(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    keeper = (
        "import sys, time; from service.restarts import kept_running\n"
        "with kept_running('one', [sys.executable, '-c', sys.argv[1], sys.argv[2]], {}): time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", keeper, READS_ITS_INPUT, str(note)]) as process:
        until(lambda: note.exists() and note.read_text() != "")
        process.kill()

    def is_gone() -> bool:
        try:
            state = Path(f"/proc/{note.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state == "Z"

    until(is_gone)

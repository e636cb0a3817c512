"""Runs command lines in a pseudo-terminal of a given size, and gives what a person would see there."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

HOME = "\x1b[H"
"""Puts the cursor into the corner, where each frame of a program begins that draws again and again."""

_MARKS = re.compile(r"\x1b\[\?\d+[hl]")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_MARK = "=== a command has ended ==="
_PROGRAM = f"""
import json, sys
from service.cli.app import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit:
        pass
    print({_MARK!r}, flush=True)
"""


def open_terminal(columns: int, rows: int) -> tuple[int, int]:
    """Returns the two ends of a terminal of this size: ours, and that of a program."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, its


def environment(url: str, **more: str) -> dict[str, str]:
    """Returns the variables of a person's shell on a terminal with colours."""
    inherited = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    return {**inherited, "SYNCBN_URL": url, "TERM": "xterm-256color", "COLORTERM": "truecolor", **more}


def seen(
    url: str, commands: Sequence[Sequence[str]], *, columns: int = 80, rows: int = 24, **variables: str
) -> list[str]:
    """Returns the output of each command line in a terminal, styles included, with line breaks as \\n."""
    ours, its = open_terminal(columns, rows)
    arguments = [sys.executable, "-c", _PROGRAM, json.dumps([list(command) for command in commands])]
    streams: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its}
    with subprocess.Popen(arguments, env=environment(url, **variables), **streams) as process:
        os.close(its)
        text = read_all(ours)
    os.close(ours)
    assert process.returncode == 0, text
    *outputs, rest = text.replace("\r\n", "\n").split(f"{_MARK}\n")
    assert (len(outputs), rest) == (len(commands), ""), text
    return outputs


def read_all(ours: int) -> str:
    """Reads until the program has closed its end."""
    found = bytearray()
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux says so that the other end is closed
            data = b""
        if not data:
            return found.decode()
        found += data


def plain(text: str) -> list[str]:
    """Returns the lines without their styles. Whatever else controls a terminal stays, for a test to find."""
    return _STYLE.sub("", text).splitlines()


def cells(line: str) -> int:
    """Returns how many cells a terminal uses for a line, by the tables of Unicode."""
    return sum(map(_cells, line))


def _cells(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"} or "\u1160" <= char <= "\u11ff":
        return 0  # the latter are vowels and last consonants, which join the syllable before them
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Running:
    """A command that runs in a terminal, and what it has drawn there."""

    def __init__(self, url: str, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self._ours, its = open_terminal(columns, rows)
        streams: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its}
        program = "from service.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=environment(url),
            start_new_session=True,
            preexec_fn=_with_ctrl_c,
            **streams,
        )
        os.close(its)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def settings(self) -> list[Any]:
        """Returns how the terminal treats keys."""
        return termios.tcgetattr(self._ours)

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def read(self) -> bool:
        """Takes in what was drawn since; returns whether more may come."""
        ready, _, _ = select.select([self._ours], [], [], 0.1)
        try:
            self.text += self._decode(os.read(self._ours, 65536)) if ready else ""
        except OSError:
            return False
        return True

    def frames(self) -> Iterator[list[str]]:
        """Yields the lines of each frame that is complete, the newest first."""
        for frame in reversed(self.text.split(HOME)[1:-1]):
            yield plain(_MARKS.sub("", frame))

    def wait_for(self, *words: str, without: str = "\0") -> list[str]:
        """Returns the newest frame once it has all these words in it, and not that one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            frame = next(self.frames(), [])
            text = "\n".join(frame)
            if all(word in text for word in words) and without not in text and frame:
                return frame
            assert self.read(), self.text
        raise AssertionError(f"{words} were not drawn: {self.text[-3000:]!r}")

    def end(self) -> int:
        """Returns the exit code, once the program has ended and all was read."""
        while self.read() and self.process.poll() is None:
            pass
        code = self.process.wait()
        while self.read() and select.select([self._ours], [], [], 0)[0]:
            pass
        return code


def _with_ctrl_c() -> None:
    """A shell without job control starts what runs in the background with interrupts ignored, tests too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

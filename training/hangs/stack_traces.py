"""Where a thread of Python stands, for people: its frames, which of them is the user's, whether it waits."""

from __future__ import annotations

import linecache
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / package}{os.sep}" for package in ("training", "sync_bn"))
_LIBRARY = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3\.\d+)[/\\]|^<")
_WAITS = re.compile(r"torch[/\\]distributed[/\\]|sync_bn[/\\]_handshake\.py$")
# Under backward, DDP's collectives are C++: the innermost frame of Python is the one that started the engine.
_ENGINE = "_engine_run_backward"
_DUMPED_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)", re.MULTILINE)
_DUMPED_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


class Frame(NamedTuple):
    file: str
    line: int
    function: str
    source: str

    @property
    def is_library(self) -> bool:
        return bool(_LIBRARY.search(self.file))

    @property
    def is_users(self) -> bool:
        return not self.is_library and not self.file.startswith(_OURS)

    def __str__(self) -> str:
        code = f" ({self.source})" if self.source else ""
        return f"{Path(self.file).name}:{self.line} in {self.function}{code}"


Stack = Sequence[Frame]
"""The frames of a thread, innermost last."""


def stacks(watched: int) -> tuple[Stack, dict[str, Stack]]:
    """The stack of the thread with the ident `watched`, and those of others by name, without daemons.

    Threads that autograd started for a device belong to the watched one, which waits for them: their frames,
    if they run Python, follow its own.
    """
    running = {ident: _frames(frame) for ident, frame in sys._current_frames().items()}
    known = {thread.ident: thread for thread in threading.enumerate()}
    stack = list(running.pop(watched, ()))
    if stack and stack[-1].function == _ENGINE:
        stack += [frame for ident, frames in running.items() if ident not in known for frame in frames]
    others: dict[str, Stack] = {
        known[ident].name: frames
        for ident, frames in running.items()
        if ident in known and not known[ident].daemon
    }
    return stack, others


def dumped_stack(dump: str, watched: int) -> Stack:
    """The stack of the thread with the ident `watched` in what `faulthandler` wrote; empty without it."""
    parts = _DUMPED_THREAD.split(dump)[1:]
    for ident, frames in zip(parts[::2], parts[1::2], strict=True):
        if int(ident, 16) == watched:
            found = [_with_source(*match.groups()) for match in _DUMPED_FRAME.finditer(frames)]
            return found[::-1]
    return []


def innermost(stack: Stack) -> Frame | None:
    """The frame that says most: the user's innermost, else this project's, else a library's."""
    for is_telling in (lambda frame: frame.is_users, lambda frame: not frame.is_library, lambda _: True):
        if found := next(filter(is_telling, reversed(stack)), None):
            return found
    return None


def waits_for_ranks(stack: Stack) -> bool:
    """Whether a thread is in a collective, or in something else that ends when other ranks come."""
    return any(_WAITS.search(frame.file) or frame.function == _ENGINE for frame in _since_project(stack))


def shown(stack: Stack) -> str:
    """As in a traceback, innermost last, indented by two."""
    return "".join(
        f'  File "{frame.file}", line {frame.line}, in {frame.function}\n'
        + (f"    {frame.source}\n" if frame.source else "")
        for frame in stack
    )


def _since_project(stack: Stack) -> Iterator[Frame]:
    """From the innermost frame outwards to the first that is the user's or this project's."""
    for frame in reversed(stack):
        yield frame
        if not frame.is_library:
            return


def _frames(frame: object) -> Stack:
    found = traceback.extract_stack(frame)  # type: ignore[arg-type]
    return [Frame(each.filename, each.lineno or 0, each.name, each.line or "") for each in found]


def _with_source(file: str, line: str, function: str) -> Frame:
    return Frame(file, int(line), function, linecache.getline(file, int(line)).strip())

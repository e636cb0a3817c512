"""The stacks of Python threads: their frames, whether these are user code, and whether the thread waits."""

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
_WAITS = re.compile(
    r"torch[/\\]distributed[/\\]|sync_bn[/\\]_(handshake|shared_memory)\.py$"
    r"|training[/\\]callbacks[/\\]step_barrier\.py$"
)
# In the backward pass DDP's collectives run in C++: the innermost Python frame is the start of the engine.
_ENGINE = "_engine_run_backward"
_DUMPED_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)", re.MULTILINE)
_DUMPED_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


class Frame(NamedTuple):
    """One frame of a stack. source: the line of code, empty if unknown."""

    file: str
    line: int
    function: str
    source: str

    @property
    def is_library(self) -> bool:
        return bool(_LIBRARY.search(self.file))

    @property
    def is_user_code(self) -> bool:
        return not self.is_library and not self.file.startswith(_OURS)

    def __str__(self) -> str:
        code = f" ({self.source})" if self.source else ""
        return f"{Path(self.file).name}:{self.line} in {self.function}{code}"


Stack = Sequence[Frame]
"""The frames of a thread, innermost last."""


def thread_stacks(watched: int) -> tuple[Stack, dict[str, Stack]]:
    """Returns the stack of the thread with the ident `watched`, and the stacks of other threads by name.

    Daemon threads are left out. While the watched thread waits for the autograd engine, the frames of the
    engine's own threads are appended to its stack, if these run Python.
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
    """Returns the stack of the thread `watched` from a dump of `faulthandler`; empty if it is not there."""
    parts = _DUMPED_THREAD.split(dump)[1:]
    for ident, frames in zip(parts[::2], parts[1::2], strict=True):
        if int(ident, 16) == watched:
            stack = [_with_source(*match.groups()) for match in _DUMPED_FRAME.finditer(frames)]
            return stack[::-1]
    return []


def innermost(stack: Stack) -> Frame | None:
    """Returns the innermost frame of user code, or else of this project, or else of a library."""
    for is_match in (lambda frame: frame.is_user_code, lambda frame: not frame.is_library, lambda _: True):
        if frame := next(filter(is_match, reversed(stack)), None):
            return frame
    return None


def waits_for_ranks(stack: Stack) -> bool:
    """Returns whether a thread is in a collective, the backward pass, or another wait for other ranks."""
    return any(_WAITS.search(frame.file) or frame.function == _ENGINE for frame in _since_project(stack))


def formatted(stack: Stack) -> str:
    """Formats a stack like a traceback, innermost frame last, indented by two."""
    return "".join(
        f'  File "{frame.file}", line {frame.line}, in {frame.function}\n'
        + (f"    {frame.source}\n" if frame.source else "")
        for frame in stack
    )


def _since_project(stack: Stack) -> Iterator[Frame]:
    """Yields frames from the innermost outwards, up to the first of user code or of this project."""
    for frame in reversed(stack):
        yield frame
        if not frame.is_library:
            return


def _frames(frame: object) -> Stack:
    summary = traceback.extract_stack(frame)  # type: ignore[arg-type]
    return [Frame(each.filename, each.lineno or 0, each.name, each.line or "") for each in summary]


def _with_source(file: str, line: str, function: str) -> Frame:
    return Frame(file, int(line), function, linecache.getline(file, int(line)).strip())

"""Child processes that user code forks from a rank: their end is not the rank's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from training.console import say
from training.errors import full_trace


@contextmanager
def ending_children() -> Iterator[None]:
    """Ends a child process that leaves the context, in which user code has forked it.

    What follows the context, such as closing files that the child shares with the rank, is the rank's alone.
    An exception is printed and becomes the child's exit code, as Python does at the end of a program.
    """
    rank = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != rank:
            say(full_trace(error))
            _exit(exit_code(error) if isinstance(error, SystemExit) else 1)
        raise
    if os.getpid() != rank:
        _exit(0)


def exit_code(error: SystemExit) -> int:
    """Returns the code with which the process exits: the system keeps eight bits of a number."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _exit(code: int) -> None:
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)

"""Output to a rank's log that works even if user code has replaced sys.stdout or descriptors 1 and 2."""

from __future__ import annotations

import os
from contextlib import suppress

_log: list[int] = []  # the log's file descriptor in a rank's process, empty elsewhere


def say_into(descriptor: int) -> None:
    """Makes `say` write to `descriptor` from now on."""
    _log[:] = [descriptor]


def say(text: str) -> None:
    """Prints a line. In a rank's process it never raises, so that a broken log cannot fail the training."""
    if not _log:
        print(text, flush=True)  # noqa: T201
        return
    remaining = f"{text}\n".encode("utf-8", "backslashreplace")
    with suppress(OSError):
        while remaining:
            remaining = remaining[os.write(_log[0], remaining) :]

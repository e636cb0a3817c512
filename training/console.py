"""What a rank says in its log, whatever user code has made of sys.stdout and of descriptors 1 and 2."""

from __future__ import annotations

import os
from contextlib import suppress

_log: list[int] = []  # its descriptor, in the process of a rank


def say_into(descriptor: int) -> None:
    """From now on `say` writes there."""
    _log[:] = [descriptor]


def say(text: str) -> None:
    """Prints a line. In the process of a rank it never raises: no training fails for want of a log."""
    if not _log:
        print(text, flush=True)  # noqa: T201
        return
    left = f"{text}\n".encode("utf-8", "backslashreplace")
    with suppress(OSError):
        while left:
            left = left[os.write(_log[0], left) :]

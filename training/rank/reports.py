"""What a rank tells its agent while it trains."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from training.protocol import Progress


class Reports:
    """Where a rank tells its agent how it gets on; what the agent does not take at once is dropped.

    `step` is told the one that is being made.
    """

    def __init__(self, channel: socket.socket, rank: int, step: Callable[[int], None]) -> None:
        self._channel, self._rank, self.step = channel, rank, step
        channel.setblocking(False)
        self.last: Progress | None = None

    def joined(self) -> None:
        """This rank is in the process group."""
        self._send({"joined": True})

    def progress(self, progress: Progress) -> None:
        self.last = progress
        self._send({"progress": progress.to_json()})

    def _send(self, said: Mapping[str, object]) -> None:
        with suppress(OSError):
            self._channel.send(json.dumps({"rank": self._rank, **said}).encode())

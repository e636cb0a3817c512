"""Messages of a rank to its host agent while it trains."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from training.protocol import Progress


class Reports:
    """Sends a rank's state to its agent. Never blocks: a message that the agent does not take is dropped.

    channel: a SOCK_SEQPACKET socket. step: a function to call with the number of each step as it starts.
    """

    def __init__(self, channel: socket.socket, rank: int, step: Callable[[int], None]) -> None:
        self._channel, self._rank, self.step = channel, rank, step
        channel.setblocking(False)
        self.last: Progress | None = None

    def joined(self) -> None:
        """Reports that this rank has joined the process group."""
        self._send({"joined": True})

    def progress(self, progress: Progress) -> None:
        """Sends the progress and keeps it as `last`, for the exit record."""
        self.last = progress
        self._send({"progress": progress.to_json()})

    def _send(self, message: Mapping[str, object]) -> None:
        with suppress(OSError):
            self._channel.send(json.dumps({"rank": self._rank, **message}).encode())

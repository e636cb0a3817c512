"""The log of a rank that has secrets: its output goes through a pipe, in which the supervisor masks them."""

from __future__ import annotations

import os
from contextlib import suppress

from training.masking import MaskedStream, Masker
from training.protocol import Order, log_file

_PIECE = 2**16


class MaskedLog:
    """A pipe from a rank to its log.

    source: the descriptor to read from, which does not block. target: the one for the rank's output.
    """

    def __init__(self, order: Order, rank: int) -> None:
        self._stream = MaskedStream(Masker(order.secrets.values()))
        path = log_file(order.folder, order.number, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.source, self.target = os.pipe()
        os.set_blocking(self.source, False)

    def copy(self, *, to_end: bool = False) -> None:
        """Copies what is in the pipe. to_end: nothing more is expected, so that nothing is held back."""
        with suppress(BlockingIOError):
            while piece := os.read(self.source, _PIECE):
                self._write(self._stream.feed(piece))
        if to_end:
            self._write(self._stream.flush())

    def _write(self, text: bytes) -> None:
        with suppress(OSError):  # a full disk must not end the supervisor, and with it the training
            while text:
                text = text[os.write(self._log, text) :]

"""A network that prints many lines. Uploaded as a job's code."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from training.models import ConvNet

LINE_BYTES = 100


def line(number: int) -> str:
    """Returns a unique line of LINE_BYTES bytes, newline included."""
    return f"printed {number:09d} ".ljust(LINE_BYTES - 1, ".") + "\n"


class Printing(ConvNet):
    """The network of the digits recipe. On rank 0 each forward pass in training prints `lines` lines to the
    job's log or to the file `path`, and appends a line to `stamps`, like `stamped`.
    """

    def __init__(self, stamps: str, lines: int, path: str | None = None) -> None:
        super().__init__(num_classes=10, in_channels=1)
        self.stamps, self.lines, self.path = Path(stamps), lines, None if path is None else Path(path)
        self._step = self._printed = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and dist.get_rank() == 0:
            self._step += 1
            with self.stamps.open("a") as file:
                file.write(f"{self._step} {time.monotonic():.6f} {dist.get_world_size()}\n")
            self._print()
        return super().forward(x)

    def _print(self) -> None:
        """Writes a line and flushes it."""
        with ExitStack() as stack:
            file = sys.stdout if self.path is None else stack.enter_context(self.path.open("a", buffering=1))
            for number in range(self._printed, self._printed + self.lines):
                file.write(line(number))
        self._printed += self.lines

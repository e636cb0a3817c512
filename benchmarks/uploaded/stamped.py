"""A network that records when each of its training steps begins. Also uploaded as a job's code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.models import resnet18

WIDTH = 16


class Stamped(nn.Module):
    """ResNet-18, WIDTH channels wide. On rank 0 each forward pass in training appends a line to `path`: the
    step, from 1, the machine's monotonic clock in seconds, and the number of ranks.

    die_at: the step in which rank 1 kills its process, once; it appends its line to `path` with suffix .died.
    """

    def __init__(self, path: str, die_at: int | None = None) -> None:
        super().__init__()
        self.net: nn.Module = resnet18(num_classes=10, in_channels=1, width=WIDTH)
        self.path, self.die_at = Path(path), die_at
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self._stamp(int(self.steps))
        output: Tensor = self.net(x)
        return output

    def _stamp(self, step: int) -> None:
        died = self.path.with_suffix(".died")
        line = f"{step} {time.monotonic():.6f} {dist.get_world_size()}\n"
        if dist.get_rank() == 0:
            with self.path.open("a") as file:
                file.write(line)
        elif step == self.die_at and not died.exists():
            died.write_text(line)
            os.kill(os.getpid(), signal.SIGKILL)

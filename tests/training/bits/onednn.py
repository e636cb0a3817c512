"""A process that says which instruction set oneDNN uses, by oneDNN itself and by us. Imports torch alone."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from training.bits.environment import own_environment


def say_sets(limit: str, output: Path) -> None:
    """Before its first convolution, a process that was forked has not asked which set it may use."""
    os.environ |= {"ONEDNN_MAX_CPU_ISA": limit, "ONEDNN_VERBOSE": "1"}
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
    torch.nn.functional.conv2d(torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3))
    os.write(1, f"ours:{own_environment(on_gpu=False)['onednn']}\n".encode())
    ctypes.CDLL(None).fflush(None)  # oneDNN's lines

"""Checkpoints as a rank saves them, for tests of the service."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training.checkpoints.folder import Checkpoints
from training.checkpoints.listing import LIGHTNING

STATE = {"weight": torch.arange(6.0).reshape(2, 3).T, "tied": torch.ones(2), "bias": torch.ones(2)}
STATE["bias"] = STATE["tied"]  # shares memory


def save_checkpoints(folder: Path, metrics: dict[int, float | None], *, steps_per_epoch: int = 10) -> None:
    """Saves a checkpoint of each step into the run folder; keeps the last two and the best."""
    store = Checkpoints(folder / "checkpoints")
    for step, metric in metrics.items():
        with store.writing(step, metric=metric, epoch=step // steps_per_epoch) as draft:
            torch.save({"state_dict": STATE, "global_step": step, "epoch": step // 10}, draft / LIGHTNING)
            (draft / "train_state.pt").write_bytes(b"state")


def network() -> nn.Module:
    """A module for the state_dict of these checkpoints."""
    module = nn.Module()
    for name, tensor in STATE.items():
        module.register_buffer(name, torch.zeros_like(tensor))
    return module

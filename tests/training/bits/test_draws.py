"""What is drawn for a batch before its step, by a collate_fn or after its transfer, is that of its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from tests.training.bits.networks import Images, Samples, Task
from tests.training.bits.runs import equal_when_resized, spec_of
from tests.training.worlds import Worlds


def mixed(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Mixes samples with others of their shard."""
    x, y = default_collate(samples)
    share = torch.rand(len(x), 1, 1, 1)
    return [share * x + (1 - share) * x[torch.randperm(len(x))], y]


class Mixed(Images):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(self.train, 1), shuffle=True, collate_fn=mixed)


class Augments(Task):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        x, y = batch
        return [x + torch.randn_like(x), y]


def test_a_run_that_augments_batches_leaves_the_same_bits_when_resized(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = spec_of("mlp") | {
        "model": {"class_path": f"{__name__}.Augments", "init_args": {"network": "mlp"}},
        "data": {"class_path": f"{__name__}.Mixed"},
    }

    equal_when_resized(worlds, spec, [2, 7], tmp_path)

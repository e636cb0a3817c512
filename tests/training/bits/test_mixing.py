"""A loss that is not a mean over samples is told, as the loss within each shard that it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.training.attempts import attempt
from tests.training.bits.networks import Task
from tests.training.bits.runs import spec_of
from tests.training.worlds import Worlds
from training.bits.mixing import ROUNDING, mixing
from training.loading.sharded import Shard

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6) % 4
SENTENCE = "the loss is not a mean over samples"


def contrastive(x: Tensor, _: Tensor) -> Tensor:
    return F.cross_entropy(x @ x.T, torch.arange(len(x)))


def masked(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, reduction="none")[y < 3].sum() / (y < 3).sum()


MIXING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: F.cross_entropy(x, y, reduction="sum"),
    "contrastive": contrastive,
    "masked": masked,
    "root": lambda x, y: F.mse_loss(x[:, 0], y.float()).sqrt(),
    "of rolled samples": lambda x, y: F.cross_entropy(x + x.roll(1, 0), y),
}
MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": F.cross_entropy,
    "with a penalty of weights": lambda x, y: F.cross_entropy(x, y) + 3,
    "drawn": lambda x, y: F.cross_entropy(x + torch.randn_like(x), y),
    "fails on halves": lambda x, y: F.cross_entropy(x.view(6, 4), y, reduction="sum"),
}


def found(loss: Callable[[Tensor, Tensor], Tensor], batch: Any) -> str:
    def loss_of(shards: Sequence[Shard], number: int) -> float:
        torch.manual_seed(number)
        losses = [float(loss(*shard.batch)) * shard.samples for shard in shards]
        return sum(losses) / sum(shard.samples for shard in shards)

    return mixing([Shard(batch, 6)], loss_of, ROUNDING)


@pytest.mark.parametrize("loss", MIXING)
def test_what_is_not_a_mean_over_samples_is_told(loss: str) -> None:
    assert found(MIXING[loss], (X, Y)).startswith(SENTENCE)


@pytest.mark.parametrize("loss", MEANS)
def test_of_a_mean_nothing_is_said(loss: str) -> None:
    assert found(MEANS[loss], (X, Y)) == ""


def test_a_batch_is_cut_where_that_can_be_read_in_one_way() -> None:
    def total(*fields: Any) -> Tensor:
        x = fields[0]["x"] if isinstance(fields[0], dict) else torch.stack(list(fields[0]))
        return x.sum()

    assert found(total, ({"x": X, "name": list("abcdef")}, Y)).startswith(SENTENCE)
    assert found(total, (list(X), Y)) == ""  # images of a list, or fields


class Contrasts(Task):
    def __init__(self) -> None:
        super().__init__("mlp")

    def training_step(self, batch: Any, index: int) -> Tensor:
        z = self.net(batch[0])
        return super().training_step(batch, index) + contrastive(z, batch[1])


def test_the_log_of_a_run_tells_it(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of("mlp", max_epochs=1)
    plain = worlds.run(1, attempt, spec, tmp_path / "mean")[0]
    model = {"class_path": f"{__name__}.Contrasts"}
    mixed = worlds.run(1, attempt, spec | {"model": model}, tmp_path / "pairs")[0]

    assert SENTENCE not in plain.said
    assert SENTENCE in mixed.said
    assert "within each of 4 shards" in mixed.said


@pytest.mark.parametrize("workers", [1, 4])
def test_the_log_of_a_run_names_buffers_that_differ_between_shards(
    worlds: Worlds, tmp_path: Path, workers: int
) -> None:
    said = worlds.run(workers, attempt, spec_of("moving buffers", max_steps=1), tmp_path)[0].said

    assert [line.split(" by the")[0] for line in said.splitlines() if "buffer" in line] == [
        "a step changes the buffer net.0.replaced",
        "a step changes the buffer net.0.in_place",
    ]

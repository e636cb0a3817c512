"""Manual optimization to the last bit: GANs leave the same on any number of workers, or are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from testing.ranks import RankError
from tests.training.attempts import attempt
from tests.training.bits.runs import equal_on, equal_when_resized, gan, spec_of, trains_as_usual
from tests.training.worlds import Worlds
from training.bits.dry_step import DryStep
from training.errors import StepError


@pytest.mark.parametrize(
    ("module", "precision", "sizes"),
    [("Gan", "32-true", (1, 2, 3)), ("Gan", "bf16-mixed", (1, 2, 3)), ("Penalised", "32-true", (1, 3))],
)
def test_gans_leave_the_same_bits(
    worlds: Worlds, tmp_path: Path, module: str, precision: str, sizes: tuple[int, ...]
) -> None:
    equal_on(worlds, gan(module, precision=precision), tmp_path, sizes)


@pytest.mark.parametrize(("module", "draws"), [("Gan", False), ("Penalised", None)])
def test_gans_train_as_in_the_usual_mode(
    worlds: Worlds, tmp_path: Path, module: str, draws: bool | None
) -> None:
    trains_as_usual(worlds, gan(module, draws=draws, precision="64-true"), tmp_path)


def test_a_gan_that_is_resized_while_it_accumulates_leaves_the_same_bits(
    worlds: Worlds, tmp_path: Path
) -> None:
    equal_when_resized(worlds, gan(), [1, 7], tmp_path)


class ByHand(LightningModule):
    """Makes one step a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
        self.average, self.frozen = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.head = nn.Linear(4, 3)

    def training_step(self, batch: Any, _index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.go(optimizer, self.loss_of(batch), batch)
        optimizer.step()

    def loss_of(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def go(self, optimizer: Any, loss: Tensor, batch: Any) -> None:  # noqa: ARG002
        self.manual_backward(loss)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]


class Closure(ByHand):
    def go(self, optimizer: Any, loss: Tensor, _batch: Any) -> None:
        optimizer.step(closure=lambda: self.manual_backward(loss))


class OwnBackward(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class Penalty(ByHand):
    def go(self, _optimizer: Any, _loss: Tensor, batch: Any) -> None:
        x = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        self.manual_backward(slope.square().sum())


class KeepsGraph(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss, create_graph=True)


class Constant(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss.detach())


class Clips(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 1e-3)


class Averages(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss)
        with torch.no_grad():
            self.average.weight.lerp_(self.head.weight, 0.1)


class Unfreezes(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, batch: Any) -> None:
        self.frozen.requires_grad_()
        self.manual_backward(loss + self.frozen(self.net(batch[0])).sum())


class MorePassesInSome(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, batch: Any) -> None:
        self.manual_backward(loss, retain_graph=True)
        if len(batch[1]) == 3:
            self.manual_backward(loss)


class SchedulesByShard(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        scheduler: Any = self.lr_schedulers()
        scheduler.step(loss.detach())


class MoreCallsOnRank1(ByHand):
    def go(self, optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss)
        if self.trainer.global_rank:
            optimizer.zero_grad()


class MorePassesOnRank1(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, _batch: Any) -> None:
        self.manual_backward(loss, retain_graph=True)
        if self.trainer.global_rank:
            self.manual_backward(loss)


class MoreLayersOnRank1(ByHand):
    def go(self, _optimizer: Any, loss: Tensor, batch: Any) -> None:
        self.manual_backward(loss)
        if self.trainer.global_rank:
            self.loss_of(batch)


REFUSED: dict[type[ByHand], list[str]] = {
    Closure: ["hands a closure to optimizers()[0].step", "call self.manual_backward before step()"],
    OwnBackward: ["calls loss.backward()", "use self.manual_backward(loss)"],
    Penalty: ["through a SyncBatchNorm layer by itself (torch.autograd.grad)", "leave such layers out"],
    KeepsGraph: ["self.manual_backward with create_graph", "the loss and retain_graph alone"],
    Constant: ["a loss that has no gradient"],
    Clips: ["changes the gradient of net.1.weight", "use self.clip_gradients"],
    Averages: ["changes the parameter average.weight in place", "in a callback (on_train_batch_end)"],
    Unfreezes: ["changes the parameter frozen.weight", "or unfreezes it"],
    MorePassesInSome: ["shard 1 at self.manual_backward()", "decide by what all shards know"],
    SchedulesByShard: ["shard 0 at lr_schedulers()[0].step(", "decide by what all shards know"],
}


def spec_with(module: type[ByHand]) -> dict[str, Any]:
    return spec_of("", max_epochs=1) | {"model": {"class_path": f"{__name__}.{module.__name__}"}}


def without_dry_step(rank: int, spec: dict[str, Any], folder: Path) -> None:
    """Runs a spec that the dry step would refuse: what it does not see comes in later steps."""
    with patch.object(DryStep, "check"):
        attempt(rank, spec, folder)


def refusals(rank: int, specs: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """The error of each run."""
    said = {}
    for name, spec in specs.items():
        try:
            attempt(rank, spec, folder / name)
        except StepError as error:
            said[name] = str(error)
    return said


def test_what_is_not_covered_is_refused_with_the_way_out(worlds: Worlds, tmp_path: Path) -> None:
    specs = {module.__name__: spec_with(module) for module in (*REFUSED, ByHand)}

    said = worlds.run(1, refusals, specs, tmp_path)[0]

    assert {name: [] for name in said} == {
        module.__name__: [text for text in texts if text not in said.get(module.__name__, "")]
        for module, texts in REFUSED.items()
    }


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (MoreCallsOnRank1, r"rank 1: optimizers\(\)\[0\].zero_grad\(\), optimizers\(\)\[0\].step\(\), the"),
        (MorePassesOnRank1, r"step\(\), the end of training_step; rank 1: self.manual_backward\(\)"),
        (MoreLayersOnRank1, "rank 0 is at .* the end of training_step, while rank 1 of 2 runs a layer"),
    ],
)
def test_workers_that_make_other_calls_say_so_at_once(
    worlds: Worlds, tmp_path: Path, module: type[ByHand], message: str
) -> None:
    with pytest.raises(RankError, match=message):
        worlds.run(2, without_dry_step, spec_with(module), tmp_path)

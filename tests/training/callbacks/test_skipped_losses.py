"""What a loss that only some ranks have means: None or a constant for the samples of a share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from testing.ranks import RankError
from tests.training.attempts import attempt
from tests.training.lab_modules import SAMPLES, Regression, Samples, features
from tests.training.worlds import Worlds
from training.errors import StepError
from training.spec import shares

BATCH, RATE = 4, 0.05


class Skips(LightningModule):
    """Rank 1 has no loss in every second batch, from number `first`. what: it returns instead."""

    def __init__(self, what: str, first: int, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.what, self.first = what, first
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3) if norm else nn.Tanh(), nn.Linear(3, 1))

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        x, y = features(batch)
        loss = F.mse_loss(self.net(x), y)
        if dist.get_rank() != 1 or index % 2 != self.first:
            return loss
        return None if self.what == "None" else loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def spec_of(what: str, *, first: int = 1, norm: str | None = None, micro_batches: int = 1) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "tests.training.callbacks.test_skipped_losses.Skips",
            "init_args": {"what": what, "first": first, "norm": norm is not None},
        },
        "data": {"class_path": "tests.training.lab_modules.TrainsOnly"},
        "norm": {"kind": norm or "sync_batch_norm"},
        "training": {
            "global_batch_size": BATCH,
            "max_epochs": 1,
            "precision": "64-true",
            "accumulate_grad_batches": micro_batches,
            "drop_last": norm == "keep",  # BatchNorm alone needs two samples
        },
    }


def plain(what: str, first: int, micro_batches: int) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses of plain steps on two workers' samples, without those that have no loss."""
    data = Samples(SAMPLES, 1)
    model = Skips(what, first).double()
    optimizer: Any = model.configure_optimizers()
    losses, number = [], 0
    for start in range(0, SAMPLES, BATCH):
        total, count, counted = torch.zeros((), dtype=torch.float64), 0, 0
        value = 0.0
        for size in shares(min(BATCH, SAMPLES - start), micro_batches):
            each = slice(start, start + size)
            start += size
            if not size:
                continue
            x, y = data.x[each].mean(1), data.y[each]
            errors = (model.net(x) - y).square()[:, 0]
            skipped = slice(shares(size, 2)[0], None) if number % 2 == first else slice(size, None)
            number += 1
            with_loss = errors[: skipped.start]
            kept = with_loss if what == "None" else errors
            # As in a job, each micro-batch weighs as many samples as it has, also those without a loss.
            total = total + with_loss.sum() / len(kept) * size
            value, counted = value + float(kept.detach().sum()), counted + len(kept)
            count += size
        optimizer.zero_grad()
        torch.autograd.backward(total / count)
        optimizer.step()
        losses.append(value / counted)
    return dict(model.state_dict()), losses


@pytest.mark.parametrize(("micro_batches", "first"), [(1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("what", ["None", "a constant"])
def test_samples_of_the_other_ranks_count(
    worlds: Worlds, tmp_path: Path, what: str, micro_batches: int, first: int
) -> None:
    expected, losses = plain(what, first, micro_batches)

    for rank, found in enumerate(
        worlds.run(2, attempt, spec_of(what, first=first, micro_batches=micro_batches), tmp_path)
    ):
        torch.testing.assert_close(dict(found.state), expected, msg=f"rank {rank}")
        assert [row["train_loss"] for row in found.rows] == pytest.approx(losses)


def error_of(rank: int, spec: dict[str, Any], folder: Path) -> str | None:
    try:
        attempt(rank, spec, folder)
    except StepError as error:
        return str(error)
    return None


@pytest.mark.parametrize("what", ["None", "a constant"])
def test_layers_that_communicate_need_a_loss_on_every_rank(worlds: Worlds, tmp_path: Path, what: str) -> None:
    found = worlds.run(3, error_of, spec_of(what, norm="sync_batch_norm"), tmp_path)

    assert len(set(found)) == 1
    assert found[0] is not None
    assert "no loss with a gradient on rank 1 of 3" in found[0]


def test_layers_with_statistics_of_their_own_do_not(worlds: Worlds, tmp_path: Path) -> None:
    assert worlds.run(2, error_of, spec_of("None", norm="keep"), tmp_path) == [None, None]


class SearchesLine(Skips):
    """With LBFGS, which calls the closure several times and compares losses."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.2, max_iter=4, line_search_fn="strong_wolfe")


def _backward(model: Skips, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.mse_loss(model.net(x), y)
    torch.autograd.backward(loss)
    return loss


def test_lbfgs_needs_a_loss_of_some_rank(worlds: Worlds, tmp_path: Path) -> None:
    data, model = Samples(SAMPLES, 1), SearchesLine("None", 1).double()
    optimizer: Any = model.configure_optimizers()
    for number, start in enumerate(range(0, SAMPLES, BATCH)):
        size = min(BATCH, SAMPLES - start)
        each = slice(start, start + (size if number % 2 == 0 else shares(size, 2)[0]))
        optimizer.step(partial(_backward, model, optimizer, data.x[each].mean(1), data.y[each]))
    spec = spec_of("None")
    spec["model"] = spec["model"] | {"class_path": f"{__name__}.SearchesLine"}

    for found in worlds.run(2, attempt, spec, tmp_path / "two"):
        torch.testing.assert_close(dict(found.state), dict(model.state_dict()))

    everywhere = left_out(LeavesOutWithLbfgs, what="None", at=1, everywhere=True)
    with pytest.raises(RankError, match="returned None, but its optimizer needs a loss in each step"):
        worlds.run(1, attempt, everywhere, tmp_path / "one")


class LeavesOut(Regression):
    """On rank 1, or on all ranks, batch `at` returns `what` and does not run the network."""

    def __init__(self, what: str, at: int, everywhere: bool = False) -> None:
        super().__init__()
        self.what, self.at, self.everywhere = what, at, everywhere

    def training_step(self, batch: Any, index: int) -> Any:
        if index != self.at or not (self.everywhere or dist.get_rank() == 1):
            return super().training_step(batch, index)
        return None if self.what == "None" else torch.zeros((), dtype=torch.float64)


class LeavesOutWithLbfgs(LeavesOut):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class ByHand(Regression):
    """In batch 3, the rank `rank` does `what` once more than the others, or leaves the step out."""

    def __init__(self, what: str, at: int = 3, rank: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.what, self.at, self.rank = what, at, rank

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        differs = index == self.at and dist.get_rank() == self.rank
        if differs and self.what == "nothing":
            return
        loss = self.loss_of(batch)
        optimizer.zero_grad()
        self.manual_backward(loss, retain_graph=True)
        if differs and self.what == "backward":
            self.manual_backward(loss)
        if differs and self.what == "both":
            self.manual_backward(self.loss_of(batch))
        optimizer.step()


def left_out(module: type, **arguments: Any) -> dict[str, Any]:
    path = f"tests.training.callbacks.test_skipped_losses.{module.__name__}"
    spec = spec_of("", norm="sync_batch_norm")
    return spec | {"model": {"class_path": path, "init_args": arguments}}


@pytest.mark.parametrize("at", [0, 3], ids=["while layers shake hands", "later"])
@pytest.mark.parametrize("what", ["None", "a constant"])
def test_a_rank_that_does_not_run_layers_that_others_wait_in_says_so_at_once(
    worlds: Worlds, tmp_path: Path, what: str, at: int
) -> None:
    with pytest.raises(RankError, match="on rank 1 of 2 and did not run the network, while rank 0 runs its"):
        worlds.run(2, attempt, left_out(LeavesOut, what=what, at=at), tmp_path)


def test_all_ranks_may_skip_a_batch_before_the_network(worlds: Worlds, tmp_path: Path) -> None:
    spec = left_out(LeavesOut, what="None", at=2, everywhere=True)
    one = worlds.run(1, attempt, spec, tmp_path / "1")[0]

    for found in worlds.run(3, attempt, spec, tmp_path / "3"):
        torch.testing.assert_close(dict(found.state), dict(one.state), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("what", "at"), [("backward", 3), ("both", 1), ("both", 3), ("nothing", 0)])
def test_ranks_that_call_manual_backward_unequally_often_say_so_at_once(
    worlds: Worlds, tmp_path: Path, what: str, at: int
) -> None:
    ended, runs = (1, 0) if what == "nothing" else (0, 1)
    with pytest.raises(RankError, match=f"has ended on rank {ended}, while rank {runs} of 2 runs a Sync"):
        worlds.run(2, attempt, left_out(ByHand, what=what, at=at), tmp_path)

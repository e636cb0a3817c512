"""Losses that divide by the weights of their targets: of the whole batch, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.attempts import Done, attempt
from tests.training.lab_modules import features
from tests.training.worlds import Worlds
from training.callbacks.share_counts import ShareCounts
from training.callbacks.target_means import TargetMeans
from training.errors import StepError

SIZES = (3, 1, 0)
CLASSES = 4
WEIGHT = [0.3, 1.0, 2.0, 0.0]
Case = tuple[str, tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]


def _weight(scores: Tensor) -> Tensor:
    return scores.new_tensor(WEIGHT)


CASES: list[Case] = [
    ("weight", (), lambda x, y: F.cross_entropy(x, y.clamp(0), weight=_weight(x))),
    ("ignored", (), lambda x, y: F.cross_entropy(x, y, ignore_index=-1)),
    ("of images", (2, 3), lambda x, y: nn.CrossEntropyLoss(_weight(x), ignore_index=-1)(x, y)),
    ("smoothed", (2,), lambda x, y: F.cross_entropy(x, y, _weight(x), ignore_index=-1, label_smoothing=0.3)),
    ("nll_loss", (2,), lambda x, y: F.nll_loss(x.log_softmax(1), y, _weight(x), ignore_index=-1)),
    ("NLLLoss", (), lambda x, y: nn.NLLLoss(ignore_index=-1)(x.log_softmax(1), y)),
    ("a part", (), lambda x, y: F.cross_entropy(x[y > 0], y[y > 0], ignore_index=-1)),
    ("float32", (5,), lambda x, y: F.cross_entropy(x.float(), y, _weight(x).float(), ignore_index=-1)),
]


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Scores and classes of all ranks; those of the second rank are ignored or have weight 0."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(sum(SIZES), CLASSES, *shape, dtype=torch.float64, generator=generator)
    classes = torch.randint(-1, CLASSES, (sum(SIZES), *shape), generator=generator)
    classes[: SIZES[0]] = classes[: SIZES[0]].where(
        torch.rand(SIZES[0], *shape, generator=generator) < 0.8, 1
    )
    classes[SIZES[0]] = -1
    return scores, classes


def of_share(rank: int, which: int) -> tuple[Tensor, Tensor, torch.dtype]:
    """Value and gradient, weighted by samples as in a job."""
    _, shape, loss_of = CASES[which]
    scores, classes = (torch.split(part, list(SIZES))[rank] for part in data(shape))
    scores.requires_grad_()
    share = ShareCounts()
    share.samples = len(scores)
    with TargetMeans(share).in_step(torch.device("cpu")):
        loss = loss_of(scores, classes)
    torch.autograd.backward(loss * len(scores) / sum(SIZES))
    assert scores.grad is not None
    return loss.detach(), scores.grad, loss.dtype


@pytest.mark.parametrize("which", range(len(CASES)), ids=[name for name, *_ in CASES])
def test_the_loss_of_shares_is_that_of_the_whole(worlds: Worlds, which: int) -> None:
    found = worlds.run(3, of_share, which)

    _, shape, loss_of = CASES[which]
    scores, classes = data(shape)
    scores.requires_grad_()
    expected = loss_of(scores, classes)
    torch.autograd.backward(expected)
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-6
    for value, _, dtype in found:
        assert dtype == expected.dtype
        torch.testing.assert_close(value, expected.detach(), rtol=tolerance, atol=0)
    gradient = torch.cat([gradient for _, gradient, _ in found])
    torch.testing.assert_close(gradient, scores.grad, rtol=tolerance, atol=tolerance)


def torchs_own(rank: int) -> list[Tensor]:
    """What nothing changes: other reductions, probabilities, and everything outside of a step."""
    scores, classes = (torch.split(part, list(SIZES))[rank] for part in data(()))
    share = ShareCounts()
    means = TargetMeans(share)
    share.samples = len(scores)

    def losses() -> list[Tensor]:
        return [
            F.cross_entropy(scores, classes, ignore_index=-1, reduction="sum"),
            F.cross_entropy(scores, classes, ignore_index=-1, reduction="none").sum(),
            F.cross_entropy(scores, scores.softmax(1)),
        ]

    with means.in_step(torch.device("cpu")):
        inside = losses()
    return [*inside, *losses(), F.cross_entropy(scores, classes, ignore_index=-1)]


def test_other_losses_and_those_outside_a_step_are_torchs(worlds: Worlds) -> None:
    found = worlds.run(2, torchs_own)

    scores, classes = (torch.split(part, list(SIZES)) for part in data(()))
    for rank in range(2):
        *both, after = found[rank]
        torch.testing.assert_close(both[:3], both[3:])
        expected = F.cross_entropy(scores[rank], classes[rank], ignore_index=-1)
        torch.testing.assert_close(after, expected, equal_nan=True)


def placeholder(rank: int) -> Tensor:
    share = ShareCounts()
    share.samples = 1 - rank  # rank 1 has two copies of another sample, which do not count
    scores, classes = data(())
    with TargetMeans(share).in_step(torch.device("cpu")):
        return F.cross_entropy(scores[:2] + rank, classes[:2], ignore_index=-1)


def test_placeholders_do_not_count(worlds: Worlds) -> None:
    scores, classes = data(())
    expected = F.cross_entropy(scores[:2], classes[:2], ignore_index=-1)

    assert worlds.run(2, placeholder) == [pytest.approx(float(expected))] * 2


class Classifier(LightningModule):
    """Two classes. what: is special about the loss, in the third batch or always."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.what = what
        self.net = nn.Linear(4, 2)
        self.named = nn.CrossEntropyLoss(ignore_index=-100)
        self.default = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = features(batch)
        classes = (y[:, 0] > 0.3).long()
        scores = self.net(x)
        special = index == 2
        if self.what == "named":
            return self.named(scores, classes.where(x[:, 0] > x[:, 1], -100) if special else classes)
        if self.what == "ignored" and special and dist.get_rank() == 1:
            return self.default(scores, classes.fill_(-100))
        if self.what == "a part":
            return F.cross_entropy(scores[classes == 1], classes[classes == 1]) + 0 * scores.sum()
        if self.what == "two parts":
            return sum(F.cross_entropy(scores[part], classes[part]) for part in (classes == 0, classes == 1))
        if self.what == "one rank" and special and dist.get_rank() == 1:
            return 0 * scores.sum()
        if self.what == "one rank":
            return self.named(scores, classes)
        return self.default(scores, classes)

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = features(batch)
        classes = (y[:, 0] > 0.3).long()
        if self.what == "validated" and index == 1 and dist.get_rank() == 1:
            classes.fill_(-100)
        self.log("val_loss", self.default(self.net(x), classes), batch_size=len(y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def spec_of(what: str) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "tests.training.callbacks.test_target_means.Classifier",
            "init_args": {"what": what},
        },
        "data": {"class_path": "tests.training.lab_modules.Data"},
        "training": {"global_batch_size": 4, "max_epochs": 1, "precision": "64-true"},
    }


def error_of(rank: int, spec: dict[str, Any], folder: Path) -> str | None:
    try:
        attempt(rank, spec, folder)
    except StepError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("ignored", "2 targets of cross_entropy or nll_loss are -100"),
        ("validated", "2 targets of cross_entropy or nll_loss are -100"),
        ("a part", "more targets for each sample on some workers than on others"),
        ("two parts", "more targets for each sample on some workers than on others"),
    ],
)
def test_means_over_something_else_than_samples_are_refused_on_every_rank(
    worlds: Worlds, tmp_path: Path, what: str, says: str
) -> None:
    found = worlds.run(2, error_of, spec_of(what), tmp_path)

    assert found[0] == found[1]
    assert found[0] is not None
    assert says in found[0]
    assert "CrossEntropyLoss(ignore_index=-100)" in found[0]


def test_the_way_out_gives_the_same_on_any_number_of_workers(worlds: Worlds, tmp_path: Path) -> None:
    found: list[Done] = [
        worlds.run(workers, attempt, spec_of("named"), tmp_path / str(workers))[0] for workers in (1, 2, 3)
    ]

    for other in found[1:]:
        assert other.series("train_loss") == pytest.approx(found[0].series("train_loss"), rel=1e-9)
        torch.testing.assert_close(dict(other.state), dict(found[0].state), rtol=1e-9, atol=1e-9)


def test_plain_means_over_samples_are_not_refused(worlds: Worlds, tmp_path: Path) -> None:
    assert worlds.run(3, error_of, spec_of("plain"), tmp_path) == [None, None, None]


def test_ranks_of_which_some_do_not_call_a_loss_of_all_are_named(worlds: Worlds, tmp_path: Path) -> None:
    found = worlds.run(3, error_of, spec_of("one rank"), tmp_path)

    assert len(set(found)) == 1
    assert found[0] is not None
    assert "rank 0, 2: mean over all workers number 1 in batch 2 of the training epoch" in found[0]
    assert "rank 1: backward pass or end of batch 2 of the training epoch" in found[0]


def compiled(_rank: int, named: bool) -> tuple[Tensor, Tensor] | str:
    loss = nn.CrossEntropyLoss(ignore_index=-100) if named else nn.CrossEntropyLoss()
    scores, classes = torch.eye(3), torch.arange(3)
    share = ShareCounts()
    share.samples = 3
    torch.compiler.reset()  # what an earlier call has compiled is used again
    of_compiled = torch.compile(lambda *args: loss(*args), backend="aot_eager")
    try:
        with TargetMeans(share).in_step(torch.device("cpu")):
            return of_compiled(scores, classes), loss(scores, classes)
    except Exception as error:  # torch's own, with the text of ours
        return str(error)


def test_a_compiled_loss_is_torchs_or_refused(worlds: Worlds) -> None:
    for pair in worlds.run(2, compiled, named=False):
        torch.testing.assert_close(*pair)
    for error in worlds.run(2, compiled, named=True):
        assert "compute the loss in the step, outside of what is compiled" in error

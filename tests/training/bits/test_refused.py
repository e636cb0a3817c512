"""What does not run shard by shard is refused in a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from testing.ranks import RankError
from tests.training.attempts import attempt
from tests.training.bits.networks import Images, Task
from tests.training.bits.runs import spec_of
from tests.training.worlds import Worlds
from training.callbacks.train_state import batching
from training.rank.bits_strategy import refuse_uncovered
from training.spec import parse_spec


class Plain(Task):
    def __init__(self) -> None:
        super().__init__("mlp", scheduled=False)


class EndsBatches(Plain):
    def on_train_batch_end(self, *_: Any) -> None: ...


class OwnBackward(Plain):
    def backward(self, loss: Tensor, *_: Any) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class Compiled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head.compile()


class CompiledPart(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = torch.compile(self.net)


class HooksGradient(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight.register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]


class LooksAtGradients(Plain):
    def on_after_backward(self) -> None:
        assert self.head.weight.grad is not None


class KeepsParameters(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.kept = [list(self.parameters())]

    def training_step(self, batch: Any, index: int) -> Tensor:
        penalty = torch.stack([each.pow(2).sum() for each in self.kept[0]]).sum()
        return super().training_step(batch, index) + penalty


class Gathers(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        self.all_gather(torch.ones(1))
        return super().training_step(batch, index)


class Communicates(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        dist.all_reduce(torch.ones(1))
        return super().training_step(batch, index)


class ComputesMetric(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.mean.update(1.0)
        self.mean.compute()
        return super().training_step(batch, index)


class Penalised(Plain):
    """With a gradient penalty, through its SyncBatchNorm layer."""

    def training_step(self, batch: Any, index: int) -> Tensor:  # noqa: ARG002
        x = batch[0].requires_grad_()
        (gradient,) = torch.autograd.grad(self.head(self.net(x)).sum(), x)
        penalty: Tensor = gradient.pow(2).sum()
        return penalty


class LossOfSome(Plain):
    def training_step(self, batch: Any, index: int) -> Any:
        loss = super().training_step(batch, index)
        return loss if batch[1].any() else None


class Resizes(Plain):
    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(0))

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.queue = torch.cat([self.queue, torch.ones(1)])
        return super().training_step(batch, index)


class NeedsSamples(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        nothing: Tensor = 0 * batch[0].amax()
        return super().training_step(batch, index) + nothing


class Sparse(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 3, sparse=True)

    def training_step(self, batch: Any, index: int) -> Tensor:
        embedded: Tensor = self.embedding(batch[1])
        return super().training_step(batch, index) + embedded.sum()


class ChangesBatch(Images):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch, dataloader_idx


class ScalesByFrequency(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 3, scale_grad_by_freq=True)


class ReadsBatch(Callback):
    def on_train_batch_start(self, *arguments: Any) -> None:
        _trainer, _module, batch, _index = arguments
        _x, _y = batch


class LogsMetricSteps(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        self.accuracy.update(F.one_hot(batch[1], 3).float(), batch[1])
        self.log("accuracy", self.accuracy, on_step=True)
        return super().training_step(batch, index)


class LogsTwice(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        for value in (1.0, 3.0):
            self.log("twice", value, on_step=False, on_epoch=True)
        return super().training_step(batch, index)


class LogsOnSomeShards(Plain):
    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.trainer.global_rank == 0:
            self.log("seldom seen", 1.0)
        return super().training_step(batch, index)


class LogsRank(Plain):
    def on_train_epoch_end(self) -> None:
        self.log("rank", float(self.trainer.global_rank))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        yield torch.ones(1, 8, 8), torch.tensor(1)


class Streams(Images):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream())


class Two(Images):
    def train_dataloader(self) -> Any:
        return {"a": super().train_dataloader(), "b": super().train_dataloader()}


def spec_with(module: type[Task] = Plain, data: type[Images] = Images, **training: Any) -> dict[str, Any]:
    path = f"{__name__}.{{}}".format
    spec = spec_of("", max_epochs=1, **training)
    own = path(data.__name__) if data is not Images else "tests.training.bits.networks.Images"
    return spec | {"model": {"class_path": path(module.__name__)}, "data": {"class_path": own}}


def network(name: str) -> dict[str, Any]:
    return spec_of(name, max_epochs=1)


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "hook of a batch": (lambda: spec_with(EndsBatches), ["EndsBatches overrides on_train_batch_end"]),
    "own backward": (lambda: spec_with(OwnBackward), ["OwnBackward overrides backward"]),
    "compiled in place": (lambda: spec_with(Compiled), ["does not cover torch.compile"]),
    "compiled part": (lambda: spec_with(CompiledPart), ["does not cover torch.compile"]),
    "hook of a gradient": (lambda: spec_with(HooksGradient), ["hooks of head.weight", "use on_before_"]),
    "parameters in a list": (lambda: spec_with(KeepsParameters), ["outside of its shard's pass"]),
    "gathers": (lambda: spec_with(Gathers), ["(all_gather)", "for each of several shards"]),
    "communicates": (lambda: spec_with(Communicates), ["by torch.distributed", "sync_bn.global_mean"]),
    "computes a metric": (lambda: spec_with(ComputesMetric), ["computes the metric MeanMetric", "log the"]),
    "gradient penalty": (lambda: spec_with(Penalised), ["torch.autograd.grad"]),
    "no loss for some": (lambda: spec_with(LossOfSome), ["of 4 shards of a batch", "0 * output.sum()"]),
    "buffer of another shape": (lambda: spec_with(Resizes), ["the buffer 'queue' of Resizes"]),
    "empty shard": (lambda: spec_with(NeedsSamples), ["has no sample of this batch", "training.shards"]),
    "sparse": (lambda: spec_with(Sparse), ["sparse=False"]),
    "before the transfer": (lambda: spec_with(data=ChangesBatch), ["use on_after_batch_transfer"]),
    "counts within a batch": (lambda: spec_with(ScalesByFrequency), ["scale_grad_by_freq of embedding"]),
    "callback of a batch": (
        lambda: spec_with() | {"trainer": {"callbacks": [{"class_path": f"{__name__}.ReadsBatch"}]}},
        ["a callback reads a batch", "batch.first"],
    ),
    "metric on_step": (lambda: spec_with(LogsMetricSteps), ["'accuracy' is a metric", "on_step=False"]),
    "logged twice": (lambda: spec_with(LogsTwice), ["logs 'twice' twice", "two names"]),
    "stream": (lambda: spec_with(data=Streams), ["is a stream", "__getitem__"]),
    "several loaders": (lambda: spec_with(data=Two), ["several loaders", "give one loader"]),
    "normalisation recomputed": (
        lambda: network("recomputed norm"),
        ["SyncBatchNorm(16) is computed again", "leave the layer out"],
    ),
    "reentrant": (lambda: network("recomputed, reentrant"), ["use_reentrant=False"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_refused_with_the_way_out(worlds: Worlds, tmp_path: Path, case: str) -> None:
    make, messages = REFUSED[case]

    with pytest.raises(RankError) as caught:
        worlds.run(1, attempt, make(), tmp_path)

    assert "StepError" in str(caught.value) or "BuildError" in str(caught.value) or case == "empty shard"
    for message in messages:
        assert message in str(caught.value)


def test_a_value_that_differs_between_workers_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(1, attempt, spec_with(LogsRank), tmp_path / "1")

    with pytest.raises(RankError, match="rank has another value on each worker"):
        worlds.run(2, attempt, spec_with(LogsRank), tmp_path / "2")


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_there_for_hooks_after_the_backward_pass(
    worlds: Worlds, tmp_path: Path, micro_batches: int
) -> None:
    spec = spec_with(LooksAtGradients, accumulate_grad_batches=micro_batches, global_batch_size=11)
    done = worlds.run(2, attempt, spec, tmp_path)[0]

    assert len(done.series("train_loss")) == 3


def test_a_value_that_some_shards_alone_log_is_refused_where_a_worker_has_none(
    worlds: Worlds, tmp_path: Path
) -> None:
    with pytest.raises(RankError, match="only some shards of a batch log 'seldom seen'"):
        worlds.run(2, attempt, spec_with(LogsOnSomeShards), tmp_path)


def test_a_run_may_go_on_within_an_epoch_with_the_same_shards_alone() -> None:
    specs = [spec_with(), spec_with(shards=5), spec_with(reproducible="curve")]

    assert [batching(parse_spec(spec))["shards"] for spec in specs] == [4, 5, None]


def test_what_is_covered_is_not_refused() -> None:
    refuse_uncovered(Plain())

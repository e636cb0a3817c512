"""Modules and data as labs have them: batches of many kinds, losses and logs by hand, several optimizers."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, SumMetric
from torchmetrics.classification import BinaryF1Score

from sync_bn import global_mean
from tests.training.attempts import stop_if_asked

SAMPLES, VALIDATION = 14, 9  # the last batch leaves the third of three ranks without a sample
Sample = tuple[Tensor, Tensor, str]


class Samples(Dataset[Sample]):
    """Sequences (7, 4), their sums (1,) and names."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 7, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.mean(1).sum(1, keepdim=True) + 0.3

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample:
        return self.x[index], self.y[index], f"sample {index}"


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Opaque:
    """Of a class that nobody but its author knows."""

    def __init__(self, samples: list[Sample]) -> None:
        self._inside = _stacked(samples)

    def contents(self) -> tuple[Tensor, Tensor]:
        return self._inside


class Encoding(UserDict[str, Tensor]):
    """As Hugging Face's BatchEncoding: no dict, but a mapping with a `to` of its own."""

    def to(self, device: Any, **_: Any) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.items()})


class Graphs:
    """As PyTorch Geometric's Batch: the nodes of all graphs in one tensor, and the graph of each node."""

    def __init__(self, x: Tensor, batch: Tensor, y: Tensor) -> None:
        self.x, self.batch, self.y = x, batch, y

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    def to(self, device: Any, **_: Any) -> Graphs:
        return Graphs(self.x.to(device), self.batch.to(device), self.y.to(device))

    def pooled(self) -> Tensor:
        """The mean of each graph's nodes."""
        sums = self.x.new_zeros(self.num_graphs, self.x.shape[1]).index_add(0, self.batch, self.x)
        means: Tensor = sums / self.batch.bincount(minlength=self.num_graphs)[:, None]
        return means


def _as_graphs(samples: list[Sample]) -> Graphs:
    nodes = _of_different_lengths(samples)
    sizes = torch.tensor([len(x) for x in nodes])
    return Graphs(torch.cat(nodes), torch.arange(len(nodes)).repeat_interleave(sizes), _stacked(samples)[1])


def _stacked(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, *_ in samples]), torch.stack([y for _, y, _ in samples])


def _of_different_lengths(samples: list[Sample]) -> list[Tensor]:
    return [x[: 3 + int(y.abs() * 100) % 5] for x, y, _ in samples]


def packed(batch: Any) -> Tensor:
    """The mean of each sequence."""
    padded, lengths = nn.utils.rnn.pad_packed_sequence(batch)
    means: Tensor = padded.sum(0) / lengths[:, None]
    return means


COLLATED: dict[str, Callable[[list[Sample]], Any]] = {
    "tuple": lambda s: _stacked(s),
    "list with names": lambda s: [*_stacked(s), [name for *_, name in s]],
    "dict": lambda s: dict(zip("xy", _stacked(s), strict=True)),
    "named tuple": lambda s: Pair(*_stacked(s)),
    "dataclass": lambda s: Record(*_stacked(s)),
    "own class": lambda s: Opaque(s),
    "UserDict": lambda s: Encoding(zip("xy", _stacked(s), strict=True)),
    "graphs": lambda s: _as_graphs(s),
    "time first": lambda s: {"x": _stacked(s)[0].transpose(0, 1).contiguous(), "y": _stacked(s)[1]},
    "tensors of different sizes": lambda s: {"x": _of_different_lengths(s), "y": [y for _, y, _ in s]},
    "packed": lambda s: (pack_sequence(_of_different_lengths(s), enforce_sorted=False), _stacked(s)[1]),
    "no tensor": lambda s: [(x.tolist(), y.item()) for x, y, _ in s],
}


def features(batch: Any) -> tuple[Tensor, Tensor]:
    """(N, 4) and (N, 1) of a batch of any of these kinds."""
    if isinstance(batch, Opaque):
        x, y = batch.contents()
        return x.mean(1), y
    if isinstance(batch, Graphs):
        return batch.pooled(), batch.y
    if isinstance(batch, Encoding):
        return batch["x"].mean(1), batch["y"]
    if isinstance(batch, Record):
        return batch.x.mean(1), batch.y
    if isinstance(batch, dict) and isinstance(batch["x"], list):
        return torch.stack([x.mean(0) for x in batch["x"]]), torch.stack(batch["y"])
    if isinstance(batch, dict):
        return batch["x"].mean(0 if batch["x"].shape[0] == 7 else 1), batch["y"]
    if isinstance(batch[0], PackedSequence):
        return packed(batch[0]), batch[1]
    if isinstance(batch[0], tuple):  # lists of numbers
        x = torch.tensor([x for x, _ in batch], dtype=torch.float64)
        return x.mean(1), torch.tensor([[y] for _, y in batch], dtype=torch.float64)
    return batch[0].mean(1), batch[1]


class Data(LightningDataModule):
    """With a batch size that a plain Trainer uses; a job has its own."""

    def __init__(self, kind: str = "tuple", batch_size: int = 4) -> None:
        super().__init__()
        self.kind, self.batch_size = kind, batch_size

    def _loader(self, count: int, seed: int) -> DataLoader[Any]:
        return DataLoader(Samples(count, seed), batch_size=self.batch_size, collate_fn=COLLATED[self.kind])

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(SAMPLES, 1)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(VALIDATION, 2)


class Hooked(Data):
    """Changes batches on their way to the device, and needs its trainer to set up."""

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        assert stage == "fit"
        assert self.trainer is not None
        self.scale = 1.0 + (self.trainer.max_epochs or 0)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * self.scale, batch[1] + dataloader_idx]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        return [batch[0] - 0.1, batch[1]]

    def teardown(self, stage: str) -> None:
        print("teardown" if stage == "fit" else "?")


class Several(Data):
    def train_dataloader(self) -> Any:
        return [super().train_dataloader(), super().train_dataloader()]


def network(inputs: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Regression(LightningModule):
    batches = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def on_train_batch_start(self, _batch: Any, _index: int) -> Any:
        self.batches += 1
        stop_if_asked(self.batches)

    def loss_of(self, batch: Any) -> Tensor:
        x, y = features(batch)
        return F.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, _index: int) -> Any:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", self.loss_of(batch), batch_size=len(features(batch)[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Convolves(Regression):
    """Convolutions with a normalisation each, over positions of a sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            *(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)),
            *(nn.ReLU(), nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(12, 1)),
        )


class Logs(Regression):
    """What `self.log` can do, with sizes that are given because Lightning would guess wrong ones."""

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        loss = F.mse_loss(output, y)
        self.log("mse", loss, on_step=True, on_epoch=True, batch_size=len(y))
        self.log("largest", y.max() if len(y) else torch.tensor(-torch.inf), reduce_fx="max", on_epoch=True)
        self.log("samples", float(len(y)), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss


class Metrics(Regression):
    """A collection of torchmetrics, which counts samples, and one that adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = MetricCollection([MeanAbsoluteError(), MeanSquaredError()])
        self.seen = SumMetric()

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        if len(y):
            self.metrics.update(output.detach(), y)
            self.seen.update(y.detach().sum())
        self.log_dict(dict(self.metrics.items()), on_step=False, on_epoch=True)
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        return F.mse_loss(output, y)


class Adversarial(LightningModule):
    """Two optimizers by hand, of parameters of their own."""

    batches = 0

    def on_train_batch_start(self, _batch: Any, _index: int) -> Any:
        self.batches += 1
        stop_if_asked(self.batches)

    def __init__(self, *, toggle: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.critic, self.toggle = network(5), toggle

    def training_step(self, batch: Any, _index: int) -> None:
        x, y = features(batch)
        optimizers: Any = self.optimizers()
        real = torch.cat([x, y], 1)
        for optimizer, loss in zip(optimizers, (self._generator_loss, self._critic_loss), strict=True):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss(x, real))
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def _generator_loss(self, x: Tensor, _real: Tensor) -> Tensor:
        fake = self.critic(self.generator(x))
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))

    def _critic_loss(self, x: Tensor, real: Tensor) -> Tensor:
        found, fake = self.critic(real), self.critic(self.generator(x).detach())
        return F.binary_cross_entropy_with_logits(
            found, torch.ones_like(found)
        ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.05),
            torch.optim.SGD(self.critic.parameters(), lr=0.02),
        ]


class UnusedHead(Regression):
    """Has parameters that no step uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 1)


class HeadOfSomeBatches(Regression):
    """Uses a second head in every other batch; weight decay would change it in the others, too."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = features(batch)
        loss = F.mse_loss(self.net(x), y)
        return loss + F.mse_loss(self.second(x), y) if index % 2 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


class HeadOfSomeSamples(Regression):
    """Uses a second head for the samples that need it, so perhaps not on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 1)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        loss = F.mse_loss(self.net(x), y)
        chosen = y[:, 0] > 0.8
        if chosen.any():
            loss = loss + self.second(x[chosen]).square().sum() / len(x)
        return loss


class Unfreezes(Regression):
    """Trains its last layer alone in the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net[:-1].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.net.requires_grad_(self.current_epoch > 0)
        self.net[-1].requires_grad_(True)


class LossOfShapeOne(Regression):
    def training_step(self, batch: Any, _index: int) -> Any:
        return self.loss_of(batch).reshape(1)


class LossInDict(Regression):
    def training_step(self, batch: Any, _index: int) -> Any:
        loss = self.loss_of(batch)
        return {"loss": loss, "other": loss.detach() * 2, "names": ["a"]}


class SkipsBatches(Regression):
    """Skips every third batch by returning None."""

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.loss_of(batch)
        return None if index % 3 == 1 else loss


class QuasiNewton(Regression):
    """LBFGS calls its closure several times in a step, and compares losses."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.2, max_iter=4, line_search_fn="strong_wolfe")


class ClipsGradients(Regression):
    """Clips by a norm that most gradients exceed."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


class Plateau(Regression):
    """A scheduler that watches a metric."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class AccumulatesByHand(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.loss_of(batch) / 2)
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()


class SeveralBackwards(Regression):
    """Two backward passes of one loss, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _index: int) -> None:
        optimizer: Any = self.optimizers()
        x, y = features(batch)
        output = self.net(x)
        loss, other = F.mse_loss(output, y), F.l1_loss(output, y)
        optimizer.zero_grad()
        self.manual_backward(loss, retain_graph=True)
        self.manual_backward(loss, retain_graph=True)
        self.manual_backward(other)
        optimizer.step()


class StepsAtDifferentRates(Adversarial):
    """The generator steps in every second batch."""

    def training_step(self, batch: Any, index: int) -> None:
        x, y = features(batch)
        optimizers: Any = self.optimizers()
        generator, critic = optimizers
        real = torch.cat([x, y], 1)
        critic.zero_grad()
        self.manual_backward(self._critic_loss(x, real))
        critic.step()
        if index % 2:
            generator.zero_grad()
            self.manual_backward(self._generator_loss(x, real))
            generator.step()


class Untoggled(Adversarial):
    def __init__(self) -> None:
        super().__init__(toggle=False)


class Freezes(Regression):
    """Keeps its BatchNorm in evaluation mode, as in fine-tuning."""

    def train(self, mode: bool = True) -> Freezes:
        super().train(mode)
        self.net[1].eval()
        return self


class HandedOver(Regression):
    """As after loading pretrained weights; Lightning leaves a part in evaluation mode as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.net.eval()


class MadeLate(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net: Any = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = network()


class OnSeveral(Regression):
    def validation_step(self, batch: Any, _index: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss_of(batch) + dataloader_idx, batch_size=len(features(batch)[1]))
        self.log("val_both", self.loss_of(batch), add_dataloader_idx=False) if not dataloader_idx else None


class WithTest(Regression):
    def test_step(self, batch: Any, _index: int, dataloader_idx: int = 0) -> None:  # noqa: PT019 (no test)
        self.log("test_loss", self.loss_of(batch) + dataloader_idx, batch_size=len(features(batch)[1]))


class OfBoth(Regression):
    """Adds the losses of two batches, of which one may be missing."""

    def training_step(self, batch: Any, _index: int) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else batch
        losses = [self.loss_of(part) for part in parts if part is not None]
        return sum(losses[1:], losses[0])


class Even(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(16, 1)


class ValidatesOnTwo(Data):
    def val_dataloader(self) -> Any:
        return [self._loader(9, 2), self._loader(5, 3)]


class ValidatesOnDict(Data):
    def val_dataloader(self) -> Any:
        return {"a": self._loader(9, 2), "b": self._loader(5, 3)}


class Tested(Data):
    def test_dataloader(self) -> Any:
        return self._loader(7, 4)


class TestedOnTwo(Data):
    def test_dataloader(self) -> Any:
        return [self._loader(7, 4), self._loader(5, 5)]


class TrainsOnList(Data):
    """Whole batches, of which a worker has the same share."""

    def _both(self) -> list[DataLoader[Any]]:
        return [self._loader(20, 1), self._loader(8, 5)]

    def train_dataloader(self) -> Any:
        return self._both()


class TrainsOnDict(TrainsOnList):
    def train_dataloader(self) -> Any:
        return dict(zip("ab", self._both(), strict=True))


class TrainsOnMin(TrainsOnList):
    def train_dataloader(self) -> Any:
        return CombinedLoader(self._both(), "min_size")


class TrainsOnMax(TrainsOnList):
    def train_dataloader(self) -> Any:
        return CombinedLoader(self._both(), "max_size")


def start_process(_number: int) -> None:
    torch.manual_seed(3)


class WithProcesses(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            Samples(SAMPLES, 1),
            batch_size=self.batch_size,
            collate_fn=COLLATED[self.kind],
            num_workers=1,
            persistent_workers=True,
            multiprocessing_context="fork",
            prefetch_factor=1,
            worker_init_fn=start_process,
            generator=torch.Generator().manual_seed(5),
        )


class DropsLast(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            Samples(SAMPLES, 1),
            batch_size=self.batch_size,
            collate_fn=COLLATED[self.kind],
            drop_last=True,
        )


def without_some(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Drops samples as if they could not be read."""
    read = [each for each in samples if each[2] not in ("sample 1", "sample 7", "sample 10")]
    x, y = _stacked(read or samples)
    return (x, y) if read else (x[:0], y[:0])


class DropsSamples(Data):
    def _loader(self, count: int, seed: int) -> DataLoader[Any]:
        return DataLoader(Samples(count, seed), batch_size=self.batch_size, collate_fn=without_some)


class TrainsOnly(Data):
    val_dataloader = LightningDataModule.val_dataloader


class EvenTrainsOnly(Even):
    val_dataloader = LightningDataModule.val_dataloader


TESTED = ("Tested", "TestedOnTwo")


def _noting(owner: str, parent: type, name: str) -> Any:
    """A hook that notes its name in the module's `calls` and does what its parent does."""

    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        module: Any = self if isinstance(self, LightningModule) else None
        if isinstance(self, LightningDataModule):
            assert self.trainer is not None
            module = self.trainer.lightning_module
        (module or args[1]).calls.append(f"{owner}.{name}")
        return getattr(parent, name)(self, *args, **kwargs)

    return hook


_OF_ALL = [f"on_{what}_{when}" for what in ("fit", "train", "validation") for when in ("start", "end")]
_OF_STEPS = [
    f"on_{what}_{which}_{when}"
    for what in ("train", "validation")
    for which in ("epoch", "batch")
    for when in ("start", "end")
]
_OF_OPTIMIZERS = [
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
]
_OF_TRANSFER = ["on_before_batch_transfer", "on_after_batch_transfer"]
_IN_CALLBACK = [*_OF_ALL, *_OF_STEPS, *_OF_OPTIMIZERS, "setup", "teardown"]


class NotingCallback(Callback):
    """Notes its hooks."""


class Noting(Regression):
    """Notes its hooks, those of its callback and of its data module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def configure_callbacks(self) -> Any:
        return [NotingCallback()]

    def configure_optimizers(self) -> Any:
        self.calls.append("module.configure_optimizers")
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class NotingData(Data):
    """Notes its hooks in its module."""


for _name in _IN_CALLBACK:
    setattr(NotingCallback, _name, _noting("callback", Callback, _name))
for _name in [
    *_IN_CALLBACK,
    *["on_validation_model_eval", "on_validation_model_train", "on_validation_model_zero_grad"],
    *["training_step", "validation_step", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step"],
    *["configure_gradient_clipping", "configure_model", "prepare_data", "on_train_batch_end"],
]:
    setattr(Noting, _name, _noting("module", Regression, _name))
for _name in ["prepare_data", "setup", "teardown", "train_dataloader", "val_dataloader", *_OF_TRANSFER]:
    setattr(NotingData, _name, _noting("data", Data, _name))


class LogsAnywhere(Regression):
    """Logs in every hook; some values seldom, some on rank 0 alone."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss_of(batch)
        if index % 3 == 2:
            self.log("seldom", loss, on_epoch=True)
        self.log_dict({"a": loss, "b": loss * 2}, on_step=False, on_epoch=True)
        self.log("rank_zero", 3.0, rank_zero_only=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        if index:
            self.log("val_seldom", self.loss_of(batch), batch_size=len(features(batch)[1]))

    def on_train_batch_end(self, _outputs: Any, _batch: Any, index: int) -> None:
        if index != 1:
            self.log("norm", self._norm())

    def on_train_epoch_start(self) -> None:
        self.log("start", float(self.current_epoch))

    def _norm(self) -> Tensor:
        norm: Tensor = torch.cat([each.detach().flatten() for each in self.parameters()]).norm()
        return norm

    def on_train_epoch_end(self) -> None:
        self.log("end", self._norm())
        self.log("after", self.trainer.callback_metrics["a"] + self.trainer.callback_metrics["val_loss"])

    def on_validation_epoch_end(self) -> None:
        self.log("val_end", self._norm())

    def configure_callbacks(self) -> Any:
        return [LoggingCallback()]


class LoggingCallback(Callback):
    def on_train_batch_end(self, _trainer: Any, module: LightningModule, *_: Any) -> None:
        module.log("by_callback", 2.0)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert trainer.callback_metrics["val_loss"] > 0
        assert module.trainer is trainer


class SavesItself(Callback):
    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        trainer.save_checkpoint("own_checkpoints/by_callback.ckpt")
        assert Path("own_checkpoints/by_callback.ckpt").exists()


class WithCallback(Regression):
    """Has a callback of its own, which may write checkpoints."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        assert isinstance(loss, Tensor)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_callbacks(self) -> Any:
        folder = "own_checkpoints"
        make: dict[str, Callable[[], Callback]] = {
            "best": lambda: callbacks.ModelCheckpoint(folder, monitor="val_loss", save_top_k=2),
            "steps": lambda: callbacks.ModelCheckpoint(
                folder, filename="{epoch}-{step}-{loss_step:.3f}", every_n_train_steps=3, save_top_k=-1
            ),
            "last": lambda: callbacks.ModelCheckpoint(folder, save_last=True, save_weights_only=True),
            "stop": lambda: callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0),
            "stop on train": lambda: callbacks.EarlyStopping(
                "loss_epoch", patience=1, min_delta=100.0, check_on_train_epoch_end=True
            ),
            "rate": lambda: callbacks.LearningRateMonitor(),
            "ema": lambda: callbacks.EMAWeightAveraging(decay=0.5),
            "swa": lambda: callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
            "pruning": lambda: callbacks.ModelPruning("l1_unstructured", amount=0.3),
            "own": lambda: SavesItself(),
        }
        return [make[self.which]()]


class StepMetrics(Regression):
    """Metrics that are called in each step, of which one is no mean; an empty share does not call them."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = MetricCollection({"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)})
        self.seldom = MeanAbsoluteError()

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        if len(y):
            self.metrics(output.detach(), y)
        self.log_dict(self.metrics, on_step=True, on_epoch=True)
        if len(y) and index % 2:
            self.seldom(output.detach(), y)
            self.log("seldom", self.seldom)
        return F.mse_loss(output, y)


class CountsWhatThereIs(Regression):
    """Metrics that take no batch without samples, and are given one: an update, a call, a collection."""

    def __init__(self) -> None:
        super().__init__()
        self.updated, self.called = BinaryF1Score(), BinaryF1Score()
        self.metrics = MetricCollection({"low": BinaryF1Score(0.3), "high": BinaryF1Score(0.7)})

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        found = (output.detach().sigmoid(), (y > 0.3).long())
        self.updated.update(*found)
        self.called(*found)
        self.metrics.update(*found)
        self.log("called", self.called, on_step=True, on_epoch=True)
        self.log_dict({"updated": self.updated, **dict(self.metrics.items())}, on_step=False, on_epoch=True)
        return F.mse_loss(output, y)


class Noisy(Samples):
    """Draws noise for each sample."""

    def __getitem__(self, index: int) -> Sample:
        x, y, name = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype), y, name


class TrainsOnShuffled(TrainsOnList):
    """Of which the shorter loader starts again within an epoch."""

    def _both(self) -> list[DataLoader[Any]]:
        return [
            DataLoader(Noisy(count, 1), shuffle=True, batch_size=4, collate_fn=COLLATED[self.kind])
            for count in (20, 8)
        ]


class Batches:
    """Batches that no DataLoader makes."""

    def __init__(self, count: int) -> None:
        self.samples = Samples(count, 1)

    def __len__(self) -> int:
        return len(self.samples) // 2

    def __iter__(self) -> Any:
        for first in range(0, 2 * len(self), 2):
            yield _stacked([self.samples[first], self.samples[first + 1]])


class TrainsOnIterable(Data):
    def train_dataloader(self) -> Any:
        return Batches(SAMPLES)

    def val_dataloader(self) -> Any:
        return Batches(VALIDATION)


class EndsEarly(Regression):
    """Ends the training from one rank alone, in a step or a hook."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def _end(self, where: str, batch: int) -> None:
        if where == self.where and batch == 1 and self.trainer.global_rank == self.trainer.world_size - 1:
            self.trainer.should_stop = True

    def training_step(self, batch: Any, index: int) -> Any:
        self._end("training_step", index)
        return super().training_step(batch, index)

    def on_train_batch_end(self, _outputs: Any, _batch: Any, index: int) -> None:
        self._end("on_train_batch_end", index)

    def on_validation_epoch_end(self) -> None:
        self._end("on_validation_epoch_end", 1)

    def on_train_epoch_end(self) -> None:
        self._end("on_train_epoch_end", 1)


class CallsBackward(Regression):
    """By hand, but not as Lightning asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.loss_of(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class Doubling(DataLoader[Any]):
    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield 2 * x, y


class Doubled(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return Doubling(Samples(SAMPLES, 1), batch_size=self.batch_size, collate_fn=COLLATED[self.kind])


class KeepsLoss(Regression):
    """Keeps a tensor with its graph."""

    def training_step(self, batch: Any, _index: int) -> Any:
        self.last = self.loss_of(batch)
        return self.last


class Parametrized(Regression):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.net[0])


class Volume(Samples):
    """Sequences of different lengths."""

    def __getitem__(self, index: int) -> Sample:
        x, y, name = super().__getitem__(index)
        return x[: 3 + index % 4], y, name


class Volumes(Data):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Volume(VALIDATION, 2), batch_size=1, collate_fn=COLLATED[self.kind])


class GathersByHand(Regression):
    """Keeps outputs for the end of the epoch, and a running centre of its own."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, index: int) -> Any:
        _, y = features(batch)
        if len(y):
            self.centre.mul_(0.9).add_(0.1 * y.mean(0))
        return super().training_step(batch, index)

    def validation_step(self, batch: Any, _index: int) -> None:
        self.outputs.append(features(batch)[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val_mean", torch.cat(self.outputs).mean())
        self.log("val_same", 1.0)


class DividedByRank(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        own = range(self.trainer.global_rank, SAMPLES - 1, self.trainer.world_size)
        samples = Subset(Samples(SAMPLES, 1), list(own))
        return DataLoader(samples, batch_size=self.batch_size, collate_fn=COLLATED[self.kind])


IGNORED = 255


def segments(batch: Any) -> tuple[Tensor, Tensor]:
    """(N, 4, 7) and labels (N, 7) of a batch with samples first. All labels of some samples are ignored."""
    x = batch.contents()[0] if isinstance(batch, Opaque) else batch[0]
    labels = (x.mean(2) > -0.2).long() + (x[..., 0] > 0.4)
    return x.transpose(1, 2), labels.masked_fill((x[..., 1] > 0.5) | (x[:, :1, 0] > 0.3), IGNORED)


class Segments(Regression):
    """Losses that divide by the weights of the targets that count. which: a key of `LOSSES`."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.loss = LOSSES[which]
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 3, 1))

    def loss_of(self, batch: Any) -> Tensor:
        x, labels = segments(batch)
        return self.loss(self.net(x), labels)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("loss_of_step", loss, on_step=True, on_epoch=True, batch_size=len(segments(batch)[1]))
        return loss

    def test_step(self, batch: Any, _index: int) -> None:  # noqa: PT019 (no test)
        self.log("test_loss", self.loss_of(batch), batch_size=len(segments(batch)[1]))


def _weighted(scores: Tensor, labels: Tensor, **given: Any) -> Tensor:
    loss: Tensor = F.cross_entropy(scores, labels, weight=scores.new_tensor([0.2, 1.0, 3.0]), **given)
    return loss


def _nll(scores: Tensor, labels: Tensor) -> Tensor:
    weight = scores.new_tensor([0.2, 1.0, 3.0])
    return F.nll_loss(scores.log_softmax(1), labels, weight, ignore_index=IGNORED)


def _with_another(scores: Tensor, labels: Tensor) -> Tensor:
    other = scores.square().mean((1, 2))
    return _weighted(scores, labels, ignore_index=IGNORED) + 0.3 * other.mean()


def _masked(scores: Tensor, labels: Tensor) -> Tensor:
    mask = labels != IGNORED
    errors = (scores[:, 0] - labels.where(mask, 0)).square()
    return global_mean((errors * mask).sum(), mask.sum())


def _dice(scores: Tensor, labels: Tensor) -> Tensor:
    """Of the batch, for each class: a ratio of two sums, of which both have a gradient."""
    mask = labels != IGNORED
    found = scores.softmax(1) * mask[:, None]
    wanted = F.one_hot(labels.where(mask, 0), 3).movedim(2, 1) * mask[:, None]
    overlap, size = (found * wanted).sum((0, 2)), (found + wanted).sum((0, 2))
    return (1 - 2 * global_mean(overlap, size)).square().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class weights": lambda scores, labels: _weighted(scores, labels.where(labels != IGNORED, 0)),
    "ignored": nn.CrossEntropyLoss(ignore_index=IGNORED),
    "both": lambda scores, labels: _weighted(scores, labels, ignore_index=IGNORED, label_smoothing=0.1),
    "nll": _nll,
    "with another": _with_another,
    "masked": _masked,
    "Dice": _dice,
}

"""`Probe`, the base class: looks at a copy of the network now and then, on rank 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from sync_bn import revert_sync_batchnorm
from training.callbacks.job_step import job_step
from training.errors import BuildError
from training.model.supervised import Supervised


class Probe(Callback):
    """After the first step and after every `every`-th one, rank 0 calls `measure` and logs what it returns.

    `measure` gets a copy of the user's model, in training mode, with plain BatchNorm layers, and the first
    `samples` samples of the validation data: BatchNorm normalises by these. The training is not affected: no
    buffer of the model changes, torch's random generators stay as they are, and no rank communicates. Results
    do not depend on the number of workers. Raises ValueError unless `every` is positive and there are at
    least 2 samples; BuildError before the first step if `check` does or the data has no validation.
    """

    def __init__(self, every: int = 100, samples: int = 500) -> None:
        if every < 1 or samples < 2:
            name = type(self).__name__
            raise ValueError(f"{name}: every is {every} and samples is {samples}; give at least 1 and 2")
        self.every, self.samples = every, samples
        self._last = 0
        self._batch: tuple[Tensor, Tensor] | None = None

    def measure(
        self, trainer: Trainer, module: LightningModule, model: nn.Module, x: Tensor, y: Tensor
    ) -> Mapping[str, float]:
        """Returns metrics by their names. model: a copy, which it may change. x, y: inputs and targets."""
        raise NotImplementedError

    def check(self, module: LightningModule) -> None:
        """Raises BuildError on every rank if the model cannot be measured."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(pl_module)
        validation_data(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = job_step(trainer)
        if trainer.global_rank or step == self._last or not (step == 1 or step % self.every == 0):
            return
        self._last = step
        with undisturbed(pl_module):
            if self._batch is None:
                x, y = first_samples(validation_data(trainer), self.samples)
                self._batch = (as_input(x, pl_module), y.to(pl_module.device))
            metrics = self.measure(trainer, pl_module, plain_copy(pl_module), *self._batch)
        log(trainer, metrics, step)


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """Restores torch's random generators afterwards: dropout draws from them."""
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def users_model(module: LightningModule) -> nn.Module:
    return module.model if isinstance(module, Supervised) else module


def plain_copy(module: LightningModule) -> nn.Module:
    """Returns a copy of the user's model in training mode, with plain BatchNorm layers."""
    return revert_sync_batchnorm(deepcopy(users_model(module))).train()


def as_input(x: Tensor, module: LightningModule) -> Tensor:
    """Returns the inputs on the module's device, and if they are floating-point numbers, in its dtype."""
    dtype = next(module.parameters()).dtype if x.is_floating_point() else x.dtype
    return x.to(module.device, dtype)


def log(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Logs metrics at `step` in every logger of this rank; only rank 0 writes."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)


def validation_data(trainer: Trainer) -> Dataset[Any]:
    return data_of(trainer, "val_dataloader")


def data_of(trainer: Trainer, loader: str) -> Dataset[Any]:
    """Returns the data set of a loader of the spec's data. Raises BuildError if there is none."""
    source: Any = getattr(trainer, "datamodule", None)
    dataset: Any = None if source is None else getattr(getattr(source, loader)(), "dataset", None)
    if not hasattr(dataset, "__getitem__"):
        raise BuildError(
            "trainer.callbacks", f"probes need data with a {loader} over a dataset with an index"
        )
    assert isinstance(dataset, Dataset)
    return dataset


def first_samples(dataset: Dataset[Any], count: int) -> tuple[Tensor, Tensor]:
    return batch_of(dataset, range(min(count, len(dataset))))  # type: ignore[arg-type]


def batch_of(dataset: Dataset[Any], indices: Any) -> tuple[Tensor, Tensor]:
    """Returns the inputs and the targets of these samples, stacked."""
    x, y = default_collate([dataset[int(index)] for index in indices])
    return torch.as_tensor(x), torch.as_tensor(y)

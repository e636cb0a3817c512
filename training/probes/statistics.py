"""Where the statistics for inference come from, and how many batches they need."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, precise_bn, revert_sync_batchnorm
from training.callbacks.job_step import job_step
from training.errors import BuildError
from training.probes.probe import as_input, batch_of, data_of, first_samples, log, users_model

RUNNING, MEAN, PRECISE = "running", "mean", "precise"


class StatisticsSources(Callback):
    """After the last step, logs the test error with statistics that have seen K batches, for each K.

    The weights are the final ones; the statistics begin anew. `statistics/running/K`: running averages with
    `momentum`, from mean 0 and variance 1; `statistics/mean/K`: the mean over the batches (Ioffe & Szegedy
    2015, Algorithm 2); `statistics/precise/K`: `sync_bn.precise_bn` over the same batches;
    `statistics/training`: the running averages of the training itself.

    batches: numbers of batches, ascending. batch_size: samples of each, over all workers. samples: of the
    test data. All ranks share each batch, so every rank must call it, and blocks in collectives. Raises
    BuildError before the first step for a model without BatchNorm.
    """

    def __init__(
        self,
        batches: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
        batch_size: int = 60,
        momentum: float = 0.1,
        samples: int = 2000,
    ) -> None:
        self.batches, self.batch_size, self.momentum = tuple(batches), batch_size, momentum
        self.samples = samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for loader in ("train_dataloader", "test_dataloader"):
            data_of(trainer, loader)
        if not any(isinstance(layer, _BatchNorm) for layer in users_model(pl_module).modules()):
            raise BuildError("trainer.callbacks", "StatisticsSources needs a model with BatchNorm")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = convert_sync_batchnorm(deepcopy(users_model(pl_module)))
        test = first_samples(data_of(trainer, "test_dataloader"), self.samples)
        inputs, targets = as_input(test[0], pl_module), test[1].to(pl_module.device)

        def log_error(name: str, of: nn.Module) -> None:
            if trainer.global_rank == 0:
                log(trainer, {f"statistics/{name}": error_of(of, inputs, targets)}, job_step(trainer))

        log_error("training", model)
        shares = self._shares(data_of(trainer, "train_dataloader"), pl_module)
        for name, momentum in ((RUNNING, self.momentum), (MEAN, None)):
            copy = _begun_anew(model, momentum)
            for count, share in enumerate(shares, 1):
                with torch.no_grad():
                    copy.train()(share)
                if count in self.batches:
                    log_error(f"{name}/{count}", copy)
        for count in self.batches:
            # Every rank has as many batches, so all ranks meet in the same collectives.
            log_error(f"{PRECISE}/{count}", precise_bn(_begun_anew(model, self.momentum), shares[:count]))

    def _shares(self, data: Dataset[Any], module: LightningModule) -> list[Tensor]:
        """Returns this rank's share of each batch. The batches are the same for every number of ranks."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        number = self.batches[-1]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(data), generator=generator)  # type: ignore[arg-type]
        wanted = order.repeat(-(-number * self.batch_size // len(order)))[: number * self.batch_size]
        return [
            as_input(batch_of(data, indices[rank::world_size])[0], module)
            for indices in torch.split(wanted, self.batch_size)
        ]


def _begun_anew(model: nn.Module, momentum: float | None) -> nn.Module:
    copy = deepcopy(model)
    for layer in copy.modules():
        if isinstance(layer, SyncBatchNorm):
            layer.reset_running_stats()
            layer.momentum = momentum
    return copy


@torch.no_grad()
def error_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the share of wrong predictions in evaluation mode. Needs no other rank."""
    plain = revert_sync_batchnorm(deepcopy(model)).eval()
    return float((plain(x).argmax(1) != y).double().mean())

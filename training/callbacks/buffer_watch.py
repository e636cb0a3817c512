"""The callback that finds buffers which differ between the ranks: a module changes them by its share."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

log = logging.getLogger(__name__)

NAMES_SHOWN = 10


class BufferWatch(Callback):
    """Warns once, at the end of an epoch, about the model's buffers that are not the same on all ranks.

    A running centre or a counter that is changed in `forward` sees one rank's samples, and rank 0's is saved.
    BatchNorm's own buffers and the states of metrics are left out: others take care of them.
    """

    def __init__(self) -> None:
        self._done = dist.get_world_size() == 1

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        buffers = {} if self._done else _buffers(module)
        if not buffers:
            return
        sums = torch.stack([_checksum(buffer) for buffer in buffers.values()])
        extremes = torch.cat([sums, -sums])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        greatest, least = extremes.chunk(2)
        differ = [
            name
            for name, same in zip(buffers, torch.isclose(greatest, -least, rtol=1e-5).tolist(), strict=True)
            if not same
        ]
        if differ:
            self._done = True
        if differ and trainer.is_global_zero:
            log.warning(
                "the module's buffers %s differ between the workers, each of which sees its share of a "
                "batch; worker 0's are saved. Change them by the mean over all workers (self.all_gather), or "
                "the result depends on the number of workers",
                ", ".join(differ[:NAMES_SHOWN]),
            )


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}" if name else key: buffer
        for name, layer in module.named_modules()
        if not isinstance(layer, _BatchNorm | Metric)
        for key, buffer in layer.named_buffers(recurse=False)
        if buffer.layout == torch.strided and not buffer.is_complex() and buffer.numel()
    }


def _checksum(buffer: Tensor) -> Tensor:
    """Returns a weighted sum, so that an exchange of two values shows; NaN counts as a number of its own."""
    values = buffer.detach().double().nan_to_num(nan=12345.0).reshape(-1)
    return (values * torch.linspace(1.0, 2.0, len(values), dtype=values.dtype, device=values.device)).sum()

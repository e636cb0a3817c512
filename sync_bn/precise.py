"""Precise BatchNorm: sets running statistics to those of a whole data set, `precise_bn(model, loader)`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sync_bn._arithmetic import Moments, global_moments
from sync_bn.layer import SyncBatchNorm


def precise_bn(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> nn.Module:
    """Sets the running statistics of every `SyncBatchNorm` to those of all data. Returns `model`.

    Running statistics average over past steps, with weights that have changed since. This function runs the
    batches of all ranks through the model once, with its current weights. Layers normalise by their global
    batch; all other modules, such as dropout, are in evaluation mode. The running mean and the unbiased
    running variance become those of all values of all batches (Wu & Johnson, "Rethinking 'Batch' in
    BatchNorm", 2021, section 3; Ioffe & Szegedy 2015, Algorithm 2). All ranks of a layer's group get the same
    bits. Training flags and `num_batches_tracked` do not change.

    loader: this rank's batches, of any type. Ranks may have different numbers of batches, but at least one
        each; a rank that runs out repeats its last batch, which is not counted, until all have finished.
    forward: called with the model and a batch. None: `model(batch)`, or `model(batch[0])` for a tuple or
        list.

    Collective: every rank must call it; blocks until all have finished. Raises ValueError if the model has no
    `SyncBatchNorm` with running statistics, or only layers inside `observe`; and on every rank, if one rank
    has no batch. Raises DesynchronizedError as the layers do. After any error the statistics are unchanged.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, SyncBatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
        and layer._observer is None
    ]
    if not layers:
        raise ValueError("The model has no SyncBatchNorm with running statistics, or it is observed.")
    population = _Population(layers)
    with torch.no_grad(), _batch_statistics(model, layers, population):
        for batch, counts in _padded_batches(loader, _device(layers)):
            for layer in layers:
                layer.counts_samples = counts
            (forward or _forward)(model, batch)
    population.write()
    return model


_NO_BATCH: Any = object()


class _Population:
    """Adds up the moments of all batches, with the same numbers in the same order on every rank."""

    def __init__(self, layers: list[SyncBatchNorm]) -> None:
        self._sums: dict[SyncBatchNorm, Tensor | float] = dict.fromkeys(layers, 0.0)

    def record(self, layer: SyncBatchNorm, moments: Moments, local_sums: Tensor) -> None:  # noqa: ARG002
        mean, var, n = moments
        self._sums[layer] += torch.cat([n * mean, n * (var + mean * mean), n.reshape(1)])

    def write(self) -> None:
        for layer, sums in self._sums.items():
            if isinstance(sums, Tensor):  # a layer that was not called keeps its statistics
                mean, var, n = global_moments(sums)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(var * n / (n - 1).clamp(min=1))


@contextmanager
def _batch_statistics(
    model: nn.Module, layers: list[SyncBatchNorm], population: _Population
) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.clone() for layer in layers for buffer in layer.buffers(recurse=False)}
    model.eval()
    for layer in layers:
        layer.training = True
        layer._observer = population
    try:
        yield
    finally:
        for layer in layers:
            del layer._observer
            layer.counts_samples = True
        for buffer, value in buffers.items():
            buffer.copy_(value)
        for module, flag in training.items():
            module.training = flag


def _padded_batches(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, bool]]:
    """Yields this rank's batches with True, then its last one with False until every rank has finished."""
    batches, last = iter(loader), _NO_BATCH
    while True:
        batch = next(batches, _NO_BATCH)
        if _any_rank(batch is last is _NO_BATCH, device):
            raise ValueError(
                "A rank has no batch at all. Give each rank at least one, if necessary an empty one."
            )
        counts = batch is not _NO_BATCH
        if not _any_rank(counts, device):
            return
        last = batch if counts else last
        yield last, counts


def _any_rank(flag: bool, device: torch.device) -> bool:
    value = torch.tensor(float(flag), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def _device(layers: list[SyncBatchNorm]) -> torch.device:
    running_mean = layers[0].running_mean
    assert running_mean is not None
    return running_mean.device


def _forward(model: nn.Module, batch: Any) -> object:
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)

"""How far the statistics of few samples are from those of the batch that they are part of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.data.arrangement import Arrangement, arranged
from training.errors import BuildError
from training.probes.inputs import inputs_of
from training.probes.probe import Probe, users_model


class BatchNoise(Probe):
    """Logs `noise/ARRANGEMENT/mean/K` and `/var/K`: the noise of the statistics of K samples of a batch.

    In the input of a BatchNorm layer, mean is the root mean square over groups and channels of (the group's
    mean - μ)/σ, var that of (the group's variance - σ²)/(σ² + eps), where μ and σ² are those of the batch; as
    mean_noise and var_noise of `sync_bn.observe`, whose group is a worker's share. The metric is the median
    over the layers. A group is K consecutive samples after the batch was arranged by class, see
    `training.data.ArrangedBatches`.

    groups: the K, divisors of `batch`. samples: are cut into batches of `batch`; a rest is left out. Needs
    labels (N,) int64. Raises ValueError for other numbers, BuildError for a model without BatchNorm.
    """

    def __init__(
        self,
        groups: Sequence[int] = (2, 4, 8, 16, 32),
        batch: int = 64,
        arrangements: Sequence[Arrangement] = ("random", "sorted", "balanced"),
        every: int = 100,
        samples: int = 512,
    ) -> None:
        super().__init__(every, samples)
        if samples < batch or any(group < 1 or batch % group for group in groups):
            raise ValueError(
                f"BatchNoise: groups is {list(groups)}, batch {batch}, samples {samples}; give divisors of "
                "batch, and at least batch samples"
            )
        self.groups, self.batch, self.arrangements = tuple(groups), batch, tuple(arrangements)

    def check(self, module: LightningModule) -> None:
        if not norms_of(users_model(module)):
            raise BuildError("trainer.callbacks", "BatchNoise needs a model with BatchNorm")

    def measure(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: LightningModule,  # noqa: ARG002
        model: nn.Module,
        x: Tensor,
        y: Tensor,
    ) -> Mapping[str, float]:
        norms = norms_of(model)
        inputs = [inputs_of(model, part, norms) for part in self._batches(x)]
        orders = {
            each: [arranged(part.cpu(), each).to(x.device) for part in self._batches(y)]
            for each in self.arrangements
        }
        metrics = {}
        for arrangement, order in orders.items():
            for group in self.groups:
                by_layer = [
                    noise(
                        [self._by_sample(found[name])[at] for found, at in zip(inputs, order, strict=True)],
                        group,
                        layer.eps,
                    )
                    for name, layer in norms.items()
                ]
                for measure, values in zip(("mean", "var"), zip(*by_layer, strict=True), strict=True):
                    metrics[f"noise/{arrangement}/{measure}/{group}"] = median(values)
        return metrics

    def _batches(self, values: Tensor) -> Iterator[Tensor]:
        return (part for part in torch.split(values, self.batch) if len(part) == self.batch)

    def _by_sample(self, values: Tensor) -> Tensor:
        return values.double().reshape(self.batch, -1, values.shape[1])


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Returns the BatchNorm layers by their names, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def noise(batches: Iterable[Tensor], group: int, eps: float) -> tuple[float, float]:
    """Returns the noise of mean and variance of groups of `group` consecutive samples.

    batches: (N, L, C) float64 each: samples, values of a channel, channels; N is a multiple of `group`.
    """
    squares = [
        (((mean - whole_mean).square() / (whole_var + eps)), ((var - whole_var) / (whole_var + eps)).square())
        for batch in batches
        for whole_var, whole_mean in [torch.var_mean(batch, (0, 1), correction=0)]
        for var, mean in [torch.var_mean(torch.unflatten(batch, 0, (-1, group)), (1, 2), correction=0)]
    ]
    of_mean, of_var = (torch.stack(each).mean().sqrt().item() for each in zip(*squares, strict=True))
    return of_mean, of_var

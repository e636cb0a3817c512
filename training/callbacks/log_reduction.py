"""What modules log with `self.log`: means over the global batch, counted by samples, also across a break.

Lightning averages over ranks as if each had as many samples, lets the NaN of an empty share through, and
rounds the mean number of samples to a whole one. It also begins anew in the middle of an epoch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

_OF_NO_SAMPLES = {"mean": 0.0, "sum": 0.0, "max": -math.inf, "min": math.inf}
_MERGE = {"mean": sum, "sum": sum, "max": max, "min": min}


def log_global_means(module: LightningModule) -> None:
    """Makes `module.log` count by samples over all ranks, until `del module.log`.

    A number or tensor logged for a batch is taken for a mean over this rank's samples (or what `reduce_fx`
    says) and weighted by how many these are, none included. What is logged for each step is made global at
    once, by an all-reduce of two float64 numbers; what only counts for the epoch at the epoch's end. Metrics
    of torchmetrics and `rank_zero_only` mean what they always do; `sync_dist` makes no difference.
    """
    log = module.log
    signature = inspect.signature(log)

    def counted(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["sync_dist"] = not bound.arguments.get("rank_zero_only")
        if bound.arguments["sync_dist"] and not isinstance(bound.arguments["value"], Metric):
            _count(module, bound.arguments)
        log(*bound.args, **bound.kwargs)

    module.log = counted  # type: ignore[method-assign]


def _count(module: LightningModule, arguments: dict[str, Any]) -> None:
    """Puts what all ranks have logged, or this rank's samples, into the arguments of one call of `log`."""
    results: Any = module.trainer._results
    of_batch = results is not None and results.batch is not None
    size = arguments.get("batch_size")
    if size is None:
        size = extract_batch_size(results.batch) if of_batch else 1
    reduction = _name(arguments.get("reduce_fx", "mean"))
    # Not multiplied without samples: their mean is NaN.
    value = torch.as_tensor(arguments["value"] if size else _OF_NO_SAMPLES[reduction], device=module.device)
    if not arguments.get("enable_graph"):
        value = value.detach()
    count = torch.tensor(float(size), dtype=torch.float64, device=module.device)
    each_step = arguments.get("on_step")
    if each_step is None:
        each_step = of_batch and results.training
    if each_step and reduction == "mean":
        sums = torch.stack([value.double() * count, count])
        dist.all_reduce(sums)
        value, count = sums[0] / sums[1], sums[1]
        arguments["sync_dist"] = False
    arguments["value"] = value
    arguments["batch_size"] = count  # not a whole number: Lightning would round the mean over the ranks


def _name(reduction: Any) -> str:
    """Of what Lightning takes: "mean", torch.mean, and so on."""
    name = getattr(reduction, "__name__", str(reduction)).lower()
    name = {"avg": "mean", "amax": "max", "amin": "min"}.get(name, name)
    return name if name in _OF_NO_SAMPLES else "mean"  # Lightning is going to refuse it


@dataclass(frozen=True, kw_only=True)
class LoggedValue:
    """What one rank has gathered of one name since the epoch began. `shared`: every rank has the same."""

    reduction: str
    shared: bool
    value: Tensor
    samples: Tensor | None

    def onto(self, later: Any) -> None:
        """Adds what came before the break to what Lightning has gathered since."""
        before = self.value.to(later.value.device)
        if self.reduction in {"mean", "sum"}:
            later.value = later.value + before
        else:
            later.value = getattr(torch, f"{self.reduction}imum")(later.value, before)
        if self.samples is not None:
            later.cumulated_batch_size = later.cumulated_batch_size + self.samples.to(later.value.device)
        later._computed = None


def partial_means(trainer: Trainer) -> dict[str, LoggedValue]:
    """What this rank has gathered of the running epoch, by Lightning's key."""
    return {
        key: LoggedValue(
            reduction=_name(found.meta.reduce_fx),
            shared=not found.meta.sync.should,
            value=found.value.clone().cpu(),
            samples=found.cumulated_batch_size.clone().cpu() if found.meta.is_mean_reduction else None,
        )
        for key, found in _results(trainer).items()
        if found.is_tensor and found.meta.on_epoch and not found.has_reset
    }


def share_of(
    ranks: Sequence[Mapping[str, LoggedValue]], rank: int, world_size: int
) -> dict[str, LoggedValue]:
    """What `rank` of `world_size` goes on from: its own where there are as many ranks as before; otherwise
    rank 0 what all had, and the others what is the same everywhere.
    """
    if len(ranks) == world_size:
        return dict(ranks[rank])
    share = {}
    for key, first in ranks[0].items():
        if first.shared:
            share[key] = first
        elif rank == 0:
            share[key] = _merged([found[key] for found in ranks if key in found])
    return share


def _merged(parts: Sequence[LoggedValue]) -> LoggedValue:
    first = parts[0]
    samples = [part.samples for part in parts if part.samples is not None]
    return LoggedValue(
        reduction=first.reduction,
        shared=False,
        value=_MERGE[first.reduction](part.value for part in parts),  # type: ignore[operator]
        samples=sum(samples[1:], samples[0]) if samples else None,
    )


def go_on(trainer: Trainer, before: dict[str, LoggedValue]) -> None:
    """Adds what came before the break to what is logged again, and takes it from `before`."""
    results = _results(trainer)
    for key in before.keys() & results.keys():
        if not results[key].has_reset:
            before.pop(key).onto(results[key])


def _results(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop._results

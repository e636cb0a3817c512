"""Makes `self.log` of a module average over the samples of all ranks, also in an epoch that was resumed.

Lightning averages over ranks as if all had equally many samples, lets the NaN of an empty share through, and
rounds the mean number of samples to an integer. When a run resumes within an epoch, it forgets what was
logged before.
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
from torch import Tensor
from torchmetrics import Metric

from training.callbacks.share_counts import ShareCounts
from training.internals import forget_computed, logged_in_epoch, logged_in_stage

_NEUTRAL_VALUE = {"mean": 0.0, "sum": 0.0, "max": -math.inf, "min": math.inf}
_MERGE_FUNCTIONS = {"mean": sum, "sum": sum, "max": max, "min": min}


def log_global_means(module: LightningModule, share: ShareCounts) -> None:
    """Makes `module.log` weight values by samples over all ranks, until `del module.log`.

    A number or tensor logged for a batch counts as the mean over this rank's samples (or as `reduce_fx`
    says) and is weighted by their number, which may be 0. Values logged per step are reduced at once, by an
    all-reduce of two float64 numbers; values logged only per epoch are reduced at the end of the epoch.
    torchmetrics metrics and `rank_zero_only` work as usual; `sync_dist` has no effect.
    """
    log = module.log
    signature = inspect.signature(log)

    def counted(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["sync_dist"] = not bound.arguments.get("rank_zero_only")
        if bound.arguments["sync_dist"] and not isinstance(bound.arguments["value"], Metric):
            _weight_by_samples(module, bound.arguments, share.samples)
        log(*bound.args, **bound.kwargs)

    module.log = counted  # type: ignore[method-assign]


def _weight_by_samples(module: LightningModule, arguments: dict[str, Any], samples: int) -> None:
    """Replaces value and batch size in the arguments of a `log` call: weighted and, if per step, global.

    samples: how many of the running batch this rank has.
    """
    results: Any = logged_in_stage(module.trainer)
    in_batch = results is not None and results.batch is not None
    size = arguments.get("batch_size")
    if in_batch and (size is None or not samples):
        size = samples
    size = 1 if size is None else size
    reduction = _reduction_name(arguments.get("reduce_fx", "mean"))
    # Without samples the logged mean is NaN, and NaN times 0 would still be NaN.
    value = torch.as_tensor(arguments["value"] if size else _NEUTRAL_VALUE[reduction], device=module.device)
    if not arguments.get("enable_graph"):
        value = value.detach()
    count = torch.tensor(float(size), dtype=torch.float64, device=module.device)
    each_step = arguments.get("on_step")
    if each_step is None:
        each_step = in_batch and results.training
    if each_step and reduction == "mean":
        sums = torch.stack([value.double() * count, count])
        dist.all_reduce(sums)
        value, count = sums[0] / sums[1], sums[1]
        arguments["sync_dist"] = False
    arguments["value"] = value
    arguments["batch_size"] = count  # a float: Lightning would round an integer's mean over the ranks


def _reduction_name(reduction: Any) -> str:
    """Returns the name of a reduction in any form that Lightning accepts: "mean", torch.mean and so on."""
    name = getattr(reduction, "__name__", str(reduction)).lower()
    name = {"avg": "mean", "amax": "max", "amin": "min"}.get(name, name)
    return name if name in _NEUTRAL_VALUE else "mean"  # Lightning will reject any other


@dataclass(frozen=True, kw_only=True)
class LoggedValue:
    """The running reduction of one logged name on one rank since the start of the epoch.

    shared: every rank holds the same value. samples: their number so far; None if it is not a mean.
    """

    reduction: str
    shared: bool
    value: Tensor
    samples: Tensor | None

    def merge_into(self, later: Any) -> None:
        """Adds this value, from before the resume, to Lightning's own running result `later`."""
        earlier = self.value.to(later.value.device)
        if self.reduction in {"mean", "sum"}:
            later.value = later.value + earlier
        else:
            later.value = getattr(torch, f"{self.reduction}imum")(later.value, earlier)
        if self.samples is not None:
            later.cumulated_batch_size = later.cumulated_batch_size + self.samples.to(later.value.device)
        forget_computed(later)


def values_of_epoch(trainer: Trainer) -> dict[str, LoggedValue]:
    """Returns what this rank has logged in the current epoch so far, by Lightning's result key."""
    return {
        key: LoggedValue(
            reduction=_reduction_name(result.meta.reduce_fx),
            shared=not result.meta.sync.should,
            value=result.value.clone().cpu(),
            samples=result.cumulated_batch_size.clone().cpu() if result.meta.is_mean_reduction else None,
        )
        for key, result in logged_in_epoch(trainer).items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


def values_for_rank(
    ranks: Sequence[Mapping[str, LoggedValue]], rank: int, world_size: int
) -> dict[str, LoggedValue]:
    """Returns the values that `rank` of `world_size` resumes with, given the saved values of all ranks.

    With an unchanged world size, each rank gets its own. Otherwise rank 0 gets the values of all ranks
    merged, and the others get only the shared ones.
    """
    if len(ranks) == world_size:
        return dict(ranks[rank])
    share = {}
    for key, first in ranks[0].items():
        if first.shared:
            share[key] = first
        elif rank == 0:
            share[key] = _merge([logged[key] for logged in ranks if key in logged])
    return share


def _merge(parts: Sequence[LoggedValue]) -> LoggedValue:
    first = parts[0]
    samples = [part.samples for part in parts if part.samples is not None]
    return LoggedValue(
        reduction=first.reduction,
        shared=False,
        value=_MERGE_FUNCTIONS[first.reduction](part.value for part in parts),  # type: ignore[operator]
        samples=sum(samples[1:], samples[0]) if samples else None,
    )


def merge_resumed(trainer: Trainer, before: dict[str, LoggedValue]) -> None:
    """Moves the values in `before` into Lightning's results, each once its name has been logged again."""
    results = logged_in_epoch(trainer)
    for key in before.keys() & results.keys():
        if not results[key].has_reset:
            before.pop(key).merge_into(results[key])

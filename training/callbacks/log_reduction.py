"""What a module has logged in an epoch so far, which Lightning forgets when a run resumes within it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from training import internals, metric_internals

NEUTRAL_VALUE = {"mean": 0.0, "sum": 0.0, "max": -math.inf, "min": math.inf}
_MERGE_FUNCTIONS = {"mean": sum, "sum": sum, "max": max, "min": min}


def reduction_name(reduction: Any) -> str:
    """Returns the name of a reduction in any form that Lightning accepts: "mean", torch.mean and so on."""
    name = getattr(reduction, "__name__", str(reduction)).lower()
    name = {"avg": "mean", "amax": "max", "amin": "min"}.get(name, name)
    return name if name in NEUTRAL_VALUE else "mean"  # Lightning will reject any other


@dataclass(frozen=True, kw_only=True)
class LoggedValue:
    """The running reduction of one logged name on one rank since the start of the epoch.

    shared: every rank holds the same value, as in checkpoints of earlier versions. value: None for a Metric,
    which is saved with the module. samples: their number so far; None if it is not a mean. last: what was
    logged in the last step that logged it. arguments: to log it again; None in earlier versions.
    """

    reduction: str
    shared: bool
    value: Tensor | None
    samples: Tensor | None
    last: Tensor | None = None
    arguments: dict[str, Any] | None = None

    def merge_into(self, later: Any) -> None:
        """Adds this value, from before the resume, to Lightning's own running result `later`."""
        if self.value is None:
            return
        earlier = self.value.to(later.value.device)
        if self.reduction in {"mean", "sum"}:
            later.value = later.value + earlier
        else:
            later.value = getattr(torch, f"{self.reduction}imum")(later.value, earlier)
        if self.samples is not None:
            later.cumulated_batch_size = later.cumulated_batch_size + self.samples.to(later.value.device)
        metric_internals.forget_computed(later)


def values_of_epoch(trainer: Trainer) -> dict[str, LoggedValue]:
    """Returns what this rank has logged in the current epoch so far, by Lightning's result key."""
    results = internals.logged_in_epoch(trainer)
    return {key: _value_of(result) for key, result in results.items() if not result.has_reset}


def _value_of(result: Any) -> LoggedValue:
    reduction = reduction_name(result.meta.reduce_fx)
    last = internals.step_value(result) if result.is_tensor and result.meta.on_step else None
    counted = result.is_tensor and result.meta.on_epoch
    return LoggedValue(
        reduction=reduction,
        shared=False,
        value=result.value.clone().cpu() if counted else None,
        samples=result.cumulated_batch_size.clone().cpu() if counted and reduction == "mean" else None,
        last=None if last is None else last.detach().clone().cpu(),
        arguments=internals.arguments_of(result) | {"reduce_fx": reduction},
    )


def values_for_rank(
    ranks: Sequence[Mapping[str, LoggedValue]], rank: int, world_size: int
) -> dict[str, LoggedValue]:
    """Returns the values that `rank` of `world_size` resumes with, given the saved values of all ranks.

    With an unchanged world size, each rank gets its own, but only rank 0 those that are shared. Otherwise
    rank 0 gets the values of all ranks merged, and the others get none.
    """
    if len(ranks) == world_size:
        return {key: value for key, value in ranks[rank].items() if rank == 0 or not value.shared}
    if rank != 0:
        return {}
    by_key: dict[str, list[LoggedValue]] = {}
    for logged in ranks:
        for key, value in logged.items():
            by_key.setdefault(key, []).append(value)
    return {key: values[0] if values[0].shared else _merge(values) for key, values in by_key.items()}


def _merge(parts: Sequence[LoggedValue]) -> LoggedValue:
    samples = [part.samples for part in parts if part.samples is not None]
    values = [part.value for part in parts if part.value is not None]
    return replace(
        parts[0],
        value=_MERGE_FUNCTIONS[parts[0].reduction](values) if values else None,  # type: ignore[operator]
        samples=sum(samples[1:], samples[0]) if samples else None,
    )

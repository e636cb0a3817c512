"""Makes `self.log` of a module average over the samples of all ranks, whichever of them call it.

Lightning averages over ranks as if all had equally many samples, and communicates in every call that has
`sync_dist`, so a call that one rank alone makes hangs. Here a call only keeps this rank's value. The ranks
agree on what was logged, and reduce it, when Lightning is about to read it: after a batch what was logged
`on_step`, and at the end of an epoch what was logged `on_epoch`.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torchmetrics import Metric

from training import internals, metric_internals
from training.callbacks.log_reduction import NEUTRAL_VALUE, LoggedValue, reduction_name, values_for_rank
from training.callbacks.share_counts import ShareCounts
from training.callbacks.step_metrics import StepMetrics
from training.errors import StepError

log = logging.getLogger(__name__)


class LogSync(Callback):
    """Replaces `module.log` until `detach`. Precedes the user's callbacks, which read what was logged.

    A number or tensor logged for a batch counts as the mean over this rank's samples (or as `reduce_fx`
    says) and is weighted by their number, which may be 0. Metrics of torchmetrics are synchronized by their
    own `compute`, in the same order on all ranks. `rank_zero_only` works as usual; `sync_dist` has no effect.

    steps: whether the module may log values `on_step`. Raises StepError if it does so in a validation or test
    for the first time after the first batch of a loader.
    """

    def __init__(self, module: LightningModule, share: ShareCounts, *, steps: bool) -> None:
        self._module, self._share, self._steps = module, share, steps
        self._log = module.log
        self._signature = inspect.signature(self._log)
        self._metrics = StepMetrics()
        self._outside_batch: set[str] = set()
        self._told_of: set[str] = set()
        self._calls: dict[str, dict[str, Any]] = {}  # arguments by key, so that other ranks can log it, too
        self._of_batch: dict[str, tuple[Tensor, float]] = {}  # value and number of samples
        self._reduced: dict[str, Tensor] = {}
        self._evaluates_steps = self._may_log_late = self._begins_loader = False
        self.resumed: dict[str, LoggedValue] = {}
        """What was logged in the epoch before the run was resumed, to be merged after its first batch."""

    def attach(self, trainer: Trainer) -> None:
        self._trainer = trainer
        epoch_end = self._module.on_train_epoch_end

        # Functions, not bound methods: a copy of the module (for averaged weights) would copy their objects.
        def log(*args: Any, **kwargs: Any) -> None:
            self._keep(*args, **kwargs)

        def on_train_epoch_end() -> None:
            epoch_end()
            self.before_epoch_is_read()  # callbacks that monitor a metric come next

        self._module.log = log  # type: ignore[method-assign]
        self._module.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]
        internals.before_logged_is_read(trainer, self.before_batch_is_read, self.before_epoch_is_read)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        own = all(type(callback).__module__.startswith("training.") for callback in callbacks)
        self._metrics.watch(module)
        self._may_log_late = not own or is_overridden("on_train_batch_end", module)

    def on_train_batch_end(self, *_: Any) -> None:
        self._reduce_batch()

    def on_validation_batch_start(
        self, _trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._begins_loader = batch_idx == 0

    def on_test_batch_start(
        self, _trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._begins_loader = batch_idx == 0

    def detach(self) -> None:
        del self._module.log, self._module.on_train_epoch_end

    def of_this_rank(self, ranks: Sequence[Mapping[str, LoggedValue]]) -> dict[str, LoggedValue]:
        """Returns what this rank resumes with, given what each rank had logged in the epoch."""
        return values_for_rank(ranks, self._trainer.global_rank, self._trainer.world_size)

    def _keep(self, *args: Any, **kwargs: Any) -> None:
        bound = self._signature.bind(*args, **kwargs)
        arguments = bound.arguments
        arguments["sync_dist"] = False
        value, results = arguments["value"], internals.logged_in_stage(self._trainer)
        if results is None or arguments.get("rank_zero_only"):
            self._log(*bound.args, **bound.kwargs)
            return
        size = math.nan if isinstance(value, Metric) else self._weigh(arguments, results)
        self._log(*bound.args, **bound.kwargs)
        with_index = arguments.get("add_dataloader_idx", True)
        key = internals.logged_as(self._module, results, arguments["name"], add_dataloader_idx=with_index)
        result = results[key]
        if key not in self._calls:
            self._calls[key] = internals.arguments_of(result)
        if results.batch is None and result.is_tensor:
            self._outside_batch.add(key)
        if result.meta.on_step and (result.is_tensor or self._metrics.was_called(result.value)):
            self._of_batch[key] = (internals.step_value(result), size)

    def _weigh(self, arguments: dict[str, Any], results: Any) -> float:
        """Replaces value and batch size; returns the number of samples. An empty share has a NaN mean."""
        samples, size = self._share.samples, arguments.get("batch_size")
        if results.batch is not None and (size is None or not samples):
            size = samples
        size = 1 if size is None else size
        if not size:
            reduction = reduction_name(arguments.get("reduce_fx", "mean"))
            arguments["value"] = torch.tensor(NEUTRAL_VALUE[reduction], dtype=torch.float64)
        arguments["batch_size"] = torch.tensor(float(size), dtype=torch.float64, device=self._module.device)
        return float(size)

    def before_batch_is_read(self) -> None:
        """Reduces what was logged `on_step` in this batch. Collective."""
        if self._may_log_late or not self._trainer.training:
            self._reduce_batch()
        if self.resumed and self._trainer.training:
            self._merge_resumed()

    def _reduce_batch(self) -> None:
        of_batch, self._of_batch = self._of_batch, {}
        if not self._steps:
            return
        evaluates = not self._trainer.training
        if evaluates and not self._evaluates_steps and not self._begins_loader:
            if of_batch:
                self._refuse_late(next(iter(of_batch)))
            return
        results = internals.logged_in_stage(self._trainer)
        keys = self._agreed(list(of_batch), results)
        if evaluates:
            self._evaluates_steps = bool(keys)
        for metric in [results[key] for key in keys if not results[key].is_tensor]:
            internals.set_step_value(metric, self._metrics.value(metric.value))
        self._metrics.forget()
        keys = [key for key in keys if results[key].is_tensor]
        values = self._reduce(
            [
                _Part(reduction_name(results[key].meta.reduce_fx), *of_batch.get(key, (None, 0.0)))
                for key in keys
            ]
        )
        for key, (value, count) in zip(keys, values, strict=True):
            internals.set_step_value(results[key], value if count is None else value / count)

    def _refuse_late(self, key: str) -> None:
        call = self._calls[key]
        raise StepError(
            f"{call['fx']} logged {call['name']!r} on_step on rank {self._trainer.global_rank}, after a "
            "first batch in which nothing was logged on_step; log it on_step in every batch, or with "
            "on_step=False"
        )

    def before_epoch_is_read(self) -> None:
        """Reduces what was logged `on_epoch` since the last call. Collective."""
        results = internals.logged_in_stage(self._trainer)
        if results is None:
            return
        new = [
            key
            for key, result in results.valid_items()
            if result.meta.on_epoch and key in self._calls and not self._is_reduced(key, result)
        ]
        keys = self._agreed(new, results)
        _reorder(results, keys)
        self._compare([key for key in keys if key in self._outside_batch], results)
        for key, (value, count) in zip(
            (tensors := [key for key in keys if results[key].is_tensor]),
            self._reduce([_epoch_part(results[key]) for key in tensors]),
            strict=True,
        ):
            result = results[key]
            result.value = self._reduced[key] = value
            if count is not None:
                result.cumulated_batch_size = count
            metric_internals.forget_computed(result)

    def _compare(self, keys: Sequence[str], results: Any) -> None:
        """Warns once about each value outside a batch that differs between the ranks: it is of a share."""
        if not keys or dist.get_world_size() == 1:
            return
        parts = [_epoch_part(results[key]) for key in keys]
        nothing = torch.tensor(-math.inf, dtype=torch.float64, device=self._module.device)
        extremes = torch.stack(
            [
                nothing if part.reduction == "mean" and not part.count else part.signed(sign)
                for sign in (1.0, -1.0)
                for part in parts
            ]
        )
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        greatest, least = extremes.chunk(2)
        for key, same in zip(keys, torch.isclose(greatest, -least, rtol=1e-5).tolist(), strict=True):
            if not same and key not in self._told_of and self._trainer.is_global_zero:
                call = self._calls[key]
                log.warning(
                    "%s logged %r with another value on each worker, which sees its share of the data; "
                    "their mean is logged. Log in the step, or log a metric of torchmetrics, for the value "
                    "over all data",
                    *(call["fx"], call["name"]),
                )
                self._told_of.add(key)

    def _is_reduced(self, key: str, result: Any) -> bool:
        if result.is_tensor:
            return self._reduced.get(key) is result.value
        return internals.is_computed(result)

    def _merge_resumed(self) -> None:
        """Adds to Lightning's results what they held before the run was resumed.

        After the first batch, because Lightning resets them in it.
        """
        results = internals.logged_in_stage(self._trainer)
        for key, value in self.resumed.items():
            logged_again = key in results and not results[key].has_reset
            if not logged_again and value.arguments is not None:
                if not value.arguments["rank_zero_only"]:
                    self._calls[key] = value.arguments
                self._log_nothing(value.arguments)
                if value.last is not None:
                    internals.set_step_value(results[key], value.last.to(self._module.device))
            if key in results:
                value.merge_into(results[key])
        self.resumed = {}

    def _agreed(self, own: list[str], results: Any) -> list[str]:
        """Returns the keys that any rank has, in one order; makes the calls that this rank has not made."""
        digest = hashlib.blake2b("\n".join(own).encode(), digest_size=7).digest()
        number = int.from_bytes(digest) if own else 0
        ends = int(self._trainer.should_stop)
        extremes = torch.tensor([number, -number, ends], dtype=torch.int64, device=self._module.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        greatest, least, ends = extremes.tolist()
        self._trainer.should_stop |= bool(ends)  # which user code may have set on one rank alone
        if greatest == -least:
            return own
        ranks: list[dict[str, dict[str, Any]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(ranks, {key: self._calls[key] for key in own})
        union = {key: call for calls in ranks for key, call in calls.items()}
        for key, call in union.items():
            self._calls.setdefault(key, call)
            if key not in results or results[key].has_reset:
                self._log_nothing(call)
        return list(union)

    def _log_nothing(self, call: dict[str, Any]) -> None:
        """Logs what another rank has logged, with a value that does not count."""
        zero = torch.zeros((), dtype=torch.float64, device=self._module.device)
        if call["metric_attribute"] is not None:
            value: Any = self._module.get_submodule(call["metric_attribute"])
        else:
            value = zero + NEUTRAL_VALUE[reduction_name(call["reduce_fx"])]
        internals.log_again(self._trainer, value, zero, call)

    def _reduce(self, parts: Sequence[_Part]) -> list[tuple[Tensor, Tensor | None]]:
        """Returns each value reduced over the ranks; for a mean the sum and the number of samples."""
        if not parts:
            return []
        zero = torch.zeros((), dtype=torch.float64, device=self._module.device)
        sums = torch.stack([zero + number for part in parts for number in (part.sum(zero), part.count)])
        dist.all_reduce(sums)
        if any(part.sign for part in parts):
            extremes = torch.stack([part.extreme(zero) for part in parts])
            dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return [
            (extremes[index] * part.sign, None)
            if part.sign
            else (sums[2 * index], sums[2 * index + 1] if part.reduction == "mean" else None)
            for index, part in enumerate(parts)
        ]


@dataclass(frozen=True)
class _Part:
    """What one rank adds to a reduction.

    value: None adds nothing. count: the number of samples. summed: whether a mean is already a sum.
    """

    reduction: str
    value: Tensor | None
    count: Tensor | float
    summed: bool = False

    @property
    def sign(self) -> float:
        """1 if the greatest value is wanted, -1 if the least is, 0 for sums and means."""
        return {"max": 1.0, "min": -1.0}.get(self.reduction, 0.0)

    def signed(self, sign: float) -> Tensor:
        assert self.value is not None
        return self.value.detach().double().reshape(()).nan_to_num(nan=1e300) * sign

    def sum(self, zero: Tensor) -> Tensor:
        if self.value is None or self.sign:
            return zero
        value = self.value.detach().to(zero).reshape(())
        return value * self.count if self.reduction == "mean" and not self.summed else value

    def extreme(self, zero: Tensor) -> Tensor:
        if self.value is None or not self.sign:
            return zero - math.inf
        return self.value.detach().to(zero).reshape(()) * self.sign


def _epoch_part(result: Any) -> _Part:
    count = result.cumulated_batch_size if result.meta.is_mean_reduction else 0.0
    return _Part(reduction_name(result.meta.reduce_fx), result.value, count, summed=True)


def _reorder(results: Any, keys: Sequence[str]) -> None:
    """Moves the keys to the end, in this order, in which metrics will communicate."""
    for key in keys:
        results[key] = results.pop(key)

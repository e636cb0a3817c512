"""`self.log` of a module whose steps run once for each shard: one value for all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from training import internals
from training.bits.exchange import Exchange
from training.callbacks.log_reduction import LoggedValue, reduction_name
from training.callbacks.log_sync import LogSync
from training.callbacks.share_counts import ShareCounts
from training.errors import StepError

Call = tuple[float, float, Any]  # value, number of samples, bound arguments


class ShardLogs(LogSync):
    """Keeps what a step logs in the thread of each shard, and logs it once for all when they have ended.

    So every rank logs the same numbers, and Lightning's own means over an epoch need no communication. A mean
    is weighted by the samples of the shards and added in their order.
    """

    def __init__(
        self,
        module: LightningModule,
        share: ShareCounts,
        exchange: Exchange,
        running: Callable[[], int | None],
    ) -> None:
        super().__init__(module, share, steps=True)
        self._exchange, self._running = exchange, running
        self._own: list[dict[str, Call]] = [{} for _ in exchange.own]

    def _keep(self, *args: Any, **kwargs: Any) -> None:
        bound = self._signature.bind(*args, **kwargs)
        arguments = bound.arguments
        arguments["sync_dist"] = False
        shard, value = self._running(), arguments["value"]
        if isinstance(value, Metric):
            self._log_metric(bound, shard)
        elif shard is None:
            self._log_now(bound)
        else:
            size = self._weigh(arguments, internals.logged_in_stage(self._trainer))
            if arguments["name"] in self._own[shard]:
                raise StepError(
                    f"a step logs {arguments['name']!r} twice, which training.reproducible: bits does not "
                    "add up; log their mean or sum once, or two names"
                )
            self._own[shard][arguments["name"]] = (_number(arguments["value"]), size, bound)

    def _log_metric(self, bound: Any, shard: int | None) -> None:
        on_step = bound.arguments.get("on_step")
        if on_step or (on_step is None and self._trainer.training and shard is not None):
            raise StepError(
                f"{bound.arguments['name']!r} is a metric that is logged on_step, which "
                "training.reproducible: bits does not reduce; log it with on_step=False, on_epoch=True"
            )
        bound.arguments.setdefault("batch_size", 1)
        self._log_now(bound)

    def _log_now(self, bound: Any) -> None:
        self._log(*bound.args, **bound.kwargs)
        results = internals.logged_in_stage(self._trainer)
        if results is None:
            return
        name, with_index = bound.arguments["name"], bound.arguments.get("add_dataloader_idx", True)
        key = internals.logged_as(self._module, results, name, add_dataloader_idx=with_index)
        if key not in self._calls and key in results:
            self._calls[key] = internals.arguments_of(results[key])

    def digests(self) -> list[int]:
        """Returns a number for the names that each shard of this rank has logged in this step; 0 for none."""
        return [zlib.crc32("\n".join(calls).encode()) for calls in self._own]

    def log_step(self, *, same: bool) -> None:
        """Logs what the shards have logged in this step. Collective. same: whether all have equal names."""
        own, self._own = self._own, [{} for _ in self._exchange.own]
        names = list(own[0])
        if not same:
            shards: list[Any] = self._exchange.objects([list(calls) for calls in own])
            names = list(dict.fromkeys(name for shard in shards for name in shard))
        numbers = torch.tensor(
            [[number for name in names for number in _numbers(calls.get(name))] for calls in own],
            dtype=torch.float64,
        )
        table = self._exchange.rows(numbers)
        bounds = {name: calls[name][2] for calls in reversed(own) for name in calls}
        if missing := [name for name in names if name not in bounds]:
            raise StepError(
                f"only some shards of a batch log {', '.join(map(repr, missing))}; log it for every shard, "
                "with batch_size=0 where it has nothing to add"
            )
        for index, name in enumerate(names):
            values, counts, present = table[:, 3 * index : 3 * index + 3].unbind(1)
            self._log_for_all(bounds[name], values, counts, present.bool())

    def _log_for_all(self, bound: Any, values: Tensor, counts: Tensor, present: Tensor) -> None:
        arguments = bound.arguments
        reduction = reduction_name(arguments.get("reduce_fx", "mean"))
        size = float(counts.sum())
        if reduction == "mean":
            total = torch.zeros((), dtype=torch.float64)
            for value, count in zip(values, counts, strict=True):
                if count:
                    total += value * count
            value = total / size if size else torch.tensor(torch.nan, dtype=torch.float64)
        elif reduction == "sum":
            value = sum(values[present], torch.zeros((), dtype=torch.float64))
        else:
            value = getattr(values[present], reduction)()
        arguments["value"] = value.to(self._module.device)
        arguments["batch_size"] = torch.tensor(size or 1.0, dtype=torch.float64, device=self._module.device)
        self._log_now(bound)

    def _reduce_batch(self) -> None:
        """Nothing: every rank has logged the same."""

    def before_epoch_is_read(self) -> None:
        """Checks that every rank has logged the same. Collective."""
        results = internals.logged_in_stage(self._trainer)
        if results is None or self._exchange.world_size == 1:
            return
        own = {
            key: float(result.value)
            for key, result in results.valid_items()
            if result.is_tensor and result.meta.on_epoch and not result.meta.sync.rank_zero_only
        }
        ranks: list[dict[str, float]] = self._exchange.of_ranks(own)
        for key, value in own.items():
            if any(str(rank.get(key)) != str(value) for rank in ranks):
                raise StepError(
                    f"{key} has another value on each worker, which sees its shards of the data; log it in a "
                    "step, or log a metric of torchmetrics, for the value over all data"
                )

    def of_this_rank(self, ranks: Sequence[Mapping[str, LoggedValue]]) -> dict[str, LoggedValue]:
        """Returns what this rank resumes with: every rank had logged the same."""
        return dict(ranks[0])


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _numbers(call: Call | None) -> tuple[float, float, float]:
    return (0.0, 0.0, 0.0) if call is None else (call[0], call[1], 1.0)

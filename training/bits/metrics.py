"""The states of torchmetrics metrics, for each shard; reduced in the order of the shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchmetrics import Metric

from training import metric_internals
from training.bits.exchange import Exchange
from training.errors import StepError


class ShardMetrics:
    """The states of a module's metrics, for each shard of this rank; synchronized in the order of shards."""

    def __init__(self, module: nn.Module, exchange: Exchange) -> None:
        self._module, self._exchange = module, exchange
        self._metrics: dict[int, Metric] = {}
        self._methods: dict[int, dict[str, Any]] = {}
        self._states: list[dict[int, tuple[dict[str, Any], int]]] = [{} for _ in exchange.own]
        self._entered: int | None = None
        self.ignores = False
        """Whether updates do nothing: the running shard has no samples."""

    def find(self) -> None:
        """Takes over the metrics that the module has got since it was last asked."""
        for metric in self._module.modules():
            if isinstance(metric, Metric) and id(metric) not in self._metrics:
                self._metrics[id(metric)] = metric
                self._take_over(metric)

    def _take_over(self, metric: Metric) -> None:
        reset: Callable[[], None] = metric.reset
        update: Callable[..., None] = metric.update
        dtype = metric.dtype

        def update_with_samples(*args: Any, **kwargs: Any) -> None:
            # In double precision the first shard that logs a metric would change the dtype of its inputs.
            metric_internals.set_input_dtype(metric, dtype)
            if self._entered is None or not self.ignores:
                update(*args, **kwargs)

        self._methods[id(metric)] = metric_internals.own_metric_methods(metric)

        def reset_all() -> None:
            reset()
            if self._entered is None:
                for states in self._states:
                    states.pop(id(metric), None)

        metric.reset = reset_all  # type: ignore[method-assign]
        metric.update = update_with_samples  # type: ignore[method-assign]
        metric_internals.synchronize_by(metric, self._over_shards)

    def detach(self) -> None:
        """Gives the metrics their own methods back."""
        for metric in self._metrics.values():
            metric_internals.restore_metric_methods(metric, self._methods.pop(id(metric)))
        self._metrics.clear()

    def _over_shards(self, metric: Metric) -> dict[str, list[Any]]:
        """Returns the states of all shards, by name. Collective."""
        if self._entered is not None:
            raise StepError(
                f"a step computes the metric {type(metric).__name__} over all workers, but "
                "training.reproducible: bits runs it once for each of several shards; log the metric "
                "(on_epoch=True), or compute it in a hook of the epoch"
            )
        own = [states.get(id(metric), ({}, 0))[0] for states in self._states]
        shards: list[Any] = self._exchange.objects(
            [metric_internals.metric_state_to_send(state) for state in own]
        )
        defaults = metric_internals.default_state(metric)
        return {
            name: [
                metric_internals.metric_state_received(shard[name], metric.device) if shard else default
                for shard in shards
            ]
            for name, default in defaults.items()
        }

    def enter(self, shard: int) -> None:
        """Puts the states of a shard of this rank in place."""
        if self._entered == shard:
            return
        self._keep()
        self._entered = shard
        states = self._states[shard]
        for key, metric in self._metrics.items():
            if key not in states:
                states[key] = metric_internals.default_state(metric), 0
            metric_internals.hold_state(metric, *states[key])

    def leave(self) -> None:
        """Puts empty states in place, outside of a step; their count of updates is that of the shards."""
        self._keep()
        self._entered = None
        for key, metric in self._metrics.items():
            updates = max((states[key][1] for states in self._states if key in states), default=0)
            metric_internals.hold_state(metric, metric_internals.default_state(metric), updates)

    def _keep(self) -> None:
        if self._entered is None:
            return
        states = self._states[self._entered]
        for key, metric in self._metrics.items():
            states[key] = metric_internals.held_state(metric)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Returns the states of this rank's shards by the number of the shard."""
        names = {id(part): name for name, part in self._module.named_modules()}
        return {
            number: {
                names[key]: {"state": metric_internals.metric_state_to_send(state), "updates": updates}
                for key, (state, updates) in states.items()
                if key in names and updates
            }
            for number, states in zip(self._exchange.own, self._states, strict=True)
        }

    def load_state_dict(self, shards: dict[int, dict[str, Any]]) -> None:
        """Takes the states of this rank's shards from those of all."""
        self.find()
        modules = dict(self._module.named_modules())
        for number, states in zip(self._exchange.own, self._states, strict=True):
            states.clear()
            for name, saved in shards.get(number, {}).items():
                metric = modules.get(name)
                if isinstance(metric, Metric):
                    state = {
                        key: metric_internals.metric_state_received(value, metric.device)
                        for key, value in saved["state"].items()
                    }
                    states[id(metric)] = state, saved["updates"]
        self.leave()

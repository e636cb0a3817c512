"""The value of a torchmetrics metric in one step, over the global batch.

`metric(...)` returns the value of a batch, which Lightning logs on_step. Each rank has the value of its
share, and the values of a metric that is not a mean, such as F1, cannot be averaged over ranks. The states
from which a value was computed are kept here until the step is logged, and reduced over the ranks as those of
an epoch are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchmetrics import Metric

from training import metric_internals


class StepMetrics:
    """The metrics of a module that were called in the running batch."""

    def __init__(self) -> None:
        self._watched: set[int] = set()
        self._states: dict[int, dict[str, Any]] = {}

    def watch(self, module: nn.Module) -> None:
        """Keeps the states of every metric of the module that is called from now on."""
        for metric in module.modules():
            if isinstance(metric, Metric) and id(metric) not in self._watched:
                self._watched.add(id(metric))
                metric.compute = self._keeping(metric, metric.compute)  # type: ignore[method-assign]

    def was_called(self, metric: Metric) -> bool:
        return id(metric) in self._states

    def value(self, metric: Metric) -> Any:
        """Returns the value over all ranks; one that has not called the metric adds nothing. Collective."""
        before = metric_internals.metric_state(metric)
        try:
            metric_internals.set_metric_state(metric, self._states.get(id(metric)))
            return metric.compute()
        finally:
            metric_internals.restore_metric_state(metric, before)

    def forget(self) -> None:
        """Forgets the states: the batch has been logged."""
        self._states.clear()

    def _keeping(self, metric: Metric, compute: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if metric_internals.computes_batch(metric):
                self._states[id(metric)] = dict(metric.metric_state)
            return compute(*args, **kwargs)

        return call

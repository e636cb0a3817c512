"""Private parts of torchmetrics that the training needs, all used here: see `training.internals`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchmetrics import Metric


def reductions(metric: Metric) -> dict[str, Any]:
    """Returns the reduction over ranks of each state of a metric, by the state's name."""
    return metric._reductions


def update_count(metric: Metric) -> int:
    """Returns how often a metric was updated since its reset."""
    return metric._update_count


def set_update_count(metric: Metric, updates: int) -> None:
    metric._update_count = updates


def metric_state(metric: Metric) -> tuple[dict[str, Any], int]:
    """Returns copies of a metric's states, and how often it was updated."""
    states = {name: getattr(metric, name) for name in metric._defaults}
    copies = {
        name: list(value) if isinstance(value, list) else value.clone() for name, value in states.items()
    }
    return copies, metric._update_count


def set_metric_state(metric: Metric, state: dict[str, Any] | None) -> None:
    """Replaces a metric's states; None: those of a metric that was never updated."""
    for name, default in metric._defaults.items():
        initial: Any = [] if isinstance(default, list) else default.clone().to(metric.device)
        setattr(metric, name, initial if state is None else state[name])
    metric._update_count, metric._computed = 1, None


def computes_batch(metric: Metric) -> bool:
    """Returns whether a `compute` that runs now is that of one batch, within the metric's `forward`."""
    return not metric._to_sync


def restore_metric_state(metric: Metric, state: tuple[dict[str, Any], int]) -> None:
    """Puts back what `metric_state` returned."""
    copies, updates = state
    for name, value in copies.items():
        setattr(metric, name, value)
    metric._update_count, metric._computed = updates, None


def set_input_dtype(metric: Metric, dtype: torch.dtype) -> None:
    """Sets the dtype to which a metric converts what it is given; its states stay as they are."""
    metric._dtype = dtype


def forget_computed(metric: Metric) -> None:
    """Makes a metric compute its value anew: its states have changed other than by an update."""
    metric._computed = None


def default_state(metric: Metric) -> dict[str, Any]:
    """Returns the states of a metric that was never updated."""
    return {
        name: [] if isinstance(value, list) else value.clone().to(metric.device)
        for name, value in metric._defaults.items()
    }


def held_state(metric: Metric) -> tuple[dict[str, Any], int]:
    """Returns a metric's states themselves, not copies, and how often it was updated."""
    own = vars(metric)
    return {name: own[name] for name in metric._defaults}, metric._update_count


def hold_state(metric: Metric, states: dict[str, Any], updates: int) -> None:
    """Gives a metric these states themselves. Without `setattr`, whose checks take long."""
    own = vars(metric)
    own.update(states)
    own["_update_count"], own["_computed"] = updates, None


def metric_state_to_send(state: dict[str, Any]) -> dict[str, Any]:
    """Returns states on the CPU; one that is to be concatenated as a list of tensors."""
    return {
        name: [item.cpu() for item in value] if isinstance(value, list) else value.cpu()
        for name, value in state.items()
    }


def metric_state_received(value: Any, device: torch.device) -> Any:
    """Does the opposite for one state."""
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)


def synchronize_by(metric: Metric, states: Callable[[Metric], dict[str, list[Any]]]) -> None:
    """Makes a metric reduce the states that `states(metric)` returns, by name and in their order."""

    def sync(*_: Any, **__: Any) -> None:
        for name, parts in states(metric).items():
            reduction: Any = metric._reductions[name]
            if isinstance(parts[0], list):
                flat = [item for part in parts for item in part]
                setattr(metric, name, reduction(flat) if callable(reduction) and flat else flat)
            else:
                stacked = torch.stack(parts)
                setattr(metric, name, reduction(stacked) if callable(reduction) else stacked)

    any_metric: Any = metric
    any_metric._sync_dist = sync


_REPLACED = ("reset", "update", "_sync_dist")


def own_metric_methods(metric: Metric) -> dict[str, Any]:
    """Returns the methods of a metric that `restore_metric_methods` puts back."""
    return {name: vars(metric)[name] for name in _REPLACED if name in vars(metric)}


def restore_metric_methods(metric: Metric, methods: dict[str, Any]) -> None:
    for name in _REPLACED:
        vars(metric).pop(name, None)
    vars(metric).update(methods)

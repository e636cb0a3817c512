"""What a training carries from step to step beside its weights: random generators and half-counted metrics.

Random generators are each rank's own. They are restored if the number of ranks is the same, and seeded anew
from (seed, step, rank) otherwise. Metrics of the running epoch are saved as their sums over all ranks and
restored on rank 0 alone, so any number of ranks may go on. What else a module has logged in the epoch is
saved by rank (`log_reduction`).

The file holds tensors, numbers, strings, lists and dicts alone, and no class: it loads with
`weights_only=True`, and these modules may change.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from numpy._core.multiarray import _reconstruct
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum

from training.callbacks.log_reduction import LoggedValue, partial_means, share_of

FILE, EARLIER_FILE = "train_state.pt", "carried.pt"
SHARED_BY_ALL = (dim_zero_max, dim_zero_min, dim_zero_mean)
"""Reductions that give the same whether one rank has the value or all have it: all get it."""
GIVEN_TO_ONE = (dim_zero_sum, dim_zero_cat)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Of all ranks. generators, logged: one for each rank; metrics: states by their names in the module."""

    seed: int
    step: int
    generators: list[dict[str, Any]]
    logged: list[dict[str, LoggedValue]]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Puts everything back except what `logged_by` returns. Every rank calls it."""
        for name, metric in _metrics(module).items():
            if name in self.metrics:
                _restore(metric, self.metrics[name])
        if len(self.generators) == trainer.world_size:
            _set_generators(self.generators[trainer.global_rank])
        else:
            _seed_generators(self.seed, self.step, trainer.global_rank)

    def logged_by(self, trainer: Trainer) -> dict[str, LoggedValue]:
        """What this rank goes on from (`log_reduction.go_on`)."""
        return share_of(self.logged, trainer.global_rank, trainer.world_size)

    def save(self, folder: Path) -> None:
        torch.save(asdict(self), folder / FILE)


def gather(trainer: Trainer, module: LightningModule, *, seed: int) -> TrainState | None:
    """The state now. Collective: every rank calls it, rank 0 gets it, the others get None."""
    own: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(own, (_generators(), partial_means(trainer)))
    metrics = _metrics(module)
    # Whether a metric was updated, ranks may see differently; whether to sync it, they must agree on.
    updates = torch.tensor([metric._update_count for metric in metrics.values()], device=module.device)
    dist.all_reduce(updates)
    states = {
        name: {"state": _synced(metric), "updates": count}
        for (name, metric), count in zip(metrics.items(), updates.tolist(), strict=True)
        if count
    }
    if not trainer.is_global_zero:
        return None
    generators, logged = (list(parts) for parts in zip(*own, strict=True))
    return TrainState(
        seed=seed, step=trainer.global_step, generators=generators, logged=logged, metrics=states
    )


def load(folder: Path) -> TrainState:
    """That of a checkpoint."""
    if not (folder / FILE).exists():
        return _load_earlier(folder / EARLIER_FILE)
    found = torch.load(folder / FILE, weights_only=True)
    logged = [{name: LoggedValue(**value) for name, value in rank.items()} for rank in found["logged"]]
    return TrainState(**{**found, "logged": logged})


def _load_earlier(path: Path) -> TrainState:
    """Version 0.1 pickled two classes and the arrays of NumPy's generator. Only their attributes are read."""
    arrays: list[Any] = [_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    classes = [(SimpleNamespace, name) for name in ("training.carried.Carried", "training.logged.Logged")]
    with torch.serialization.safe_globals([*arrays, *classes]):
        found = vars(torch.load(path, weights_only=True))
    generators = [{**rank, "numpy": _numpy_state(rank["numpy"])} for rank in found["generators"]]
    logged = [{name: LoggedValue(**vars(value)) for name, value in rank.items()} for rank in found["logged"]]
    return TrainState(**{**found, "generators": generators, "logged": logged})


def _metrics(module: LightningModule) -> dict[str, Metric]:
    """Those that can be saved: every state is added up over ranks, or is the same on all."""
    return {
        name: metric
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
        and all(reduction in SHARED_BY_ALL + GIVEN_TO_ONE for reduction in metric._reductions.values())
    }


def _synced(metric: Metric) -> dict[str, Any]:
    with metric.sync_context(distributed_available=lambda: True):
        return {name: _copied(value) for name, value in metric.metric_state.items()}


def _restore(metric: Metric, saved: dict[str, Any]) -> None:
    metric.reset()
    for name, value in saved["state"].items():
        if metric._reductions[name] in SHARED_BY_ALL or dist.get_rank() == 0:
            setattr(metric, name, _on(value, metric.device))
    metric._update_count = saved["updates"] if dist.get_rank() == 0 else min(saved["updates"], 1)
    metric._computed = None


def _copied(value: Any) -> Any:
    return [item.clone() for item in value] if isinstance(value, list) else value.clone()


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [item.to(device) for item in value]
    assert isinstance(value, Tensor)
    return value.to(device)


def _generators() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
        "numpy": _numpy_state(np.random.get_state()),
        "python": random.getstate(),
    }


def _numpy_state(state: Any) -> tuple[Any, ...]:
    """The same with a list in place of the array."""
    name, key, *rest = state
    return name, [int(word) for word in key], *rest


def _set_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))
    random.setstate(state["python"])


def _seed_generators(*parts: int) -> None:
    words = np.random.SeedSequence(parts).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))

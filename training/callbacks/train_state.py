"""The training state beside weights and optimizers: random generators, and metrics of an unfinished epoch.

Each rank has its own random generators. They are restored if the world size is unchanged, and reseeded from
(seed, step, rank) otherwise; with `training.reproducible: bits` all ranks have the same, and get them again.
Metrics of the current epoch are saved as sums over all ranks and restored on rank 0 only, so the run may
resume with any world size. Other values that a module has logged in the epoch are saved per rank
(`log_reduction`).

The file holds only tensors, numbers, strings, lists and dicts. It contains no classes, so it loads with
`weights_only=True` and survives changes to these modules.
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
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum

from training import internals, metric_internals
from training.callbacks.job_step import job_step
from training.callbacks.log_reduction import LoggedValue, values_of_epoch
from training.checkpoints.listing import LIGHTNING
from training.spec import Spec

FILE, EARLIER_FILE = "train_state.pt", "carried.pt"
SHARED_BY_ALL = (dim_zero_max, dim_zero_min, dim_zero_mean)
"""Reductions whose result is the same whether one rank or all ranks hold the value: restored on all ranks."""
HELD_BY_ONE = (dim_zero_sum, dim_zero_cat)
"""Reductions that would count a value once per rank: restored on rank 0 only."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of all ranks.

    generators, logged: one entry per rank. metrics: by name in the module. gradients: the averages over all
    ranks that a module with manual optimization may go on to accumulate, by name of the parameter.
    batching: what decides which samples an epoch's batches have; empty if an earlier version saved it.
    between_epochs: saved before the next epoch starts, and not just before a batch. finished: the run has
    ended its training here; only a longer one goes on. made_with: the settings with which the run constructed
    its optimizers and schedulers, to be compared with another run's; empty: they are not compared.
    own_output: what the user's loggers and checkpoint callbacks had written (`training.rank.own_output`).
    environments: those in which the steps were made, each once (`training.bits.environment`); empty unless
    the run trains to the last bit. draws_by_sample: whether steps draw by sample (`model.sample_noise`); a
    run that an earlier version began draws on each rank separately to its end.
    """

    seed: int
    step: int
    generators: list[dict[str, Any]]
    logged: list[dict[str, LoggedValue]]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    batching: dict[str, Any] = field(default_factory=dict)
    between_epochs: bool = False
    finished: bool = False
    made_with: dict[str, Any] = field(default_factory=dict)
    own_output: dict[str, Any] = field(default_factory=dict)
    environments: list[dict[str, str]] = field(default_factory=list)
    draws_by_sample: bool = False

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Restores everything except `logged`. Every rank must call it."""
        for name, metric in _metrics(module).items():
            if name in self.metrics:
                _restore(metric, self.metrics[name])
        parameters = dict(module.named_parameters())
        for name, gradient in self.gradients.items():
            parameters[name].grad = gradient.to(parameters[name])
        if self.batching.get("shards") is not None:
            _set_generators(self.generators[0])
        elif len(self.generators) == trainer.world_size:
            _set_generators(self.generators[trainer.global_rank])
        else:
            _seed_generators(self.seed, self.step, trainer.global_rank)

    def save(self, folder: Path) -> None:
        """Writes the state to a file in `folder`."""
        torch.save(asdict(self), folder / FILE)


def gather(
    trainer: Trainer,
    module: LightningModule,
    *,
    spec: Spec,
    made_with: dict[str, Any],
    between_epochs: bool = False,
    finished: bool = False,
) -> TrainState | None:
    """Returns the current state on rank 0, None on the others. Collective: every rank must call it."""
    own: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(own, (_generators(), {} if between_epochs else values_of_epoch(trainer)))
    metrics = _metrics(module)
    # Ranks may differ in whether a metric was updated, but they must agree on whether to sync it.
    updates = torch.tensor(
        [metric_internals.update_count(metric) for metric in metrics.values()], device=module.device
    )
    dist.all_reduce(updates)
    states = {
        name: {"state": _synced(metric), "updates": count}
        for (name, metric), count in zip(metrics.items(), updates.tolist(), strict=True)
        if count
    }
    if not trainer.is_global_zero:
        return None
    gradients = {
        name: parameter.grad.detach().cpu()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not module.automatic_optimization
    }
    generators, logged = (list(parts) for parts in zip(*own, strict=True))
    return TrainState(
        seed=spec.training.seed,
        step=job_step(trainer),
        generators=generators,
        logged=logged,
        metrics=states,
        gradients=gradients,
        batching=batching(spec),
        between_epochs=between_epochs,
        finished=finished,
        made_with=made_with,
    )


def batching(spec: Spec) -> dict[str, Any]:
    """Returns the settings that decide which samples an epoch's batches have, by name in `training`."""
    names = ("global_batch_size", "loader_batches", "accumulate_grad_batches", "drop_last", "seed", "sampler")
    shards = spec.shards if spec.training.reproducible == "bits" else None
    return {name: getattr(spec.training, name) for name in names} | {"shards": shards}


def is_beside(file: Path) -> bool:
    """Returns whether a checkpoint of Lightning is one of a job's, with this state in its folder."""
    return file.name == LIGHTNING and any((file.parent / name).exists() for name in (FILE, EARLIER_FILE))


def load(folder: Path) -> TrainState:
    """Returns the state saved in the checkpoint in `folder`."""
    if not (folder / FILE).exists():
        return _load_version_0_1(folder / EARLIER_FILE)
    fields = torch.load(folder / FILE, weights_only=True)
    logged = [{name: LoggedValue(**value) for name, value in rank.items()} for rank in fields["logged"]]
    return TrainState(**{**fields, "logged": logged})


def _load_version_0_1(path: Path) -> TrainState:
    """Reads a state of version 0.1, which pickled two classes and NumPy arrays. Only attributes are read."""
    classes = [(SimpleNamespace, name) for name in ("training.carried.Carried", "training.logged.Logged")]
    with torch.serialization.safe_globals([*internals.PICKLED_ARRAY, *classes]):
        fields = vars(torch.load(path, weights_only=True))
    generators = [{**rank, "numpy": _numpy_state(rank["numpy"])} for rank in fields["generators"]]
    logged = [{name: LoggedValue(**vars(value)) for name, value in rank.items()} for rank in fields["logged"]]
    return TrainState(**{**fields, "generators": generators, "logged": logged})


def _metrics(module: LightningModule) -> dict[str, Metric]:
    """Returns the metrics that can be saved, by name: every state has a reduction listed above."""
    return {
        name: metric
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
        and all(
            reduction in SHARED_BY_ALL + HELD_BY_ONE
            for reduction in metric_internals.reductions(metric).values()
        )
    }


def _synced(metric: Metric) -> dict[str, Any]:
    with metric.sync_context(distributed_available=lambda: True):
        return {name: _cloned(value) for name, value in metric.metric_state.items()}


def _restore(metric: Metric, saved: dict[str, Any]) -> None:
    metric.reset()
    for name, value in saved["state"].items():
        if metric_internals.reductions(metric)[name] in SHARED_BY_ALL or dist.get_rank() == 0:
            setattr(metric, name, _to_device(value, metric.device))
    updates = saved["updates"] if dist.get_rank() == 0 else min(saved["updates"], 1)
    metric_internals.set_update_count(metric, updates)
    metric_internals.forget_computed(metric)


def _cloned(value: Any) -> Any:
    return [item.clone() for item in value] if isinstance(value, list) else value.clone()


def _to_device(value: Any, device: torch.device) -> Any:
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
    """Returns NumPy's generator state with its array as a list of ints."""
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

"""The LightningModule around a plain nn.Module, with loss, metrics and optimizer from the spec."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from training import internals
from training.errors import BuildError
from training.model.instantiate import construct
from training.model.metric_sync import sync_directly
from training.spec import Optimizer, Spec

Batch = tuple[Tensor, Tensor]
_PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
OTHER_STATE = "other_state_dict"
"""The key in a checkpoint of an nn.Module for the state of its loss and metrics."""
_PREFIX = "model."
DEFAULT_OPTIMIZER = Optimizer(init_args={"lr": 0.1, "momentum": 0.9})


class MeanLoss(Metric):
    """The mean over all samples of all ranks.

    Computed in float64, so that the mean over a large data set does not depend on how it was split. NaN stays
    NaN: torchmetrics' own mean ignores either NaN values or the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: int) -> None:
        self.total += mean.detach().double() * samples
        self.count += samples

    def compute(self) -> Tensor:
        return self.total / self.count


class Supervised(LightningModule):
    """Trains `model` on batches (input, target) with loss(model(input), target).

    The loss is a mean over this rank's samples; `callbacks.global_loss` weights the ranks. Metrics are
    weighted by samples over all ranks. A rank with an empty share takes part in every collective.
    """

    samples: int | None = None
    """How many samples the running batch has, set by a callback; None: the length of its input."""

    def __init__(self, model: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec.model_copy(update={"optimizer": spec.optimizer or DEFAULT_OPTIMIZER})
        self.loss = construct(spec.loss, "loss")
        metrics = MetricCollection({name: _metric(spec, name) for name in spec.metrics})
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": metrics.clone(prefix=f"{stage}_") for stage in ("train", "val", "test")}
        )
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanLoss() for stage in ("val", "test")})
        sync_directly(self)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, _index: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Batch, _index: int, dataloader_idx: int = 0) -> None:  # noqa: PT019 (no test)
        self._evaluate(batch, "test", dataloader_idx)

    def _step(self, batch: Batch, stage: str, loader: int = 0) -> Tensor:
        x, target = _input_and_target(batch)
        output = self(x)
        name = _of_loader(f"{stage}_metrics", loader)
        metrics = self.metrics[name]
        assert isinstance(metrics, MetricCollection)
        samples = len(x) if self.samples is None else self.samples
        if samples:  # torchmetrics rejects an empty update; compute() still runs on every rank
            metrics.update(output.detach(), target)
        for key, metric in metrics.items(keep_base=True, copy_state=False):
            self._log(f"{stage}_{key}", metric, f"metrics.{name}.{key}", samples)
        loss: Tensor = self.loss(output, target)
        return loss

    def _evaluate(self, batch: Batch, stage: str, loader: int) -> None:
        self._add_metrics(stage, loader)
        loss = self._step(batch, stage, loader)
        name = _of_loader(f"{stage}_loss", loader)
        mean = self.losses[name]
        assert isinstance(mean, MeanLoss)
        samples = len(batch[0]) if self.samples is None else self.samples
        if samples:
            mean.update(loss, samples)
        self._log(f"{stage}_loss", mean, f"losses.{name}", samples)

    def _log(self, name: str, metric: Metric, attribute: str, samples: int) -> None:
        if internals.holds_metric(self, name, metric):
            return  # saves Lightning's millisecond
        size = max(samples, 1)
        self.log(name, metric, on_step=False, on_epoch=True, batch_size=size, metric_attribute=attribute)

    def _add_metrics(self, stage: str, loader: int) -> None:
        """Adds metrics for one of several loaders when its first batch comes, which it does on every rank."""
        for kind, metrics in (("metrics", self.metrics), ("loss", self.losses)):
            name = _of_loader(f"{stage}_{kind}", loader)
            if name not in metrics:
                first: Any = metrics[f"{stage}_{kind}"]
                own = first.clone()
                own.reset()
                sync_directly(own)
                metrics[name] = own

    def configure_optimizers(self) -> Any:
        return configured_optimizers(self.model, self.spec)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives the state_dict in the checkpoint the keys of the user's own model."""
        state = checkpoint["state_dict"]
        own = [key for key in state if key.startswith(_PREFIX)]
        checkpoint[OTHER_STATE] = {key: value for key, value in state.items() if key not in set(own)}
        checkpoint["state_dict"] = {key.removeprefix(_PREFIX): state[key] for key in own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Does the opposite. A checkpoint of an earlier version has the keys of this module."""
        if OTHER_STATE in checkpoint:
            own = {f"{_PREFIX}{key}": value for key, value in checkpoint["state_dict"].items()}
            checkpoint["state_dict"] = own | checkpoint.pop(OTHER_STATE)


def configured_optimizers(model: nn.Module, spec: Spec) -> Any:
    """Returns optimizer and scheduler of the spec over all parameters, in a form that Lightning takes."""
    assert spec.optimizer is not None
    optimizer = construct(spec.optimizer, "optimizer", model.parameters())
    if spec.lr_scheduler is None:
        return optimizer
    part, monitor = spec.lr_scheduler, {}
    if part.class_path.rpartition(".")[2] == "ReduceLROnPlateau" and "monitor" in part.init_args:
        # An argument of Lightning's class of that name; torch's has none.
        others = {name: value for name, value in part.init_args.items() if name != "monitor"}
        monitor = {"monitor": part.init_args["monitor"]}
        part = part.model_copy(update={"class_path": _PLATEAU, "init_args": others})
    scheduler = construct(part, "lr_scheduler", optimizer)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": part.interval, **monitor},
    }


def checked_module(model: object, spec: Spec) -> nn.Module:
    """Returns the model, which may be a LightningModule. Raises BuildError unless it is an nn.Module."""
    if isinstance(model, nn.Module):
        return model
    path = spec.trained()[0].class_path
    raise BuildError(
        "model.class_path",
        f"{path} returns a {type(model).__name__}, which is neither an nn.Module nor a LightningModule",
    )


def as_lightning_module(model: nn.Module, spec: Spec) -> LightningModule:
    """Returns a user's LightningModule, and any other nn.Module wrapped in `Supervised`.

    An optimizer of the spec replaces what the module's `configure_optimizers` gives, as in LightningCLI.
    Raises BuildError for a scheduler without an optimizer, and if a step of the module takes an iterator.
    """
    if not isinstance(model, LightningModule):
        return Supervised(model, spec)
    _check_steps(model)
    if spec.optimizer is not None:
        # A function, not a partial: a copy of the module must not copy the module within it.
        model.configure_optimizers = lambda: configured_optimizers(model, spec)  # type: ignore[method-assign]
    elif spec.lr_scheduler is not None:
        raise BuildError(
            "lr_scheduler",
            f"needs the optimizer that it schedules; give {type(model).__name__}'s in optimizer",
        )
    return model


def _check_steps(module: LightningModule) -> None:
    for name in ("training_step", "validation_step", "test_step"):
        if is_param_in_hook_signature(getattr(module, name), "dataloader_iter", explicit=True):
            raise BuildError(
                "model.class_path",
                f"{name} of {type(module).__name__} takes dataloader_iter and fetches its batches itself, so "
                f"the workers cannot be kept at the same batch; write {name}(self, batch, batch_idx)",
            )


def _of_loader(name: str, loader: int) -> str:
    return f"{name}_{loader}" if loader else name


def _metric(spec: Spec, name: str) -> Metric:
    metric = construct(spec.metrics[name], f"metrics.{name}")
    if not isinstance(metric, Metric):
        raise BuildError(
            f"metrics.{name}.class_path", f"{type(metric).__name__} is not a torchmetrics.Metric"
        )
    return metric


def _input_and_target(batch: object) -> Batch:
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    raise BuildError(
        "data.class_path",
        f"an nn.Module is trained on batches (input, target), but the data yields a {type(batch).__name__}; "
        "write a LightningModule for batches of another kind",
    )

"""Where a NaN or an infinity came from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from training.errors import NonFiniteLoss

Finding = tuple[int, str]  # how early it was on its rank, and what it was


def blame(module: LightningModule, batch: Any, batch_idx: int, *, step: int, loss: float) -> NonFiniteLoss:
    """Runs the step once more and says where the first value that is not finite appeared.

    Collective: every rank calls it, because the layers of the model may communicate; all ranks return the
    same words.
    """
    # One after the other on all ranks alike: a rank that runs the model needs the others in its collectives.
    where = (
        _earliest(_weights(module, step))
        or _earliest(_batch(batch))
        or _earliest(_forward(module, batch, batch_idx))
        or "in the loss function: its inputs are finite"
    )
    return NonFiniteLoss(
        f"the loss is {loss} at step {step}; the first value that is not finite appeared {where}. "
        "Lower the learning rate, check the data, or train in a higher precision."
    )


def public_name(name: str) -> str:
    """The layer's name in the user's model, without the wrapper around it."""
    return name.removeprefix("model.") or "model"


def _earliest(found: Finding | None) -> str | None:
    """Of what the ranks found, what came first: a synchronized layer passes a NaN on to all of them."""
    findings: list[Finding | None] = [None] * dist.get_world_size()
    dist.all_gather_object(findings, found)
    by_time = sorted((finding[0], rank, finding[1]) for rank, finding in enumerate(findings) if finding)
    return f"{by_time[0][2]} (rank {by_time[0][1]})" if by_time else None


def _finite(value: object) -> bool:
    return all(
        bool(leaf.isfinite().all())
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def _weights(module: nn.Module, step: int) -> Finding | None:
    since = "after the optimizer's step before this one" if step > 1 else "before the first step"
    for position, (name, parameter) in enumerate(module.named_parameters()):
        if not _finite(parameter):
            layer, _, kind = name.rpartition(".")
            return position, f"in the {kind} of layer {public_name(layer)}, {since}"
    return None


def _batch(batch: Any) -> Finding | None:
    return None if _finite(batch) else (0, "in the batch itself, before the first layer")


def _forward(module: LightningModule, batch: Any, batch_idx: int) -> Finding | None:
    precision = module.trainer.precision_plugin
    with torch.no_grad(), _unlogged(module), precision.train_step_context(), _watched(module) as found:
        module.training_step(batch, batch_idx)
    return found[0] if found else None


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """The step is run for what its layers give; what it logs was logged the first time."""
    logged = module.__dict__.get("log")
    module.__dict__["log"] = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        module.__dict__.pop("log")
        if logged is not None:
            module.__dict__["log"] = logged


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Finding]]:
    """Collects, in the order of execution, the layers with an input or output that is not finite."""
    found: list[Finding] = []
    positions = itertools.count()

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_layer: nn.Module, inputs: Any, output: Any) -> None:
            position = next(positions)
            side = "output" if _finite(inputs) else "input"
            if side == "input" or not _finite(output):
                where = f"in the {side} of layer {public_name(name)} ({type(layer).__name__})"
                found.append((position, where))

        return layer.register_forward_hook(hook)

    leaves = [(name, layer) for name, layer in module.named_modules() if name and not list(layer.children())]
    handles = [watch(name, layer) for name, layer in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

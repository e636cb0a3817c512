"""Finds the origin of a loss that is NaN or infinite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from training.errors import NonFiniteLoss
from training.internals import tree_leaves

Finding = tuple[int, str]  # position in the order of execution on its rank, and description


def nonfinite_error(
    module: LightningModule, batch: Any, batch_idx: int, *, step: int, loss: float
) -> NonFiniteLoss:
    """Runs the step again and returns an error that says where the first non-finite value appeared.

    Collective: every rank must call it, because layers of the model may communicate. All ranks return the
    same message.
    """
    # All ranks go through these checks in step: a rank that runs the model needs the others in collectives.
    where = (
        _earliest(_in_weights(module, step))
        or _earliest(_in_batch(batch))
        or _earliest(_in_forward(module, batch, batch_idx))
        or "in the loss function: its inputs are finite"
    )
    return NonFiniteLoss(
        f"the loss is {loss} at step {step}; the first value that is not finite appeared {where}. "
        "Lower the learning rate, check the data, or train in a higher precision."
    )


def public_name(name: str) -> str:
    """Returns the layer's name in the user's model, without the prefix of `Supervised`."""
    return name.removeprefix("model.") or "model"


def _earliest(own: Finding | None) -> str | None:
    """Returns the earliest finding of any rank. Collective.

    The others may only be consequences: a synchronized layer passes a NaN on to all ranks.
    """
    findings: list[Finding | None] = [None] * dist.get_world_size()
    dist.all_gather_object(findings, own)
    by_time = sorted((finding[0], rank, finding[1]) for rank, finding in enumerate(findings) if finding)
    return f"{by_time[0][2]} (rank {by_time[0][1]})" if by_time else None


def _is_finite(value: object) -> bool:
    return all(
        bool(leaf.isfinite().all())
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def _in_weights(module: nn.Module, step: int) -> Finding | None:
    since = "after the previous optimizer step" if step > 1 else "before the first step"
    for position, (name, parameter) in enumerate(module.named_parameters()):
        if not _is_finite(parameter):
            layer, _, kind = name.rpartition(".")
            return position, f"in the {kind} of layer {public_name(layer)}, {since}"
    return None


def _in_batch(batch: Any) -> Finding | None:
    return None if _is_finite(batch) else (0, "in the batch itself, before the first layer")


def _in_forward(module: LightningModule, batch: Any, batch_idx: int) -> Finding | None:
    precision = module.trainer.precision_plugin
    with (
        torch.no_grad(),
        _logging_disabled(module),
        precision.train_step_context(),
        _recorded(module) as findings,
    ):
        module.training_step(batch, batch_idx)
    return findings[0] if findings else None


@contextmanager
def _logging_disabled(module: LightningModule) -> Iterator[None]:
    """Disables `module.log` while the step runs again: its values were already logged the first time."""
    logged = module.__dict__.get("log")
    module.__dict__["log"] = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        module.__dict__.pop("log")
        if logged is not None:
            module.__dict__["log"] = logged


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Finding]]:
    """Yields a list that collects the layers with a non-finite input or output, in order of execution."""
    findings: list[Finding] = []
    positions = itertools.count()

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_layer: nn.Module, inputs: Any, output: Any) -> None:
            position = next(positions)
            side = "output" if _is_finite(inputs) else "input"
            if side == "input" or not _is_finite(output):
                where = f"in the {side} of layer {public_name(name)} ({type(layer).__name__})"
                findings.append((position, where))

        return layer.register_forward_hook(hook)

    leaves = [(name, layer) for name, layer in module.named_modules() if name and not list(layer.children())]
    handles = [watch(name, layer) for name, layer in leaves]
    try:
        yield findings
    finally:
        for handle in handles:
            handle.remove()

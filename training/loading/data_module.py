"""The hooks of a LightningDataModule whose loaders are cut into shares before the Trainer gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def connect(data: LightningDataModule, module: LightningModule, trainer: Trainer) -> None:
    """Gives the data module its `trainer`, and its transfer hooks to the module, as Lightning would."""
    data.trainer = trainer
    for name in TRANSFER_HOOKS:
        if is_overridden(name, data):
            setattr(module, name, _calling(getattr(data, name)))


def _calling(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a bound method, so that a copy of the module (for averaged weights) does not copy the data."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs)

    return call


def disconnect(data: LightningDataModule, module: LightningModule) -> None:
    """Takes the hooks back from the module, which is going to be saved."""
    for name in TRANSFER_HOOKS:
        if is_overridden(name, data):
            delattr(module, name)

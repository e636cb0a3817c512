"""The callback for epochs of different lengths, which Lightning takes to be as long as the first."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from training import internals
from training.errors import BuildError
from training.loading.batches import ShareLoader


class EpochLength(Callback):
    """Sets the length of each training epoch, which a user's own sampler may change.

    Without it a longer epoch would be cut off, and a shorter one would have no validation. Raises BuildError
    for a longer epoch of validation, which Lightning would cut off.
    """

    def __init__(self) -> None:
        self._of_validation: list[int] = []

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        _update(trainer)  # an epoch that is continued does not start

    def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
        _update(trainer)

    def on_validation_start(self, trainer: Trainer, _module: LightningModule) -> None:
        loaders, _ = internals.loaders_to_evaluate_on(trainer)
        lengths = [len(loader) if isinstance(loader, ShareLoader) else 0 for loader in loaders]
        self._of_validation = self._of_validation or lengths
        for length, first in zip(lengths, self._of_validation, strict=False):
            if length > first:
                raise BuildError(
                    "data.val_dataloader",
                    f"its sampler gives {length} batches in epoch {trainer.current_epoch}, but gave "
                    f"{first} the first time; let it give as many each time",
                )


def _update(trainer: Trainer) -> None:
    loaders, _ = internals.loaders_to_train_on(trainer)
    if not all(isinstance(loader, ShareLoader) for loader in loaders):
        return
    # Every rank gets here: the length may be that of an order which rank 0 has yet to draw.
    lengths = [_limited(len(loader), trainer.limit_train_batches) for loader in loaders]
    known = internals.lengths_to_train_on(trainer)
    if lengths == known:
        return
    if len(loaders) > 1:
        raise BuildError(
            "data.train_dataloader",
            f"its loaders have {lengths} batches in epoch {trainer.current_epoch}, but had {known} at first; "
            "several loaders to train on must have as many in each epoch",
        )
    internals.set_epoch_length(trainer, lengths[0])


def _limited(batches: int, limit: int | float) -> int:
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

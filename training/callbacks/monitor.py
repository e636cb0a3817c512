"""The metric that decides which checkpoint is the best one, as far as it belongs to the current weights."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Trainer

from training.callbacks.job_step import job_step
from training.errors import BuildError
from training.spec.training import Checkpoint

log = logging.getLogger(__name__)


class Monitor:
    """The value of `training.checkpoint.monitor`.

    A validation's value belongs to the weights of its step, also within an epoch. A value that the training
    itself logs belongs to the weights at the end of its epoch.
    """

    def __init__(self, settings: Checkpoint) -> None:
        self.name = settings.monitor
        self._default = self.name == type(settings)().monitor
        self._needed = settings.deliver == "best"
        self._before: Any = None
        self._validated_step: int | None = None
        self._value: float | None = None
        self._of_validation = self._told_missing = False

    def validation_starts(self, trainer: Trainer) -> None:
        """Must be called before each validation, on every rank."""
        self._before = trainer.callback_metrics.get(self.name)

    def validation_ends(self, trainer: Trainer) -> None:
        """Must be called after each validation, on every rank."""
        value = trainer.callback_metrics.get(self.name)
        # A value that is there still, but that this validation has not logged, is the same object.
        self._validated_step, self._value = job_step(trainer), None
        if value is not None and value is not self._before:
            self._of_validation, self._value = True, float(value)

    def was_validated(self, trainer: Trainer) -> bool:
        """Returns whether there was a validation of the current weights. Equal on all ranks."""
        return self._validated_step == job_step(trainer)

    def value(self, trainer: Trainer, *, epoch_ended: bool) -> float | None:
        """Returns the metric of the current weights; None if it is not known. To be called on rank 0.

        Says once if a metric was named that is not logged by the end of an epoch. Raises BuildError if the
        best checkpoint has to be delivered, and a validation has not logged the metric.
        """
        if self._of_validation:
            return self._value if self.was_validated(trainer) else None
        if not epoch_ended:
            return None
        value = trainer.callback_metrics.get(self.name)
        if value is None:
            self._tell_missing(trainer)
            return None
        return float(value)

    def _tell_missing(self, trainer: Trainer) -> None:
        """Says once that no checkpoint will be the best one."""
        names = ", ".join(sorted(trainer.callback_metrics)) or "none"
        if self._needed and self.was_validated(trainer):
            raise BuildError(
                "training.checkpoint.monitor",
                f"no metric {self.name!r} was logged by the end of the validation, so no checkpoint can be "
                f"the best one, which training.checkpoint.deliver wants; these were: {names}",
            )
        if self._default or self._told_missing:
            return
        self._told_missing = True
        log.warning(
            "training.checkpoint.monitor: no metric %r was logged by the end of the epoch, so no checkpoint "
            "is the best one; these were: %s",
            *(self.name, names),
        )

"""The metric that decides which checkpoint is the best one, as far as it belongs to the current weights."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from training.callbacks.job_step import job_step
from training.errors import BuildError
from training.spec.training import Checkpoint


class Monitor:
    """The value of `training.checkpoint.monitor`.

    A validation's value belongs to the weights of its step, also within an epoch. A value that the training
    itself logs belongs to the weights at the end of its epoch.
    """

    def __init__(self, settings: Checkpoint) -> None:
        self.name = settings.monitor
        # Not every model logs the default one, and who names none has not asked for a best checkpoint.
        self._needed = self.name != type(settings)().monitor or settings.deliver == "best"
        self._before: Any = None
        self._validated_step: int | None = None
        self._value: float | None = None
        self._of_validation = False
        self._names: set[str] = set()  # Lightning forgets a validation's metrics when the next epoch begins

    def validation_starts(self, trainer: Trainer) -> None:
        """Must be called before each validation, on every rank."""
        self._before = trainer.callback_metrics.get(self.name)

    def validation_ends(self, trainer: Trainer) -> None:
        """Must be called after each validation, on every rank."""
        value = trainer.callback_metrics.get(self.name)
        self._names |= set(trainer.callback_metrics)
        # A value that is there still, but that this validation has not logged, is the same object.
        self._validated_step, self._value = job_step(trainer), None
        if value is not None and value is not self._before:
            self._of_validation, self._value = True, float(value)

    def was_validated(self, trainer: Trainer) -> bool:
        """Returns whether there was a validation of the current weights. Equal on all ranks."""
        return self._validated_step == job_step(trainer)

    def value(self, trainer: Trainer, *, epoch_ended: bool) -> float | None:
        """Returns the metric of the current weights; None if it is not known. To be called on rank 0.

        Raises BuildError if a metric was named, or the best checkpoint has to be delivered, and an epoch with
        validation has ended without the metric; so does the first epoch of a run without validation.
        """
        if self._of_validation:
            return self._value if self.was_validated(trainer) else None
        if not epoch_ended:
            return None
        value = trainer.callback_metrics.get(self.name)
        if value is None:
            self._check_needed(trainer)
            return None
        return float(value)

    def _check_needed(self, trainer: Trainer) -> None:
        """Raises BuildError if no checkpoint will ever be the best one, and one is needed."""
        may_come = trainer.enable_validation and self._validated_step is None
        if not self._needed or may_come:
            return
        names = ", ".join(sorted(self._names | set(trainer.callback_metrics))) or "none"
        raise BuildError(
            "training.checkpoint.monitor",
            f"no metric {self.name!r} was logged by the end of the epoch, so no checkpoint can be the best "
            f"one; these were: {names}. Name one of them, or log {self.name!r}",
        )

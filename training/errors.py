"""What can end a run, one tree.

TrainingError
├── BuildError        the spec names something that cannot be built: carries the key
├── NonFiniteLoss     NaN or infinity: carries the step and the layer
├── NotWritten        MLflow took nothing for too long (training.tracking.mlflow_tracker)
└── RunFailed         a run on this machine that is not tried again: carries the rank's exit record
"""

from __future__ import annotations

from training.protocol import ExitRecord


class TrainingError(Exception):
    """The training could not be done."""


class BuildError(TrainingError):
    """What the spec names cannot be built."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite."""


class RunFailed(TrainingError):
    """A run that is not tried again. `record`: of the rank that the failure began with."""

    def __init__(self, record: ExitRecord, why_not_again: str) -> None:
        super().__init__(record, why_not_again)
        self.record, self.why_not_again = record, why_not_again

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.record.headline, self.why_not_again]))


def is_lost_peer(error: BaseException) -> bool:
    """Whether a rank has only noticed that another one was gone.

    gloo has no exception class for that; its messages name its source files.
    """
    text = str(error)
    return "gloo/transport" in text or type(error).__name__ in {"DistBackendError", "DistNetworkError"}

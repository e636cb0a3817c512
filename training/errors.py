"""The exceptions that end a run.

TrainingError
├── BuildError        the spec names something that cannot be built: has the key
├── NonFiniteLoss     the loss is NaN or infinite: the message has the step and the layer
├── StepError         a step cannot be made the same on all ranks: the message says what to change
├── RankZeroFailed    rank 0 raised an error while the other ranks waited for its data
├── NotWritten        MLflow accepted nothing for too long (training.tracking.mlflow_tracker)
└── RunFailed         a run on this machine failed and is not retried: has the rank's exit record
"""

from __future__ import annotations

import re

from training.protocol import ExitRecord

_GLOO = re.compile(r"\[[^\]]*gloo/transport/")


class TrainingError(Exception):
    """The training failed."""


class BuildError(TrainingError):
    """Something that the spec names cannot be built. key: its path in the spec."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite."""


class StepError(TrainingError):
    """A training or validation step does something that cannot be the same on all ranks."""


class RankZeroFailed(TrainingError):
    """Rank 0 raised an error while this rank waited for its data. The cause is in rank 0's own error."""

    def __init__(self, error: str) -> None:
        super().__init__(f"rank 0 could not give this rank its data: {error}")


class RunFailed(TrainingError):
    """A run failed and is not retried. record: of the rank that failed first."""

    def __init__(self, record: ExitRecord, why_no_retry: str) -> None:
        super().__init__(record, why_no_retry)
        self.record, self.why_no_retry = record, why_no_retry

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.record.headline, self.why_no_retry]))


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether `error`, or an exception that caused it, only reports that another rank is gone."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, RankZeroFailed) or _is_collective_error(cause):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _is_collective_error(error: BaseException) -> bool:
    """gloo has no exception class: it raises RuntimeErrors that start with the name of its source file."""
    if type(error).__module__ == "torch.distributed":
        return type(error).__name__ in {"DistBackendError", "DistNetworkError"}
    return type(error) is RuntimeError and _GLOO.match(message_of(error)) is not None


def message_of(error: BaseException) -> str:
    """Returns the error's message; never raises, even if a user's `__str__` does."""
    try:
        return str(error)
    except Exception as another:
        return f"(its message cannot be shown: {type(another).__name__})"

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
import traceback
from collections.abc import Iterator

from training.protocol import ExitRecord

_GLOO = re.compile(r"\[[^\]]*gloo/transport/")
_PASSING = re.compile(r"Connect|Timeout|Timed ?Out|HTTP|Unavailable|OutOfMemory|MemoryError")


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
    return any(isinstance(each, RankZeroFailed) or _is_collective_error(each) for each in _causes(error))


def may_pass(error: BaseException) -> bool:
    """Returns whether what has failed may succeed if it is tried again, such as reading a network drive.

    That is so for errors of the operating system, connections, timeouts and memory, by their class or its
    name, and for errors that one of them has caused.
    """
    return any(
        isinstance(each, OSError) or any(_PASSING.search(kind.__name__) for kind in type(each).__mro__)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and the exceptions that caused it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def _is_collective_error(error: BaseException) -> bool:
    """gloo has no exception class: it raises RuntimeErrors that start with the name of its source file."""
    if type(error).__module__ == "torch.distributed":
        return type(error).__name__ in {"DistBackendError", "DistNetworkError"}
    return type(error) is RuntimeError and _GLOO.match(message_of(error)) is not None


def message_of(error: BaseException) -> str:
    """Returns the error's message and notes; never raises, even if a user's `__str__` does."""
    try:
        return "\n".join([str(error), *getattr(error, "__notes__", [])])
    except Exception as another:
        return f"(its message cannot be shown: {type(another).__name__})"


def full_trace(error: BaseException) -> str:
    """Returns the error with its traceback, however odd it is."""
    try:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception:
        return f"{type(error).__name__}: {message_of(error)}"

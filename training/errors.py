"""What can end a run, one tree.

TrainingError
├── BuildError        the spec names something that cannot be built: carries the key
├── NonFiniteLoss     NaN or infinity: carries the step and the layer
├── NotWritten        MLflow took nothing for too long (training.tracking.mlflow_tracker)
└── RunFailed         a run on this machine that is not tried again: carries the rank's exit record
"""

from __future__ import annotations

import re

from training.protocol import ExitRecord

_GLOO = re.compile(r"\[[^\]]*gloo/transport/")


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
    """Whether a rank has only noticed that another one was gone, or raised `error` because it had."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if _is_of_a_collective(link):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return False


def _is_of_a_collective(error: BaseException) -> bool:
    """gloo has no exception class of its own: it raises RuntimeErrors that begin with its source file."""
    if type(error).__module__ == "torch.distributed":
        return type(error).__name__ in {"DistBackendError", "DistNetworkError"}
    return type(error) is RuntimeError and _GLOO.match(message_of(error)) is not None


def message_of(error: BaseException) -> str:
    """Never raises, unlike the `__str__` that a user may have written."""
    try:
        return str(error)
    except Exception as another:
        return f"(its message cannot be shown: {type(another).__name__})"

"""What can end a run, one tree. Everything here is made of plain strings and numbers, so it can be pickled.

TrainingError
├── BuildError        the spec names something that cannot be built: carries the key
├── NonFiniteLoss     NaN or infinity: carries the step and the layer
├── RankFailed        an exception on one rank, as the driver sees it
├── Hung              ranks made no step for too long: carries every rank's stack
├── NotWritten        MLflow took nothing for too long (training.mlflow_tracking)
├── WorkersLost       workers died more often than retries allow
└── NodesLost         the machines that are left cannot hold the workers any more
"""

from __future__ import annotations

import json
import traceback
from typing import Any, NotRequired, TypedDict


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


class Hung(TrainingError):
    """Ranks made no step for too long. `rank`: who is to blame, where that is one."""

    def __init__(self, rank: int | None, step: int, message: str) -> None:
        super().__init__(rank, step, message)
        self.rank, self.step, self.message = rank, step, message

    def __str__(self) -> str:
        return self.message


class WorkersLost(TrainingError):
    """Workers died more often than the spec's retries allow."""


class NodesLost(TrainingError):
    """The machines that are left have no place for the workers: whoever chose how many must choose anew."""


class RankFailed(TrainingError):
    """An exception of the training function on one rank.

    `step`: the one that was being made, from 1; 0 before the first.
    `when`: seconds since the epoch; the earliest of several ranks is the cause, the others its echo.
    `lost_peer`: the rank only noticed that another one was gone.
    """

    def __init__(
        self, *, rank: int, step: int, type_name: str, message: str, trace: str, when: float, lost_peer: bool
    ) -> None:
        super().__init__(f"{type_name} on rank {rank}: {message}")
        self.rank, self.step, self.type_name, self.message = rank, step, type_name, message
        self.trace, self.when, self.lost_peer = trace, when, lost_peer

    @classmethod
    def of(cls, error: BaseException, *, rank: int, step: int, when: float) -> RankFailed:
        return cls(
            rank=rank,
            step=step,
            type_name=type(error).__name__,
            message=str(error),
            trace="".join(traceback.format_exception(error)),
            when=when,
            lost_peer=_is_lost_peer(error),
        )

    def saying(self, message: str) -> RankFailed:
        """The same failure in other words."""
        return RankFailed(**(self._fields() | {"message": message}))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rank_failed, (self._fields(),)

    def _fields(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "step": self.step,
            "type_name": self.type_name,
            "message": self.message,
            "trace": self.trace,
            "when": self.when,
            "lost_peer": self.lost_peer,
        }


def _rank_failed(fields: dict[str, Any]) -> RankFailed:
    return RankFailed(**fields)


def _is_lost_peer(error: BaseException) -> bool:
    """gloo has no exception class for a peer that went away; its messages name its source files."""
    text = str(error)
    return "gloo/transport" in text or type(error).__name__ in {"DistBackendError", "DistNetworkError"}


class Verdict(TypedDict):
    """Why an attempt failed; `rank` and `step` are None where it is no failure of one rank or at one step."""

    type: str
    message: str
    rank: int | None
    step: NotRequired[int | None]


_MARK = "syncbn-verdict "


def write_verdict(verdict: Verdict) -> str:
    """The line that an attempt's driver prints last, for whoever reads its log."""
    return _MARK + json.dumps(verdict)


def read_verdict(log: str) -> Verdict | None:
    """The last verdict in a log; None: the driver died before it could print one."""
    lines = [line for line in log.splitlines() if line.startswith(_MARK)]
    verdict: Verdict | None = json.loads(lines[-1].removeprefix(_MARK)) if lines else None
    return verdict


def without_verdict(log: str) -> str:
    """The log as people read it."""
    return "".join(line for line in log.splitlines(keepends=True) if not line.startswith(_MARK))

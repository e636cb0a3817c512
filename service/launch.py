"""What the service asks of a cluster: start an attempt, say how it is, stop it, hand over its log.

An attempt that fails, or ends because it was stopped, prints as its last word a verdict (training.failures).

`service.ray_jobs.RayJobs` is the real one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SECONDS_TO_STOP = 120
"""So long an attempt that is stopped may take to save a checkpoint; then it is killed."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster and everything it has, busy or not."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One launch of a job.

    The submission id is a function of job and number, so launching twice is harmless.
    """

    job_id: str
    number: int
    workers: int
    spec: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    code: bytes | None = field(default=None, repr=False)

    @property
    def submission_id(self) -> str:
        return submission_id(self.job_id, self.number)


def submission_id(job_id: str, number: int) -> str:
    return f"{job_id}-{number}"


class Phase(enum.StrEnum):
    """How an attempt stands, as far as the cluster knows."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Status:
    phase: Phase
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED}


class Cluster(Protocol):
    """Every method raises `Unavailable` when the cluster does not answer."""

    def submit(self, attempt: Attempt) -> None:
        """Starts the attempt; does nothing if the cluster has it already."""

    def status(self, submission_id: str) -> Status | None:
        """None: the cluster does not know it (never submitted, or lost with the head)."""

    def stop(self, submission_id: str) -> None:
        """Asks the attempt to save itself and to end (SIGTERM to its driver); returns at once.

        It is killed after `SECONDS_TO_STOP`. Harmless when it was asked already, has ended, or is unknown.
        """

    def logs(self, submission_id: str) -> str:
        """All that the attempt printed so far; empty when it is unknown."""

    def nodes(self) -> list[Node]:
        """The machines that are alive."""

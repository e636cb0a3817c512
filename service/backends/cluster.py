"""The cluster protocol: place a gang, start its ranks, report their status, stop them, end them.

`service.backends.ray.RayCluster` is the real one, `service.backends.memory.MemoryCluster` is for tests. The
contract tests run against both.

    launch ──► placing ──► (installing ──►) starting ──► running ──► ended ──► release
                                               ▲                      │
                                               └─ launch, next start ─┘  restart in place: on its placement
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from training.protocol import ExitRecord, Order, Progress
from training.spec import Resources


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster with its total resources, busy or not.

    memory: bytes that Ray lets workers reserve. labels: those given when its Ray was started, and Ray's own.
    """

    id: str
    address: str
    cpus: float
    gpus: float
    memory: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of an attempt.

    order: for all ranks; `order.ranks` is empty because the cluster assigns ranks to machines.
    resources: what each worker needs. code: returns the archive with the digest `order.code`; called only if
    an agent does not have it.
    secrets: returns the secrets of the order, which has none itself; called when its ranks are ordered.
    """

    order: Order
    resources: Resources
    code: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    secrets: Callable[[], Mapping[str, str]] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.order.attempt


class Phase(enum.StrEnum):
    """How far the latest start of an attempt has come."""

    PLACING = "placing"
    """The gang waits for room, or for its host agents' warm processes."""
    INSTALLING = "installing"
    """Hosts install the job's requirements; no rank has been forked yet."""
    STARTING = "starting"
    """Ranks have been ordered; not all of them have joined the process group yet."""
    RUNNING = "running"
    ENDED = "ended"
    """All ranks of the start and all processes they started have ended; the placement is still held."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The status of an attempt's latest start.

    exits: the exit records of the ranks that have ended; once `ended`, of all ranks.
    message: what the start waits for, or "". seconds: time since the launch; once it has ended, its duration.
    """

    phase: Phase
    start: int
    exits: tuple[ExitRecord, ...] = ()
    progress: Progress | None = None
    message: str = ""
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.phase is Phase.ENDED


class Cluster(Protocol):
    """A cluster as the scheduler uses it.

    No method waits for a rank, or for a machine that does not answer: orders are carried out in the
    background, and `attempts` reports the result. Orders are idempotent. Every method raises `Unavailable` if
    the cluster does not answer, and `Superseded` (training.protocol) if another scheduler has taken over.
    """

    def nodes(self) -> list[Node]:
        """Returns the machines that are alive and have CPUs or GPUs."""

    def attempts(self) -> Mapping[str, Status]:
        """Returns all attempts in the cluster by name, including those that an earlier scheduler launched."""

    def launch(self, launch: Launch) -> None:
        """Places the gang if it is not placed yet, and starts the ranks of this start.

        Does nothing if the cluster already has this start or a later one.
        """

    def stop(self, name: str, *, seconds: float) -> None:
        """Asks the attempt to save a checkpoint and end. It is killed if it makes no progress, or after
        `seconds`. Does nothing if it was asked already, has ended, or is unknown.
        """

    def end(self, name: str) -> None:
        """Kills all ranks and the processes they started. Does nothing if it has ended or is unknown."""

    def release(self, name: str) -> None:
        """Frees the placement and forgets the attempt, which must have ended or never started."""

    def wait(self, seconds: float) -> None:
        """Blocks until `attempts` may have changed, at most for `seconds`."""

    def wake(self) -> None:
        """Makes a `wait` in another thread return."""

"""What the scheduler asks of a cluster: place a gang, start its ranks, say how they are, stop them, end them.

`service.backends.ray.RayCluster` is the real one, `service.backends.memory.MemoryCluster` one for tests; the
contract tests run over both.

    launch ──► placing ──► starting ──► running ──► ended ──► release
                                ▲                     │
                                └── launch, next start ┘   restart in place: on the same placement
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from training.protocol import ExitRecord, Order, Progress


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster and everything it has, busy or not."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of an attempt. `order` is for all ranks: `order.ranks` is empty, the cluster deals them out.

    code: returns the archive that `order.code` names; called only where an agent does not have it.
    """

    order: Order
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    code: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.order.attempt


class Phase(enum.StrEnum):
    PLACING = "placing"
    """Its workers wait for room, or their host agents for their warm process."""
    STARTING = "starting"
    """Ranks have been ordered; not all of them are in the process group yet."""
    RUNNING = "running"
    ENDED = "ended"
    """Every rank of the start has ended, and all that they had started; the placement is still held."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How the latest start of an attempt stands.

    exits: of the ranks that have ended so far; once `ended`, of all of them. message: what it waits for.
    """

    phase: Phase
    start: int
    exits: tuple[ExitRecord, ...] = ()
    progress: Progress | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.phase is Phase.ENDED


class Cluster(Protocol):
    """No method waits for a rank, nor for a machine that does not answer: what is ordered is carried out in
    the background, and told by `attempts`. Every order may be given again. Raises `Unavailable` when the
    cluster does not answer, and `Superseded` (training.protocol) when another scheduler has taken over.
    """

    def nodes(self) -> list[Node]:
        """The machines that are alive and offer something."""

    def attempts(self) -> Mapping[str, Status]:
        """All that the cluster knows of, by name; those that an earlier scheduler has launched included."""

    def launch(self, launch: Launch) -> None:
        """Places the gang if it is not placed, and starts the ranks of this start.

        Does nothing if the cluster has that start or a later one already.
        """

    def stop(self, name: str, *, seconds: float) -> None:
        """Asks the attempt to save itself and to end; it is ended when it makes no progress, or after
        `seconds`. Harmless when it was asked already, has ended, or is unknown.
        """

    def end(self, name: str) -> None:
        """Ends all its ranks and what they have started, at once. Harmless as `stop` is."""

    def release(self, name: str) -> None:
        """Gives back its place and forgets it. For an attempt that has ended or never started."""

    def wait(self, seconds: float) -> None:
        """Blocks until something has changed in `attempts`, at most so long."""

    def wake(self) -> None:
        """Makes `wait` return, in whichever thread it blocks."""

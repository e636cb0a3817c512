"""Which fault and which command comes when. Pure: a seed gives the same plan each time."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

APIS = ("api-1", "api-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")


class Kind(enum.StrEnum):
    """A kind of fault."""

    KILL_API = "an API process is killed"
    KILL_SCHEDULER = "a scheduler is killed"
    KILL_ALL = "all API processes and schedulers are killed"
    STOP_API = "an API process is stopped and continued"
    STOP_SCHEDULER = "a scheduler is stopped past its lease and continued"
    CLUSTER_AWAY = "the cluster refuses every call"
    CLUSTER_HANGS = "the cluster does not answer"
    MLFLOW_AWAY = "MLflow refuses every call"
    MLFLOW_HANGS = "MLflow does not answer"
    CLOCK_STEPS = "the wall clock of a process steps"
    DATABASE_RESTARTED = "the database crashes and starts again"
    DATABASE_FROZEN = "the database is stopped and continued"
    DATABASE_READ_ONLY = "the database is read-only"
    CONNECTIONS_CUT = "all connections to the database are cut"
    DATABASE_LOCKED = "another program holds the database's write lock"
    DISK_FULL = "the database's disk is full"


EVERYWHERE = tuple(Kind)[:10]
POSTGRESQL = (*EVERYWHERE, *tuple(Kind)[10:14])
SQLITE = (*EVERYWHERE, Kind.DATABASE_LOCKED)
SQLITE_ON_A_FULL_DISK = (*SQLITE, Kind.DISK_FULL)

_TARGETS = {
    Kind.KILL_API: APIS,
    Kind.STOP_API: APIS,
    Kind.KILL_SCHEDULER: SCHEDULERS,
    Kind.STOP_SCHEDULER: SCHEDULERS,
    Kind.CLUSTER_AWAY: ("cluster",),
    Kind.CLUSTER_HANGS: ("cluster",),
    Kind.MLFLOW_AWAY: ("tracking",),
    Kind.MLFLOW_HANGS: ("tracking",),
    Kind.CLOCK_STEPS: (*APIS, *SCHEDULERS),
}
_AT_ONCE = {
    Kind.KILL_API,
    Kind.KILL_SCHEDULER,
    Kind.KILL_ALL,
    Kind.CLOCK_STEPS,
    Kind.DATABASE_RESTARTED,
    Kind.CONNECTIONS_CUT,
}
_SECONDS_TO_SEE = 1.0  # the standby looks about every second
_VERBS = ("cancel", "pause", "pause", "resume", "resume", "resize", "resize", "priority")
_LONGEST_STEP = 5.0  # of a clock: the common logarithm of its seconds, a day and more


@dataclass(frozen=True, kw_only=True)
class Fault:
    """at, seconds: when it begins, and for how long it lasts. target: the process or server that it hits.

    ahead: by how many seconds a clock is ahead of the machine's from then on; negative: behind.
    """

    at: float
    seconds: float
    kind: Kind
    target: str
    ahead: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to the job `back` places before the latest that was acknowledged."""

    at: float
    verb: str
    back: int
    workers: int
    priority: int


def faults(seed: int, kinds: Sequence[Kind], *, every: float, lease: float) -> Iterator[Fault]:
    """Yields faults without end, one about `every` so many seconds; some overlap, but not on one target.

    Every kind comes once before any comes again. lease: the seconds after which a silent scheduler loses it.
    """
    random, free_at, at = Random(f"faults {seed}"), dict[str, float](), every
    for kind in _in_turn(random, kinds):
        target = random.choice(_TARGETS.get(kind, ("database",)))
        at = max(at, free_at.get(target, 0.0))
        lasts = 0.0 if kind in _AT_ONCE else random.uniform(0.5, 2.0)
        if kind is Kind.STOP_SCHEDULER:
            lasts = lease * random.uniform(1.2, 1.5) + _SECONDS_TO_SEE
        free_at[target] = at + lasts + every
        ahead = random.choice((-1, 1)) * 10 ** random.uniform(0.0, _LONGEST_STEP)
        yield Fault(at=at, seconds=lasts, kind=kind, target=target, ahead=ahead)
        at += every * random.uniform(0.5, 1.5)


def commands(seed: int, *, every: float) -> Iterator[Command]:
    """Yields commands without end, one about `every` so many seconds."""
    random, at = Random(f"commands {seed}"), 0.0
    while True:
        at += every * random.uniform(0.2, 1.8)
        verb, back = random.choice(_VERBS), min(int(random.expovariate(1 / 4)), 60)
        workers, priority = random.randint(1, 3), random.randint(-2, 2)
        yield Command(at=at, verb=verb, back=back, workers=workers, priority=priority)


def overlap(intervals: Sequence[tuple[float, float]]) -> bool:
    """
    >>> overlap([(1, 2), (0, 1)]), overlap([(0, 1.5), (1, 2)])
    (False, True)
    """
    return any(one[1] > other[0] for one, other in pairwise(sorted(intervals)))


def _in_turn(random: Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    while True:
        yield from random.sample(kinds, len(kinds))

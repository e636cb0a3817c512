"""What a job is and which states it may pass through. Pure: no database, no clock of its own."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from training.protocol import Failure, Progress
from training.spec import Resources, Spec


class State(enum.StrEnum):
    """Where a job stands. `TRANSITIONS` says what may follow what."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    PREEMPTING = "preempting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return not TRANSITIONS[self]


_ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSING, State.QUEUED, *_ENDS}),
    State.RUNNING: frozenset({State.PAUSING, State.PREEMPTING, State.QUEUED, *_ENDS}),
    State.PREEMPTING: frozenset({State.QUEUED, State.PAUSING, *_ENDS}),
    State.PAUSING: frozenset({State.PAUSED, *_ENDS}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""From each state, the states that may follow it.

      wait                        hold workers
    ┌────────┐  a   ┌──────────┐  b   ┌─────────┐  f   ┌────────────┐
    │ queued │ ───► │ starting │ ───► │ running │ ───► │ preempting │
    └────────┘      └──────────┘      └─────────┘      └────────────┘
      ▲  │  ▲            │ d               │ d               │ g
      │  │  └────────────┴─────────────────┴─────────────────┘
    k │  │ i             │ h               │ h               │ h
      │  ▼               └─────────────────┼─────────────────┘
    ┌────────┐           j                 ▼
    │ paused │ ◄───────────────────── ┌─────────┐
    └────────┘                        │ pausing │
                                      └─────────┘
    c. from those that wait: cancelled     e. from those that hold workers: succeeded | failed | cancelled

a. The scheduler found room for the whole gang; the attempt's number, its first start and its workers are
   in the row before anything is launched.
b. The attempt trains.
c. A job that waits or is paused is cancelled in the row: there is nothing to stop.
d. The attempt lost a machine, or cannot start again where it is, and retries are left: the next attempt
   goes on from the last checkpoint.
e. Also straight from starting: a short attempt may end between two looks at it. An attempt that was asked
   to stop may come to its end first: then that is the job's.
f. The scheduler wants it to go on with more or fewer workers. Its least share stays its own meanwhile.
g. The attempt has saved itself and ended, or was lost: either way the next one goes on from the last
   checkpoint, and no retry is used up.
h. Asked to pause: the attempt is asked to save itself and to end. A preemption may become a pause.
i. Asked to pause while it waits: it is held at once.
j. As g. What holds workers until here is free.
k. Asked to resume: it waits in its old place, by priority and age.

A rank that fails moves the job nowhere while retries are left: all ranks are started again on the same
machines from the last checkpoint (`Store.restart`), which is the attempt's next start.

What is asked of an attempt that shall stop is the same whatever the reason; its meaning is the row's state.
"""

ACTIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.PREEMPTING})
"""States in which a job holds its share of the cluster."""

STOPPING = frozenset({State.PAUSING, State.PREEMPTING})
"""States in which the attempt has been asked, or is going to be, to save itself and to end."""

ENDED = frozenset(state for state in State if state.ended)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u; sorts as ASCII does


@dataclass(frozen=True, kw_only=True)
class Run:
    """The job's, in the tracking server."""

    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the queue as one reader saw it; `Store.move` checks that it still stands so."""

    id: str
    name: str
    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    """Why it failed: type, message, rank, log_tail, and step where it is known."""
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any]
    """The whole spec with its defaults, as JSON has it."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    """Number of the latest placement, from 1; 0 before the first."""
    start: int = 0
    """Number of the latest start within the attempt, from 1; 0 before the first attempt, and after one of a
    version that counted no starts.
    """
    failures: int = 0
    """Starts lost so far, in all attempts, to be held against `spec.retries`."""
    last_failure: Failure | None = None
    """To know it when it comes again."""
    restarts: tuple[str, ...] = ()
    """Why the attempt was started again, once for each time."""
    progress: Progress | None = None
    """As the latest attempt that has come to a step told it last. Stays when the job has ended."""
    workers: int | None = None
    """Workers granted to the attempt; None while the job waits."""
    wanted_workers: int | None = None
    """What somebody asked for since, within `resources.workers`: the most that it is granted from then on."""
    grows_after: datetime | None = None
    """Until then the scheduler does not stop it only to give it more workers."""
    preempted_at: datetime | None = None
    """When the scheduler asked it to stop; None once it has started again."""
    cancel_requested_at: datetime | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    archived_at: datetime | None = None
    """When its log and its run's end were written to the tracking server."""

    @property
    def run(self) -> Run | None:
        if self.experiment_id is None or self.run_id is None:
            return None
        return Run(experiment_id=self.experiment_id, run_id=self.run_id)

    @cached_property
    def resources(self) -> Resources:
        return Resources.model_validate(self.spec["resources"])

    @property
    def elastic(self) -> bool:
        """Whether the spec leaves open how many workers it gets."""
        return self.resources.min_workers < self.resources.max_workers

    @property
    def most_workers(self) -> int:
        return self.resources.max_workers if self.wanted_workers is None else self.wanted_workers

    @property
    def stopping(self) -> bool:
        """Whether its attempt is to end soon, whoever wants that."""
        return self.state in STOPPING or self.cancel_requested_at is not None

    @property
    def worker_step(self) -> int:
        """Workers are granted in multiples of this: groups of normalisation must come out whole."""
        group = self.spec.get("norm", {}).get("group")
        return group if isinstance(group, int) else 1


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_job(spec: Spec, *, created_at: datetime) -> Job:
    """A job at the end of the queue, with an id of its own."""
    return Job(
        id=new_id(created_at),
        name=spec.name,
        state=State.QUEUED,
        reason="not scheduled yet",
        priority=spec.priority,
        labels=dict(spec.labels),
        spec=spec.model_dump(mode="json"),
        created_at=created_at,
    )


def new_id(created_at: datetime) -> str:
    """21 characters that sort by creation time and are safe in URLs, file names, Ray ids and labels:
    "j", the microseconds since the epoch in 11 digits of base 32, and 45 random bits.
    """
    elapsed = created_at - datetime.fromtimestamp(0, UTC)
    microseconds = (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    return "j" + _base32(microseconds, 11) + _base32(secrets.randbits(45), 9)


def is_id(text: str) -> bool:
    """Whether `new_id` could have made it."""
    return len(text) == 21 and text[0] == "j" and set(text[1:]) <= set(_ALPHABET)


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(digits)))

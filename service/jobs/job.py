"""A job, its states and the transitions between them. Pure: no database, no clock."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from service.jobs.expected import ExpectedStart
from training.protocol import Failure, Progress
from training.spec import Resources, Spec, TimeLimit


class State(enum.StrEnum):
    """The state of a job. `TRANSITIONS` lists which state may follow which."""

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
        return self in _ENDS


_ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSING, State.QUEUED, *_ENDS}),
    State.RUNNING: frozenset({State.PAUSING, State.PREEMPTING, State.QUEUED, *_ENDS}),
    State.PREEMPTING: frozenset({State.QUEUED, State.PAUSING, *_ENDS}),
    State.PAUSING: frozenset({State.PAUSED, *_ENDS}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
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
    l. failed | cancelled: queued

a. The scheduler found room for the whole gang. The attempt's number, its first start and its workers are
   written to the row before anything is launched.
b. The attempt trains.
c. A job that waits or is paused is cancelled in the row alone: there is nothing to stop.
d. The attempt lost a machine, or cannot restart in place, or has to wait after repeated failures
   (`service.jobs.failures`), and retries are left: the next attempt resumes from the last checkpoint.
e. Also directly from starting, because a short attempt may end between two rounds. An attempt that was asked
   to stop may finish first; the job then ends with the attempt's outcome.
f. The scheduler wants to change its number of workers. Its minimum share stays reserved for it meanwhile.
g. The attempt has saved a checkpoint and ended, or was lost. Either way the next one resumes from the last
   checkpoint, and no retry is used.
h. Pause requested: the attempt is asked to save a checkpoint and end. A preemption may become a pause.
i. Pause requested while the job waits: it is paused at once.
j. As g. The workers that the job held are free from here on.
k. Resume requested: the job returns to its old position in the queue, by priority and age.
l. Retry requested: all retries are its again, and it resumes from the last checkpoint or, if that is asked
   for, begins from step 0. Not of a job that succeeded or is being deleted.

A rank that fails does not change the job's state while retries are left: all ranks restart on the same
machines from the last checkpoint (`Store.restart`). That is the attempt's next start.

Every attempt that has to stop is asked the same way. The row's state says why: pause, preemption or cancel.
"""

ACTIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.PREEMPTING})
"""States in which a job holds its share of the cluster."""

STOPPING = frozenset({State.PAUSING, State.PREEMPTING})
"""States in which the attempt has been, or will be, asked to save a checkpoint and end."""

ENDED = frozenset(state for state in State if state.ended)

JOB_PREFIX = "j"
"""The first character of a job's id, which tells it from that of a sweep."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u; sorts as ASCII does


BY_ITSELF, BY_SCHEDULER, BY_TIME_LIMIT = "job", "scheduler", "time limit"
"""Who ended a job, if no user did: its own code, the scheduler that gave it up, or its time limit."""

NO_USERS = frozenset({BY_ITSELF, BY_SCHEDULER, BY_TIME_LIMIT})
"""Names that no user can have."""


class Removed(enum.IntFlag):
    """What retention has removed of an ended job."""

    NOTHING = 0
    OTHER_CHECKPOINTS = 1
    """All except the best and the last."""
    CHECKPOINTS = 2
    LOGS = 4
    SPOOL = 8
    CODE = 16

    @property
    def names(self) -> list[str]:
        """The names of its members, in lower case."""
        return [str(each.name).lower() for each in self]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The job's run in the tracking server."""

    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the queue as one reader saw it. `Store.move` checks that it has not changed since."""

    id: str
    name: str
    state: State
    reason: str = ""
    error: dict[str, Any] | None = None
    """Why it failed: kind (`FailureClass`), type, message, rank, log_tail, and the step if known."""
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any]
    """The complete spec as JSON, defaults included."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    """Number of the latest attempt (one placement of the gang), from 1; 0 before the first."""
    start: int = 0
    """Number of the latest start within the attempt, from 1; 0 before the first attempt, and for an attempt
    of a version that did not count starts.
    """
    failures: int = 0
    """Retries used so far, in all attempts together; `spec.retries` limits it."""
    last_failure: Failure | None = None
    """The last failure, to recognise it when it repeats."""
    failures_in_row: int = 0
    """Starts lost without progress in between."""
    backoff_seconds: float = 0.0
    """How long it waits before its next start, after a failure; 0.0: it need not wait."""
    not_before: datetime | None = None
    """When that wait ends, by the wall clock of the scheduler that began it."""
    restarts: tuple[str, ...] = ()
    """Why the attempt was restarted, one entry per restart."""
    progress: Progress | None = None
    """The last progress reported by the latest attempt that reached a step. Kept after the job ends."""
    workers: int | None = None
    """Workers granted to the attempt; None while the job waits."""
    wanted_workers: int | None = None
    """The number set by the last resize, within `resources.workers`: the maximum granted from then on."""
    ran_seconds: float = 0.0
    """How long its earlier starts ran, all together; `spec.time_limit.run` limits it."""
    grows_after: float | None = None
    """Before this time of the queue's clock the scheduler does not preempt it only for more workers."""
    waits_until: float | None = None
    """When its time limit in the queue passes, by the queue's clock; None until the scheduler has seen it."""
    preempted_at: datetime | None = None
    """When the scheduler preempted it; None once it has started again."""
    cancel_requested_at: datetime | None = None
    ended_by: str | None = None
    """Who ended it: BY_ITSELF, BY_SCHEDULER, BY_TIME_LIMIT or the name of a user, "" if that is not known;
    None if it has not ended, or an earlier version ended it.
    """
    last_command: Mapping[str, Any] | None = None
    """The last command that changed it: command, by ("" if not known), at (ISO 8601)."""
    from_scratch: bool = False
    """A retry from step 0 was asked for: its checkpoints have to be removed before it starts again."""
    removed: Removed = Removed.NOTHING
    """What retention has removed of it, or is about to."""
    removing: Removed = Removed.NOTHING
    """Which of that is still being removed."""
    deleted_at: datetime | None = None
    """When it was marked to be deleted; the scheduler then removes all of it."""
    experiment_id: str | None = None
    run_id: str | None = None
    archived_at: datetime | None = None
    """When its logs and its run's end status were written to the tracking server. Of a job that was retried:
    its run has to be reopened.
    """
    sweep_id: str | None = None
    """The sweep that it is a job of; None for a job of its own."""
    point: int | None = None
    """Its number in the sweep, from 1."""
    user: str | None = None
    """The user of the API key with which it was submitted; None for the server's own key or token."""
    expected: ExpectedStart | None = None
    """When it is expected to start; None unless it waits and the scheduler has estimated it."""
    weights_sha256: str | None = None
    """Of the weights that it has delivered, as `training.model.weights` computes it; None if it has not
    succeeded, runs a script, or an earlier version trained it.
    """

    @property
    def run(self) -> Run | None:
        if self.experiment_id is None or self.run_id is None:
            return None
        return Run(experiment_id=self.experiment_id, run_id=self.run_id)

    @property
    def experiment(self) -> str:
        return str(self.spec["tracking"]["experiment"])

    @property
    def commanded_by(self) -> str:
        """The user who gave the last command; "" if that is not known."""
        return str((self.last_command or {}).get("by", ""))

    @cached_property
    def resources(self) -> Resources:
        return Resources.model_validate(self.spec["resources"])

    @cached_property
    def time_limit(self) -> TimeLimit:
        return TimeLimit.model_validate(self.spec.get("time_limit", {}))

    @property
    def runs_script(self) -> bool:
        """Whether it runs a script, whose steps and checkpoints are not known, in place of a training."""
        return self.spec.get("script") is not None

    @property
    def elastic(self) -> bool:
        """Whether the spec gives a range of workers."""
        return self.resources.min_workers < self.resources.max_workers

    @property
    def most_workers(self) -> int:
        return self.resources.max_workers if self.wanted_workers is None else self.wanted_workers

    @property
    def stopping(self) -> bool:
        """Whether its attempt has to stop: for a pause, a preemption or a cancel."""
        return self.state in STOPPING or self.cancel_requested_at is not None

    @property
    def worker_step(self) -> int:
        """Workers are granted in multiples of this, because normalisation groups must be complete."""
        group = self.spec.get("norm", {}).get("group")
        return group if isinstance(group, int) else 1


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_job(spec: Spec, *, created_at: datetime, user: str | None = None) -> Job:
    """Returns a queued job with a new id. user: of the key with which it was submitted."""
    return Job(
        id=new_id(created_at),
        name=spec.name,
        state=State.QUEUED,
        reason="not scheduled yet",
        priority=spec.priority,
        labels=dict(spec.labels),
        spec=spec.model_dump(mode="json"),
        created_at=created_at,
        user=user,
    )


def new_id(created_at: datetime, prefix: str = JOB_PREFIX) -> str:
    """Returns 21 characters that sort by creation time and are safe in URLs, file names, Ray ids and labels:
    the prefix, the microseconds since the epoch in 11 digits of base 32, and 45 random bits.
    """
    return _id(prefix, created_at, secrets.randbits(45))


def first_id(created_at: datetime) -> str:
    """Returns the lowest id that a job created at this time can have."""
    return _id(JOB_PREFIX, created_at, 0)


def _id(prefix: str, created_at: datetime, number: int) -> str:
    elapsed = created_at - datetime.fromtimestamp(0, UTC)
    microseconds = (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    return prefix + _base32(min(max(microseconds, 0), 32**11 - 1), 11) + _base32(number, 9)


def is_id(text: str, prefix: str = JOB_PREFIX) -> bool:
    """Returns whether `new_id` could have returned `text`."""
    return len(text) == 21 and text[0] == prefix and set(text[1:]) <= set(_ALPHABET)


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(digits)))

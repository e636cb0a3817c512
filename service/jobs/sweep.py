"""A sweep and its state, which follows from its jobs. Pure: no database, no clock."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.jobs.job import Run, State, is_id, new_id
from training.protocol import Progress
from training.spec.sweep import SweepPlan, SweepPoint

SWEEP_PREFIX = "s"
"""The first character of a sweep's id, which tells it from that of a job."""


class SweepState(enum.StrEnum):
    """The state of a sweep.

    running: some jobs have not ended, whether any has started or not. paused: as running, but none starts.
    Once all jobs have ended: succeeded if all of them have; failed if any has; otherwise cancelled.
    """

    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A row of the table of sweeps."""

    id: str
    name: str
    document: dict[str, Any]
    """What was submitted: the spec as it was given, and the plan with its defaults."""
    points: tuple[dict[str, Any], ...]
    """The values of each point, by dotted key; the first is of the job whose `point` is 1."""
    max_running: int | None
    created_at: datetime
    paused_at: datetime | None = None
    """When it was paused; None if it is not."""
    cancel_requested_at: datetime | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    archived_at: datetime | None = None
    """When its run's end status was written to the tracking server."""
    user: str | None = None
    """The user of the API key with which it was submitted; None for the server's own key or token."""

    @property
    def run(self) -> Run | None:
        if self.experiment_id is None or self.run_id is None:
            return None
        return Run(experiment_id=self.experiment_id, run_id=self.run_id)

    def state(self, jobs: Collection[State]) -> SweepState:
        """Returns its state. jobs: the states that its jobs have; how many have each does not matter."""
        if not all(state.ended for state in jobs):
            return SweepState.RUNNING if self.paused_at is None else SweepState.PAUSED
        if State.FAILED in jobs:
            return SweepState.FAILED
        return SweepState.CANCELLED if State.CANCELLED in jobs else SweepState.SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class SweepLimits:
    """What a sweep allows the scheduler. max_running: of its jobs at once; None: no limit."""

    max_running: int | None = None
    paused: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What is shown of a job of a sweep beside the others: a part of `Job`, without its spec."""

    id: str
    name: str
    state: State
    reason: str
    progress: Progress | None
    finished_at: datetime | None
    point: int


def new_sweep(
    name: str,
    spec: Mapping[str, Any],
    plan: SweepPlan,
    points: Sequence[SweepPoint],
    *,
    created_at: datetime,
    user: str | None = None,
) -> Sweep:
    """Returns a sweep with a new id. spec: as it was given. points: what it was expanded into.

    user: of the key with which it was submitted.
    """
    return Sweep(
        id=new_id(created_at, SWEEP_PREFIX),
        name=name,
        document={"spec": dict(spec), **plan.model_dump(mode="json")},
        points=tuple(dict(point.values) for point in points),
        max_running=plan.max_running,
        created_at=created_at,
        user=user,
    )


def is_sweep_id(text: str) -> bool:
    """Returns whether `text` could be the id of a sweep."""
    return is_id(text, SWEEP_PREFIX)

"""The service's answers about sweeps as typed models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service.client.models import ENDED, Answer, Progress, Run


class SweepPoint(Answer):
    """A point of a sweep, and its job.

    number: counted from 1. values: of the swept keys, by dotted key of the spec. job: the job's id. state,
    reason, progress: as of a Job. metrics: the latest value of train_loss and of each metric of validation
    and test; without these, of all metrics. None for one that is not finite.
    """

    number: int
    values: dict[str, Any]
    job: str
    name: str
    state: str
    reason: str | None = None
    progress: Progress | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)


class Sweep(Answer):
    """Several jobs from one spec, as they were when the server answered.

    state: "running" and "paused" while jobs have not ended, whether any has started or not; "succeeded" if
    all jobs have, "failed" if any has, otherwise "cancelled". reason: what holds it up, or how it ended.
    jobs: their number. counts: how many have which state. max_running: how many may run at once; None: no
    limit. keys: those of the spec that it sweeps. plan: its grid, random and repeat. points: empty in a list
    of sweeps. finished_at: when its last job ended. mlflow: the parent of its jobs' runs; None before one
    starts. user: of the API key that submitted it; None: of none.
    """

    id: str
    name: str
    state: str
    reason: str | None = None
    jobs: int
    counts: dict[str, int] = Field(default_factory=dict)
    max_running: int | None = None
    keys: list[str] = Field(default_factory=list)
    plan: dict[str, Any] = Field(default_factory=dict)
    points: list[SweepPoint] = Field(default_factory=list)
    created_at: datetime
    finished_at: datetime | None = None
    mlflow: Run | None = None
    user: str | None = None

    @property
    def ended(self) -> bool:
        """Whether all its jobs have ended: it changes only if one is retried or deleted."""
        return self.state in ENDED


class SweepPage(Answer):
    """One page of sweeps; `next_cursor` is None on the last."""

    items: list[Sweep]
    next_cursor: str | None = None


class PlannedPoint(Answer):
    """A point that a sweep would have: its number, the values of the swept keys, the name of its job."""

    number: int
    values: dict[str, Any]
    name: str


class SweepValidation(Answer):
    """What a sweep would run. notes: sentences about what becomes of arguments of Lightning."""

    valid: bool
    points: list[PlannedPoint]
    notes: list[str] = Field(default_factory=list)

"""What the service answers, typed. Fields that a newer server adds are kept, not refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """As the server sent it: times in ISO 8601, unknown fields included."""
        return self.model_dump(mode="json")


class Progress(Answer):
    """Where a job stands. Steps are the optimizer's, from 1; epochs count from 0."""

    step: int
    total_steps: int | None = None
    epoch: int | None = None
    eta_seconds: float | None = None


class Failure(Answer):
    """Why a job failed: what happened, on which rank, in which step, and the end of that rank's log.

    type: of an exception its class, of a signal its name, else Exited (with `code`), OutOfMemory, Hung, Lost
    or StartTimeout. step: from 1; None: before the first.
    """

    type: str | None = None
    message: str = ""
    rank: int | None = None
    step: int | None = None
    code: int | None = None
    signal: str | None = None
    log_tail: str | None = None


class Run(Answer):
    """The job's run in MLflow; `url` is for a browser."""

    experiment_id: str
    run_id: str
    url: str | None = None


class Job(Answer):
    """One job. `state` is text, not an enum, so that this client outlives a server with more states."""

    id: str
    name: str
    state: str
    reason: str | None = None
    priority: int = 0
    labels: dict[str, str] = {}
    spec: dict[str, Any] = {}
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    workers: int | None = None
    wanted_workers: int | None = None
    progress: Progress | None = None
    metrics: dict[str, float | None] = {}
    error: Failure | None = None
    mlflow: Run | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """How long it has been running, or ran; None before it started."""
        if self.started_at is None:
            return None
        return ((self.finished_at or datetime.now(UTC)) - self.started_at).total_seconds()


class Point(Answer):
    """One value of a metric. `timestamp` in milliseconds since the epoch."""

    name: str
    step: int
    value: float | None
    timestamp: int


class LogSource(Answer):
    """Whose lines follow in a log: of an attempt and its rank, None where the server kept one log of all.

    header: what to print before them, where there are others.
    """

    attempt: int
    rank: int | None = None
    header: str | None = None


class LogLine(Answer):
    """A line that a rank of a job has printed. The server may not say which rank it was."""

    line: str
    attempt: int | None = None
    rank: int | None = None


class KeyProblem(Answer):
    """One thing wrong with a request: the key it stands at and what to do about it."""

    key: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Total(Answer):
    """Workers, and what all of them together take."""

    workers: int
    cpus: float | None = None
    gpus: float | None = None


class Validation(Answer):
    """What would become of a spec if it were submitted now.

    `spec` has every default filled in; `shares` are the samples of each worker in a global batch. What
    depends on the cluster is None while the cluster does not answer.
    """

    valid: bool
    spec: dict[str, Any]
    resources: Total
    shares: list[int] | None = None
    fits_now: bool | None = None
    fits_ever: bool | None = None
    reason: str | None = None


class Waiting(Answer):
    """A job in the queue; `position` counts from 1."""

    position: int
    id: str
    name: str
    priority: int = 0
    reason: str | None = None
    needs: Total
    created_at: datetime


class Amount(Answer):
    cpus: float
    gpus: float


class Node(Amount):
    """A machine and everything it has, busy or not."""

    id: str
    address: str


class Cluster(Answer):
    """The machines, what is free on them, and the jobs that hold the rest."""

    nodes: list[Node]
    total: Amount
    free: Amount
    running: list[str] = []


class JobPage(Answer):
    items: list[Job]
    next_cursor: str | None = None


class Points(Answer):
    items: list[Point]


class Queue(Answer):
    items: list[Waiting]


class Upload(Answer):
    digest: str
    size: int

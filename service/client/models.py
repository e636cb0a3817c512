"""The service's answers as typed models. Fields that a newer server adds are kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Answer(BaseModel):
    """Base class of every answer."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as the server sent it: times in ISO 8601, unknown fields included."""
        return self.model_dump(mode="json")


class Progress(Answer):
    """A job's progress. Steps are optimizer steps, counted from 1; epochs are counted from 0."""

    step: int
    total_steps: int | None = None
    epoch: int | None = None
    eta_seconds: float | None = None


class Failure(Answer):
    """Why a job failed: the error, its rank and step, and the end of that rank's log.

    type: the class of the exception, the name of the signal, or Exited (with `code`), OutOfMemory, Hung, Lost
    or StartTimeout. step: counted from 1; None before the first.
    """

    type: str | None = None
    message: str = ""
    rank: int | None = None
    step: int | None = None
    code: int | None = None
    signal: str | None = None
    log_tail: str | None = None


class Run(Answer):
    """The job's MLflow run; `url` opens in a browser."""

    experiment_id: str
    run_id: str
    url: str | None = None


class Job(Answer):
    """One job. `state` is a string, not an enum, so that the client accepts states of a newer server."""

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
        """Whether the job has succeeded, failed or been cancelled."""
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """Seconds from the job's start until its end, or until now; None before it started."""
        if self.started_at is None:
            return None
        return ((self.finished_at or datetime.now(UTC)) - self.started_at).total_seconds()


class Point(Answer):
    """One value of a metric; None if it is not finite. `timestamp` is in milliseconds since the epoch."""

    name: str
    step: int
    value: float | None
    timestamp: int


class LogSource(Answer):
    """The attempt and rank whose log lines follow. `rank` is None if the server kept one log for all ranks.

    header: the line to print before them; None if the log has no other source.
    """

    attempt: int
    rank: int | None = None
    header: str | None = None


class LogLine(Answer):
    """A line that a rank printed. `attempt` and `rank` are None if the server does not say."""

    line: str
    attempt: int | None = None
    rank: int | None = None


class KeyProblem(Answer):
    """One problem with a request: the offending key and what to do about it."""

    key: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Total(Answer):
    """A number of workers, and the CPUs and GPUs that all of them need together."""

    workers: int
    cpus: float | None = None
    gpus: float | None = None


class Validation(Answer):
    """What would happen to a spec if it were submitted now.

    `spec` has every default filled in; `shares` is the number of samples of each worker in a global batch.
    Fields that depend on the cluster are None while it does not answer. `notes` are sentences about what
    becomes of arguments of Lightning that the spec gives.
    """

    valid: bool
    spec: dict[str, Any]
    resources: Total
    shares: list[int] | None = None
    fits_now: bool | None = None
    fits_ever: bool | None = None
    reason: str | None = None
    notes: list[str] = []


class Waiting(Answer):
    """A job in the queue; `position` is counted from 1."""

    position: int
    id: str
    name: str
    priority: int = 0
    reason: str | None = None
    needs: Total
    created_at: datetime


class Amount(Answer):
    """A number of CPUs and GPUs; fractions are possible."""

    cpus: float
    gpus: float


class Node(Amount):
    """A node and its resources, in use or not."""

    id: str
    address: str


class Cluster(Answer):
    """The nodes, their total and free resources, and the ids of the jobs that hold workers."""

    nodes: list[Node]
    total: Amount
    free: Amount
    running: list[str] = []


class JobPage(Answer):
    """One page of jobs; `next_cursor` is None on the last."""

    items: list[Job]
    next_cursor: str | None = None


class Points(Answer):
    """The points of a job's metrics."""

    items: list[Point]


class Queue(Answer):
    """The queued jobs."""

    items: list[Waiting]


class Upload(Answer):
    """An uploaded archive: its digest (SHA-256, hex) and its size in bytes."""

    digest: str
    size: int

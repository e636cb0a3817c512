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
    """A job's progress.

    step: optimizer steps made so far, over all attempts. total_steps: of the whole job; None if the length of
    the data is not known. epoch: counted from 0; None if the server does not say. eta_seconds: estimated
    seconds until the last step; None while there is no estimate.
    """

    step: int
    total_steps: int | None = None
    epoch: int | None = None
    eta_seconds: float | None = None


class Failure(Answer):
    """Why a job failed: the error, its rank and step, and the end of that rank's log.

    type: the class of the exception, the name of the signal, or Exited (with `code`), OutOfMemory, Hung, Lost
    or StartTimeout; None if the server does not say. message: "" if there is none. rank: None if no rank has
    failed. step: the optimizer step, counted from 1; None before the first. code: the exit code; None unless
    `type` is Exited. signal: the signal's name; None unless a signal killed the rank. log_tail: the last
    lines of the rank's log; None if there are none. kind: user_error, out_of_memory, node_lost, hang,
    preempted, infrastructure or time_limit; None if the server does not say.
    """

    kind: str | None = None
    type: str | None = None
    message: str = ""
    rank: int | None = None
    step: int | None = None
    code: int | None = None
    signal: str | None = None
    log_tail: str | None = None


class LastFailure(Answer):
    """The last failure of a job, after which it was started again or given up.

    kind, type: as of a Failure. step: 0 before the first. in_row: the number of failures without progress in
    between, this one included.
    """

    kind: str
    type: str = ""
    step: int = 0
    in_row: int = 0


class Command(Answer):
    """The last command that changed a job. by: the user, "" if not known. at: with a time zone, UTC."""

    command: str
    by: str = ""
    at: datetime


class Run(Answer):
    """The job's MLflow run.

    experiment_id, run_id: MLflow's. url: the run's page, to open in a browser; None if the server has none.
    """

    experiment_id: str
    run_id: str
    url: str | None = None


class ExpectedStart(Answer):
    """When a waiting job is expected to start.

    at: with a time zone, UTC; None: soon, or not known. because: what lets it start then, or why nothing is
    known. at_latest: it may start earlier.
    """

    at: datetime | None = None
    because: str = ""
    at_latest: bool = False


class Job(Answer):
    """One job, as it was when the server answered.

    state: a string, not an enum, so that the client accepts states of a newer server. reason: why the job
    waits, was stopped or ended. priority: higher ones start first. spec: with every default filled in.
    created_at, started_at, finished_at: times with a time zone, UTC; None before the job starts or ends.
    attempt: number of the latest one; 0 before the first. workers: those of the current attempt; None while
    the job waits. wanted_workers: those that a resize asked for; None without a resize. progress: None before
    the first step. metrics: the latest value of each; None for one that is not finite. error: None unless the
    job has failed. mlflow: None before the run is made. sweep: the id of its sweep; None if it is in
    none. failures: retries used so far. last_failure: None if there is none since it was queued or retried.
    not_before: when it may start again after a failure; None if it need not wait. expected_start: None
    unless it waits and the scheduler has estimated it. ended_by: "job",
    "scheduler", "time limit" or the name of a user, "" if that is not known; None if it has not ended.
    last_command: None if no command has changed it. removed: what retention has removed of it. user: of the
    API key that submitted it; None: of none. weights_sha256: of the weights and buffers that it has
    delivered; None if it has not succeeded, runs a script, or an earlier version trained it.
    """

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
    sweep: str | None = None
    failures: int = 0
    last_failure: LastFailure | None = None
    not_before: datetime | None = None
    expected_start: ExpectedStart | None = None
    ended_by: str | None = None
    last_command: Command | None = None
    removed: list[str] = []
    user: str | None = None
    weights_sha256: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has succeeded, failed or been cancelled. Only a retry changes it then."""
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """Seconds from the job's start until its end, or until now; None before it started."""
        if self.started_at is None:
            return None
        return ((self.finished_at or datetime.now(UTC)) - self.started_at).total_seconds()


class JobEvent(Answer):
    """One change of a job, and what the job was after it.

    id: rises with each change. job, name: the job's. type: state, restart, cancel_requested, resize or
    priority; a string, as `state`, so that the client accepts those of a newer server. workers: those of the
    attempt; None while the job waits. wanted_workers: those that a resize asked for; None without a resize.
    at: by the database's clock.
    """

    id: int
    job: str
    name: str = ""
    type: str
    state: str
    reason: str = ""
    attempt: int = 0
    start: int = 0
    workers: int | None = None
    wanted_workers: int | None = None
    priority: int = 0
    at: datetime


class Point(Answer):
    """One value of a metric.

    step: the optimizer step, counted from 1. value: None if it is not finite. timestamp: milliseconds since
    1970-01-01 UTC.
    """

    name: str
    step: int
    value: float | None
    timestamp: int


class Checkpoint(Answer):
    """A checkpoint of a job.

    step: optimizer steps made. epoch: complete epochs; None if an earlier version saved it. saved_at: with a
    time zone, UTC; None as epoch. bytes: the size of all its files. monitor: the metric by which the best one
    is chosen. metric: its value; None if it is not known for these weights. best, last: whether it is this
    one of its job.
    """

    name: str
    step: int
    epoch: int | None = None
    saved_at: datetime | None = None
    bytes: int
    monitor: str | None = None
    metric: float | None = None
    best: bool = False
    last: bool = False


class LogSource(Answer):
    """The attempt and rank whose log lines follow.

    attempt: counted from 1. rank: from 0; None if the server kept one log for all ranks.
    header: the line to print before them; None if the log has no other source.
    """

    attempt: int
    rank: int | None = None
    header: str | None = None


class LogLine(Answer):
    """A line that a rank printed.

    line: without its line break. attempt: counted from 1. rank: from 0. Both are None if the server does not
    say.
    """

    line: str
    attempt: int | None = None
    rank: int | None = None


class KeyProblem(Answer):
    """One problem with a request.

    key: dotted path of the offending key; "" if it concerns the whole request. message: what is wrong and
    what to do.
    """

    key: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Total(Answer):
    """A number of workers, and what all of them need together.

    cpus, gpus: may be fractions; None if the server does not say. memory: bytes; None: not reserved.
    """

    workers: int
    cpus: float | None = None
    gpus: float | None = None
    memory: int | None = None


class Validation(Answer):
    """What would happen to a spec if it were submitted now.

    valid: always True, because a spec that is not valid raises RequestError. spec: with every default filled
    in. resources: what the job would get now; if it has to wait, what it needs. shares: the number of samples
    of each worker in a global batch; None for very many workers. fits_now, fits_ever: whether it would start
    at once, and whether it fits on the empty cluster; None while the cluster does not answer. reason: why it
    would wait. expected_start: when it would start; None if at once.
    notes: sentences about what becomes of arguments of Lightning that the spec gives.
    """

    valid: bool
    spec: dict[str, Any]
    resources: Total
    shares: list[int] | None = None
    fits_now: bool | None = None
    fits_ever: bool | None = None
    reason: str | None = None
    expected_start: ExpectedStart | None = None
    notes: list[str] = []


class Version(Answer):
    """The versions in the API's environment: of Python and of the packages that have to match."""

    versions: dict[str, str]


class JobPage(Answer):
    """One page of jobs; `next_cursor` is None on the last."""

    items: list[Job]
    next_cursor: str | None = None


class Points(Answer):
    """The points of a job's metrics."""

    items: list[Point]


class Checkpoints(Answer):
    """The checkpoints of a job."""

    items: list[Checkpoint]


class File(Answer):
    """A file that a job's own code has written.

    path: as the job wrote it, with /. saved_at: when it was last changed, with a time zone, UTC.
    """

    path: str
    bytes: int
    saved_at: datetime


class Files(Answer):
    """The files that a job's own code has written. left_out: the number of entries that are not listed."""

    items: list[File]
    left_out: int = 0


class Secret(Answer):
    """A secret, without its value.

    source: "operator" or "stored". updated_at: when it was set, UTC; None for the operator's.
    """

    name: str
    source: str
    updated_at: datetime | None = None


class SecretPage(Answer):
    """All secrets."""

    items: list[Secret]


class Upload(Answer):
    """An uploaded archive: its digest (SHA-256, hex) and its size in bytes."""

    digest: str
    size: int


class CleanupItem(Answer):
    """What goes of one job, or a code archive.

    what: as "logs" or "checkpoints". job, name: of the job; None for code. code: the digest of the archive;
    None for what a job has.
    """

    what: str
    job: str | None = None
    name: str | None = None
    code: str | None = None
    bytes: int


class CleanupPage(Answer):
    """A page of what retention removes.

    policy: days after a job's end when it loses what; None: never. bytes: of all items of the page. problems:
    why something else could not be removed or measured. next_cursor: None on the last page.
    """

    policy: dict[str, float | None] = {}
    items: list[CleanupItem] = []
    bytes: int = 0
    problems: list[str] = []
    next_cursor: str | None = None

"""Messages between the service, host agents and ranks: orders, progress, exit records, reserved names.

    service ── Order ──► host agent ── forks ──► ranks
    service ◄── StartStatus ── host agent ◄── Progress, ExitRecord ── ranks

All of it is plain data that can be sent as JSON. The API process imports this module, so it needs no library.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

RESERVED_PACKAGES = frozenset({"sync_bn", "training", "service"})
"""Top-level package names that uploaded code may not use, because they are this project's own."""

JOB_TAG = "syncbn.job_id"
"""The MLflow tag that holds the id of a run's job."""

SWEEP_TAG = "syncbn.sweep_id"
"""The MLflow tag that holds the id of the sweep whose run it is, the parent of its jobs' runs."""

LONGEST_MESSAGE, LONGEST_TRACE, LONGEST_TYPE = 4_000, 20_000, 200
LONGEST_TAIL, TAIL_LINES, LONGEST_METRICS = 8_000, 30, 200
"""Limits of exit records and progress, in characters, lines and metrics; logs and MLflow have the rest."""

HANG_EXIT_CODE = 75
"""Exit code of a rank that its watchdog has killed."""


@dataclass(frozen=True, kw_only=True)
class RankAssignment:
    """The position of one rank. gpus: the ids of its GPUs, in the form of CUDA_VISIBLE_DEVICES."""

    rank: int
    local_rank: int
    node_rank: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """One start of an attempt, for one host. Launching it twice is harmless.

    attempt: its name, unique in the cluster. start: from 1; each restart in place adds 1.
    spec: the job's Spec as JSON. ranks: those to fork on this host. world_size: their number on all hosts.
    hosts: the number of hosts with ranks.
    rendezvous: "ADDRESS:PORT" at which rank 0 listens; None: all ranks are on this host.
    folder: the run folder, on a file system that all hosts share.
    checkpoints: URL of the checkpoints in object storage; None: they are in `folder`.
    start_from: the folder or URL of the checkpoints, or the file, that the spec's `start_from` names.
    code: digest of the job's uploaded code, which the agent must have; None: there is none.
    code_folder: a folder on this host to use in place of uploaded code.
    mlflow_uri, run_id: the run to track in MLflow; None: not tracked there.
    output: the folder for metrics.jsonl, model.pt and figures; None: not written.
    curves_only: validate on one batch; skip the test and the export of the model.
    last_bit: change the last bit of each initial parameter, to see what rounding alone does to a training.
    restarts: the reasons for the restarts of the attempt so far.
    seconds_left: after this time the ranks save a checkpoint and end; None: no limit.
    variables: the job's own environment variables. secrets: those that must not be stored, logged or shown.
    packages: the folder of the job's installed requirements, which the agent fills in; None: it has none.
    user: the user of the service whose job it is; None: it has none.
    """

    attempt: str
    start: int = 1
    spec: dict[str, Any]
    ranks: tuple[RankAssignment, ...]
    world_size: int
    hosts: int = 1
    folder: str
    rendezvous: str | None = None
    checkpoints: str | None = None
    start_from: str | None = None
    code: str | None = None
    code_folder: str | None = None
    mlflow_uri: str | None = None
    run_id: str | None = None
    output: str | None = None
    curves_only: bool = False
    last_bit: bool = False
    restarts: tuple[str, ...] = ()
    seconds_left: float | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    packages: str | None = None
    user: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ranks = tuple(RankAssignment(**{**each, "gpus": tuple(each["gpus"])}) for each in data["ranks"])
        return cls(**{**data, "ranks": ranks, "restarts": tuple(data["restarts"])})

    @property
    def number(self) -> int:
        """The number of the attempt within its job, from 1."""
        return attempt_number(self.attempt)

    @property
    def runs_script(self) -> bool:
        """Whether the ranks run a script in place of a training."""
        return self.spec.get("script") is not None

    @property
    def grace_seconds(self) -> float:
        """The time that a script has between SIGTERM and SIGKILL."""
        return float(self.spec["script"]["grace_seconds"])


def attempt_name(job_id: str, number: int) -> str:
    """Returns the cluster-wide name of a job's attempt, JOB-NUMBER."""
    return f"{job_id}-{number}"


def attempt_number(name: str) -> int:
    """Returns the number in the name of an attempt, from 1."""
    return int(name.rpartition("-")[2])


def log_file(run_folder: str | Path, number: int, rank: int) -> Path:
    """Returns the path of a rank's log, which has the output of all starts of an attempt. Append-only."""
    return log_folder(run_folder, number) / f"rank-{rank}.log"


def log_folder(run_folder: str | Path, number: int) -> Path:
    """Returns the path of the folder with the logs of attempt `number`."""
    return Path(run_folder) / "logs" / f"attempt-{number}"


def exit_file(run_folder: str | Path, number: int, start: int, rank: int) -> Path:
    """Returns the path of a rank's exit record for one start of attempt `number`."""
    return Path(run_folder) / "exits" / f"attempt-{number}" / f"start-{start}-rank-{rank}.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run.

    step: the last optimizer step, from 1. total_steps: None if unknown. epoch: the current one, from 0.
    eta_seconds: estimated seconds until the end; None if unknown.
    metrics: the latest value of each metric; at most LONGEST_METRICS of them.
    """

    step: int
    total_steps: int | None
    epoch: int
    eta_seconds: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


class Point(NamedTuple):
    """One value of a metric. timestamp: milliseconds since 1970. step: the optimizer's, from 1."""

    name: str
    value: float
    timestamp: int
    step: int


class Exit(enum.StrEnum):
    """How a rank ended."""

    FINISHED = "finished"
    """It finished its training."""
    STOPPED = "stopped"
    """It was asked to stop, and the run has a checkpoint of `step`."""
    ERROR = "error"
    """It raised an exception: `type`, `message`, `trace`."""
    EXITED = "exited"
    """The process exited with `code`."""
    SIGNAL = "signal"
    """A signal killed it; `type` is the signal's name."""
    OUT_OF_MEMORY = "out of memory"
    """The kernel killed it because memory ran out."""
    HUNG = "hung"
    """It, or another rank, made no progress for too long."""
    ENDED = "ended"
    """Its agent killed it after another rank's failure or by order. Never the cause of a failure."""
    TIMED_OUT = "timed out"
    """The job's time limit was reached; the rank was stopped as for STOPPED, or killed."""
    LOST = "lost"
    """Its host, or the agent there, is gone."""


@dataclass(frozen=True, kw_only=True)
class ExitRecord:
    """How and when one rank ended. The rank writes it or, if it was killed, its agent does.

    rank: None if the failure belongs to no single rank.
    step: the last step of a finished rank; for a stopped one the step from which the run resumes; otherwise
    the step in progress, from 1; 0 before the first.
    type, message, trace: see Exit. code: the exit code, for EXITED. when: seconds since the epoch.
    lost_peer: the rank failed only because another rank was gone. repeats: a restart would fail as well.
    log_tail: the last lines of the rank's log, for a failure. progress: the last that the rank reported.
    weights_sha256: of the delivered model, by rank 0 of a finished training; see `training.model.weights`.
    """

    rank: int | None
    kind: Exit
    step: int = 0
    type: str = ""
    message: str = ""
    code: int | None = None
    when: float = 0.0
    lost_peer: bool = False
    repeats: bool = False
    trace: str = ""
    log_tail: str = ""
    progress: Progress | None = None
    weights_sha256: str | None = None
    counts_steps: bool = True
    """False for the rank of a script, whose steps are not known."""
    blamed_rank: int | None = None
    """For HUNG: the rank that the others waited for, if it is a single one."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        progress = data.get("progress")
        known = {**data, "kind": Exit(data["kind"])}
        return cls(**{**known, "progress": Progress.from_json(progress) if progress else None})

    @property
    def failed(self) -> bool:
        """Whether the end is a failure: neither finished, nor stopped, nor killed by the agent."""
        return self.kind not in {Exit.FINISHED, Exit.STOPPED, Exit.ENDED}

    @property
    def headline(self) -> str:
        """One line that names the rank, what happened and at which step."""
        rank = "a rank" if self.rank is None else f"rank {self.rank}"
        where = f" at step {self.step}" if self.step else " before the first step" * self.counts_steps
        said = f": {self.message.partition(chr(10))[0]}" if self.message else ""
        what = {
            Exit.FINISHED: "finished",
            Exit.STOPPED: f"saved a checkpoint and stopped{where}",
            Exit.ERROR: f"failed{where}: {self.type}: {self.message.partition(chr(10))[0]}",
            Exit.EXITED: f"exited with code {self.code}{where}{said}",
            Exit.SIGNAL: f"was killed by {self.type}{where}",
            Exit.OUT_OF_MEMORY: f"was killed by SIGKILL{where}{said}",
            Exit.TIMED_OUT: f"was stopped{where}{said}",
            Exit.HUNG: f"hung{where}: {self.message.partition(chr(10))[0]}",
            Exit.ENDED: "was ended by its agent",
            Exit.LOST: f"was lost{where}: {self.message.partition(chr(10))[0]}",
        }
        return f"{rank} {what[self.kind]}" if self.kind is not Exit.HUNG else self.message.partition("\n")[0]


@dataclass(frozen=True, kw_only=True)
class StartStatus:
    """The state of one start of an attempt on one host.

    ranks: those on this host. joined: all of them have joined the process group. progress: rank 0's, if it is
    on this host. exits: the records of the ranks that have ended. seconds: time since the launch; once it has
    ended, how long it took. installing: what it waits for before its ranks are forked, or "". prepared: it
    waits for nothing but `launch`.
    """

    attempt: str
    start: int
    ranks: tuple[int, ...]
    joined: bool = False
    progress: Progress | None = None
    exits: tuple[ExitRecord, ...] = ()
    seconds: float = 0.0
    installing: str = ""
    prepared: bool = False

    @property
    def ended(self) -> bool:
        """Whether every rank on this host has ended, and so have all processes that they started."""
        return len(self.exits) == len(self.ranks)


@dataclass(frozen=True, kw_only=True)
class News:
    """The state of an agent. version: increases with every change. warm: its fork server is ready."""

    version: int
    starts: tuple[StartStatus, ...]
    warm: bool = True


class Superseded(Exception):
    """The order comes from a scheduler that another one has superseded."""


class CodeMissing(Exception):
    """The agent does not have the code archive that an order names."""


def signal_name(number: int) -> str:
    """Returns the name of a signal: SIGKILL for 9; "signal 64" if it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def cause(exits: Iterable[ExitRecord]) -> ExitRecord | None:
    """Returns the failure that caused the others; None if no rank failed.

    Order of preference: a rank's own exception; the rank blamed for a hang; any hung rank; a rank that was
    killed or exited; a rank that only lost its peer. Among equals, the earliest.
    """
    failed = [record for record in exits if record.failed]
    for wanted in (_is_own_error, _is_blamed, _is_hung, lambda record: not record.lost_peer, lambda _: True):
        if chosen := [record for record in failed if wanted(record)]:
            return min(chosen, key=_told_best)
    return None


def _told_best(record: ExitRecord) -> tuple[bool, float]:
    """Of ranks stopped by the time limit only rank 0 knows the step."""
    return record.kind is Exit.TIMED_OUT and not record.step, record.when


def _is_own_error(record: ExitRecord) -> bool:
    return record.kind is Exit.ERROR and not record.lost_peer


def _is_blamed(record: ExitRecord) -> bool:
    return record.kind is Exit.HUNG and record.blamed_rank == record.rank


def _is_hung(record: ExitRecord) -> bool:
    return record.kind is Exit.HUNG


def finished(exits: Sequence[ExitRecord], world_size: int) -> bool:
    """Whether every rank of `world_size` has a record that says it finished."""
    return {record.rank for record in exits if record.kind is Exit.FINISHED} == set(range(world_size))


def stopped_at(exits: Iterable[ExitRecord]) -> int | None:
    """Returns the step from which a stopped run resumes; None if no rank was stopped."""
    # Only rank 0 knows the step; the others record 0.
    return max((record.step for record in exits if record.kind is Exit.STOPPED), default=None)


FINAL = frozenset({"BuildError", "NonFiniteLoss", "StepError"})
"""Types of exceptions that a restart would only repeat."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The identity of a failure: equal for two failures with the same kind, type, code and step."""

    kind: str
    type: str
    code: int | None
    step: int
    lost_peer: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, record: ExitRecord) -> Self:
        """Returns the identity of the failure in `record`."""
        same = {name: getattr(record, name) for name in ("type", "code", "step", "lost_peer")}
        return cls(kind=str(record.kind), **same)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_final(record: ExitRecord, before: Failure | None) -> str | None:
    """Returns why a restart would only repeat a failure, "" if its headline says so; None to restart.

    A failure is final if its exception type is in FINAL or it `repeats`, or if an exception or exit equals
    the previous one, `before`, since the last start also began at the last checkpoint. What a script does
    between its start and its end is not known, so that its failure may come twice.
    """
    if record.repeats or record.kind is Exit.TIMED_OUT:
        return ""
    if record.kind is Exit.ERROR and record.type in FINAL:
        return ""
    ends_itself = record.kind in {Exit.ERROR, Exit.EXITED} and not record.lost_peer
    ends_itself &= record.counts_steps
    if ends_itself and before == Failure.of(record):
        where = f"at step {record.step}" if record.step else "before the first step"
        return f"It failed twice {where}, the second time after a restart from the last checkpoint: no retry."
    return None

"""What the service, host agents and ranks say to one another: orders, progress, exit records, reserved names.

    service ── Order ──► host agent ── forks ──► ranks
    service ◄── StartStatus ── host agent ◄── Progress, ExitRecord ── ranks

Light: the API process imports this module. Everything here is plain data that survives JSON.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

RESERVED_PACKAGES = frozenset({"sync_bn", "training", "service"})
"""Top-level names that uploaded code may not have: they are this project's own."""

JOB_TAG = "syncbn.job_id"
"""Tag of a run in MLflow."""

LONGEST_MESSAGE = 4_000
LONGEST_TRACE = 20_000
LONGEST_TYPE = 200
LONGEST_TAIL = 8_000
TAIL_LINES = 30
LONGEST_METRICS = 200
"""Characters, lines and values that a record or a report may have; logs and MLflow have the rest."""

HANG_EXIT_CODE = 75
"""What a rank exits with that its watchdog has ended."""


@dataclass(frozen=True, kw_only=True)
class RankAssignment:
    """Where a rank is among its peers. `gpus`: the ids that it may see, as CUDA_VISIBLE_DEVICES has them."""

    rank: int
    local_rank: int
    node_rank: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """One start of an attempt, as far as it concerns one host. Launching it twice is harmless.

    attempt: its name, unique in the cluster. start: from 1; a restart in place is the next one.
    code: digest of the archive that the agent has been given, if the job has code of its own.
    code_folder: instead of that, a folder of this machine, taken as it is.
    ranks: those to fork on this host, of `world_size` in all.
    rendezvous: "ADDRESS:PORT" where rank 0 listens; None: all ranks are on this host.
    folder: the run's, on a file system that all hosts share. checkpoints: URL of the run's checkpoints, if
    they are in object storage.
    curves_only: no validation, no test, no model at the end. last_bit: the first weights are changed by one
    bit each, which shows how far rounding alone takes a training.
    restarts: why this is not the attempt's first start.
    variables: of the job's own environment.
    """

    attempt: str
    start: int = 1
    spec: dict[str, Any]
    ranks: tuple[RankAssignment, ...]
    world_size: int
    folder: str
    rendezvous: str | None = None
    checkpoints: str | None = None
    code: str | None = None
    code_folder: str | None = None
    mlflow_uri: str | None = None
    run_id: str | None = None
    output: str | None = None
    curves_only: bool = False
    last_bit: bool = False
    restarts: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ranks = tuple(RankAssignment(**{**place, "gpus": tuple(place["gpus"])}) for place in data["ranks"])
        return cls(**{**data, "ranks": ranks, "restarts": tuple(data["restarts"])})

    @property
    def number(self) -> int:
        """Of the attempt within its job, from 1."""
        return attempt_number(self.attempt)


def is_detail(metric: str) -> bool:
    """Whether a metric is shown only to those who name it: one of the machine, or of a single layer."""
    return metric.startswith(("system/", "norm/"))


def attempt_name(job_id: str, number: int) -> str:
    return f"{job_id}-{number}"


def attempt_number(name: str) -> int:
    return int(name.rpartition("-")[2])


def log_file(run_folder: str | Path, number: int, rank: int) -> Path:
    """What a rank printed in all starts of an attempt; bytes are only ever appended."""
    return log_folder(run_folder, number) / f"rank-{rank}.log"


def log_folder(run_folder: str | Path, number: int) -> Path:
    return Path(run_folder) / "logs" / f"attempt-{number}"


def exit_file(run_folder: str | Path, number: int, start: int, rank: int) -> Path:
    return Path(run_folder) / "exits" / f"attempt-{number}" / f"start-{start}-rank-{rank}.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Steps are the optimizer's, from 1; epochs count from 0.

    metrics: the latest value of each; at most LONGEST_METRICS of them.
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


class Exit(enum.StrEnum):
    """How a rank ended."""

    FINISHED = "finished"
    """It came to the end of its training."""
    STOPPED = "stopped"
    """It was asked to stop and has saved the run, at `step`."""
    ERROR = "error"
    """An exception: `type`, `message`, `trace`."""
    EXITED = "exited"
    """The process ended itself with `code`."""
    SIGNAL = "signal"
    """A signal killed it: `type` is its name."""
    OUT_OF_MEMORY = "out of memory"
    """The kernel killed it because memory ran out."""
    HUNG = "hung"
    """It made no progress for too long, or another one did."""
    ENDED = "ended"
    """Its agent ended it: another rank had failed, or somebody asked for it. Never a cause."""
    LOST = "lost"
    """Its host, or the agent there, is gone."""


@dataclass(frozen=True, kw_only=True)
class ExitRecord:
    """The end of one rank, written by itself or, for what it cannot say, by its agent.

    step: of a rank that finished its last; of one that was stopped the step that it goes on from; otherwise
    the one that was being made, from 1; 0: before the first.
    when: seconds since the epoch. lost_peer: it only noticed that another rank was gone.
    """

    rank: int | None
    kind: Exit
    step: int = 0
    type: str = ""
    message: str = ""
    code: int | None = None
    when: float = 0.0
    lost_peer: bool = False
    trace: str = ""
    log_tail: str = ""
    progress: Progress | None = None
    blamed_rank: int | None = None
    """Of a hang: the rank that the others waited for, if it was one."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        progress = data.get("progress")
        known = {**data, "kind": Exit(data["kind"])}
        return cls(**{**known, "progress": Progress.from_json(progress) if progress else None})

    @property
    def failed(self) -> bool:
        return self.kind not in {Exit.FINISHED, Exit.STOPPED, Exit.ENDED}

    @property
    def headline(self) -> str:
        """One line: which rank, what happened, where."""
        rank = "a rank" if self.rank is None else f"rank {self.rank}"
        where = f" at step {self.step}" if self.step else " before the first step"
        said = {
            Exit.FINISHED: "came to its end",
            Exit.STOPPED: f"saved itself{where}",
            Exit.ERROR: f"failed{where}: {self.type}: {self.message.partition(chr(10))[0]}",
            Exit.EXITED: f"exited with code {self.code}{where}",
            Exit.SIGNAL: f"was killed by {self.type}{where}",
            Exit.OUT_OF_MEMORY: f"was killed by SIGKILL{where}: memory ran out",
            Exit.HUNG: f"hung{where}: {self.message.partition(chr(10))[0]}",
            Exit.ENDED: "was ended",
            Exit.LOST: f"was lost{where}: {self.message.partition(chr(10))[0]}",
        }
        return f"{rank} {said[self.kind]}" if self.kind is not Exit.HUNG else self.message.partition("\n")[0]


@dataclass(frozen=True, kw_only=True)
class StartStatus:
    """What an agent knows of one start of an attempt: of `ranks`, those on its host.

    joined: all of them are in the process group. exits: of those that have ended.
    """

    attempt: str
    start: int
    ranks: tuple[int, ...]
    joined: bool = False
    progress: Progress | None = None
    exits: tuple[ExitRecord, ...] = ()

    @property
    def ended(self) -> bool:
        """Every rank has ended, and so has everything that they had started."""
        return len(self.exits) == len(self.ranks)


@dataclass(frozen=True, kw_only=True)
class News:
    """All that an agent knows; `version` rises with every change.

    warm: its fork server has imported everything.
    """

    version: int
    starts: tuple[StartStatus, ...]
    warm: bool = True


class Superseded(Exception):
    """An order of a scheduler that another one has taken over from."""


class CodeMissing(Exception):
    """The agent has not been given the archive that an order names."""


def signal_name(number: int) -> str:
    """SIGKILL for 9; `signal 64` where there is no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def cause(exits: Iterable[ExitRecord]) -> ExitRecord | None:
    """The failure that the others followed from; None if no rank has failed.

    A rank's own exception comes first, the earliest of several; then a hang, which the agent has found; then
    ranks that were killed or exited; last those that only noticed that a peer was gone.
    """
    failed = [record for record in exits if record.failed]
    for wanted in (_own_error, _blamed, _hung, lambda record: not record.lost_peer, lambda _: True):
        if chosen := [record for record in failed if wanted(record)]:
            return min(chosen, key=lambda record: record.when)
    return None


def _own_error(record: ExitRecord) -> bool:
    return record.kind is Exit.ERROR and not record.lost_peer


def _blamed(record: ExitRecord) -> bool:
    return record.kind is Exit.HUNG and record.blamed_rank == record.rank


def _hung(record: ExitRecord) -> bool:
    return record.kind is Exit.HUNG


def finished(exits: Sequence[ExitRecord], world_size: int) -> bool:
    """Whether every rank's record says that it came to its end."""
    return {record.rank for record in exits if record.kind is Exit.FINISHED} == set(range(world_size))


def stopped_at(exits: Iterable[ExitRecord]) -> int | None:
    """The step that a run which has saved itself goes on from; None if it has not."""
    # Rank 0 alone knows which step that is: the others say 0.
    return max((record.step for record in exits if record.kind is Exit.STOPPED), default=None)


FINAL = frozenset({"BuildError", "NonFiniteLoss"})
"""Exceptions that would come again."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is remembered of a failure, to know it when it comes again."""

    kind: str
    type: str
    code: int | None
    step: int

    @classmethod
    def of(cls, record: ExitRecord) -> Self:
        return cls(kind=str(record.kind), type=record.type, code=record.code, step=record.step)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_final(record: ExitRecord, before: Failure | None) -> str | None:
    """Why a failure would come again; None if it is worth another start.

    An exception of a kind that would, and one (or a program that ends itself) that came at the same step
    before, since that start began with the last checkpoint, too.
    """
    if record.kind is Exit.ERROR and record.type in FINAL:
        return ""
    ends_itself = record.kind in {Exit.ERROR, Exit.EXITED} and not record.lost_peer
    if ends_itself and before == Failure.of(record):
        where = f"at step {record.step}" if record.step else "before the first step"
        return f"It came twice {where}, the second time from the last checkpoint on: it is not tried again."
    return None

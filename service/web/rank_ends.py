"""How the ranks of an attempt ended, and what each was doing when it hung, from files of the run folder.

Users' code may write into that folder, so what is no such record is left out, and no link is followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.jobs.failures import FailureClass, class_of
from service.jobs.job import Job, Removed
from service.log_files import open_log
from training.hangs.rank_files import HangReport, dump_in, last_position
from training.hangs.stack_traces import formatted
from training.protocol import ExitRecord, cause, exit_file
from training.run_dir import RunFolder

MOST_RANKS = 64
MOST_STARTS = 20
_LONGEST_FILE = 1 << 20
_LONGEST_STACK = 20_000
_EXIT = re.compile(r"start-(\d{1,6})-rank-(\d{1,6})\.json")
_HUNG = re.compile(r"rank-(\d{1,6})\.(?:json|position)")
_NOT_SO = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What parsing a file that is no such record raises."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How one rank ended. failure: the class of its failure; None if it did not fail."""

    record: ExitRecord
    failure: FailureClass | None

    @property
    def ended_at(self) -> datetime | None:
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromtimestamp(self.record.when, UTC) if self.record.when else None
        return None


@dataclass(frozen=True, kw_only=True)
class RankStack:
    """What a rank was doing when the run hung. stack: of its training; threads: of others, by name."""

    rank: int
    where: str
    stack: str
    threads: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StartEnd:
    """One start of the ranks. number: within the attempt. ends, stacks: by rank, of at most MOST_RANKS.

    cause: the failure that caused the others. left_out: how many more ranks have a record.
    """

    number: int
    ends: list[RankEnd]
    cause: RankEnd | None
    stacks: list[RankStack]
    left_out: int


def of_attempt(storage: str, job: Job, number: int, starts: int) -> tuple[list[StartEnd], str]:
    """Returns the last MOST_STARTS starts of an attempt, newest first, and why there are none.

    starts: how many it had.
    """
    if not number:
        return [], "The job has not started yet."
    if Removed.LOGS in job.removed:
        return [], "Retention has removed the records of the ranks together with the logs."
    folder = Path(storage) / job.id
    try:
        files = _exit_files(folder, number)
    except OSError as error:
        return [], f"The records of the ranks cannot be read: {error.strerror or error}."
    numbers = range(starts, max(starts - MOST_STARTS, 0), -1)
    found = [_start(folder, number, start, files.get(start, [])) for start in numbers]
    return [start for start in found if start.ends or start.stacks], ""


def _exit_files(folder: Path, number: int) -> dict[int, list[int]]:
    """Returns the ranks that have a record, by start. Raises OSError."""
    ranks: dict[int, list[int]] = {}
    with suppress(FileNotFoundError):
        for file in exit_file(folder, number, 1, 0).parent.iterdir():
            if match := _EXIT.fullmatch(file.name):
                ranks.setdefault(int(match[1]), []).append(int(match[2]))
    return ranks


def _start(folder: Path, attempt: int, start: int, ranks: list[int]) -> StartEnd:
    shown = sorted(ranks)[:MOST_RANKS]
    records = [_record(exit_file(folder, attempt, start, rank)) for rank in shown]
    ends = [_end(record) for record in records if record]
    first = cause([end.record for end in ends])
    hang = RunFolder(path=folder, attempt=attempt, start=start).hang
    return StartEnd(
        number=start,
        ends=ends,
        cause=next((end for end in ends if end.record is first), None) if first else None,
        stacks=list(_stacks(hang)),
        left_out=len(ranks) - len(shown),
    )


def _end(record: ExitRecord) -> RankEnd:
    return RankEnd(record=record, failure=class_of(record) if record.failed else None)


def _record(path: Path) -> ExitRecord | None:
    """Returns the record in a file; None if it has none."""
    with suppress(OSError, *_NOT_SO):
        record = ExitRecord.from_json(json.loads(_content(path)))
        texts = (record.type, record.message, record.trace, record.log_tail)
        numbers = (record.rank or 0, record.step, record.code or 0, record.when)
        if all(isinstance(text, str) for text in texts) and all(isinstance(n, int | float) for n in numbers):
            return record
    return None


def _stacks(folder: Path) -> Iterator[RankStack]:
    """Yields what the ranks reported, if any rank reported that it made no progress."""
    try:
        names = {file.name for file in folder.iterdir()}
    except OSError:
        return
    ranks = sorted({int(match[1]) for name in names if (match := _HUNG.fullmatch(name))})
    if not any(name.endswith(".json") for name in names):
        return
    for rank in ranks[:MOST_RANKS]:
        with suppress(OSError, *_NOT_SO):
            yield _reported(folder, rank) if f"rank-{rank}.json" in names else _dumped(folder, rank)


def _reported(folder: Path, rank: int) -> RankStack:
    report = HangReport.from_json(_content(folder / f"rank-{rank}.json").decode())
    position = report.position
    return RankStack(
        rank=rank,
        where=f"no progress for {report.seconds:.0f} s at step {position.step} ({position.doing}); process "
        f"{position.pid} on {position.host}",
        stack=formatted(report.stack)[-_LONGEST_STACK:],
        threads={str(name): formatted(stack)[-_LONGEST_STACK:] for name, stack in report.threads.items()},
    )


def _dumped(folder: Path, rank: int) -> RankStack:
    """Returns what a rank left that could not report: its last position, and what `faulthandler` wrote."""
    content = _content(folder / f"rank-{rank}.position")
    if (position := last_position(content)) is None:
        raise ValueError("not written completely")
    state = "had ended" if position.ended else "did not report"
    return RankStack(
        rank=rank,
        where=f"{state}; last heard of at step {position.step} ({position.doing}); process {position.pid} on "
        f"{position.host}",
        stack=dump_in(content)[:_LONGEST_STACK],
        threads={},
    )


def _content(path: Path) -> bytes:
    with open_log(path) as file:
        return file.read(_LONGEST_FILE)

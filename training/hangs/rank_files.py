"""The files by which ranks report their position to one another, in a folder that all ranks share.

Each rank has two files. `rank-3.position` is overwritten about once a second: one record of fixed length,
after which `faulthandler` writes the stack of a process that cannot do so itself. `rank-3.json` exists while
the rank has made no progress for too long.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from training.hangs.stack_traces import Frame, Stack, dumped_stack
from training.run_dir import open_plain

_RECORD = 4096
_LONGEST_FILE = 2**20  # bytes: a record and a dump, or a report
_LONGEST_DOING = 300  # characters, each of up to six bytes in JSON


@dataclass(frozen=True, kw_only=True)
class Position:
    """The position of a rank in its training.

    thread: ident of the training thread. doing: what the rank is doing at `step`. collectives: number entered
    in the default process group, None without a group. limit: seconds without progress after which the rank
    counts as hung. tick: increases while the process runs.
    """

    rank: int
    world_size: int
    host: str
    pid: int
    thread: int
    step: int
    doing: str
    collectives: int | None
    limit: float
    tick: int = 0
    ended: bool = False

    def record(self) -> bytes:
        """Returns the position as a record of fixed length."""
        text = json.dumps(asdict(replace(self, doing=self.doing[:_LONGEST_DOING])))
        return text.encode().ljust(_RECORD)


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """The report of a rank that made no progress.

    seconds: time without progress. stack: of the training thread. threads: stacks of other threads by name.
    dumped: whether `faulthandler` wrote the stack, because the process held Python's global lock.
    """

    position: Position
    seconds: float
    stack: Stack
    threads: dict[str, Stack] = field(default_factory=dict)
    dumped: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields: dict[str, Any] = json.loads(text)
        return cls(
            position=Position(**fields["position"]),
            seconds=fields["seconds"],
            stack=[Frame(*frame) for frame in fields["stack"]],
            threads={name: [Frame(*frame) for frame in stack] for name, stack in fields["threads"].items()},
        )


@dataclass(frozen=True)
class RankFiles:
    """The position files and hang reports of all ranks in the folder `path`."""

    path: Path

    def report(self, report: HangReport) -> None:
        """Writes a rank's report atomically."""
        temporary = self.path / f"rank-{report.position.rank}.tmp"
        temporary.write_text(report.to_json(), encoding="utf-8")
        temporary.replace(self._report(report.position.rank))

    def withdraw(self, rank: int) -> None:
        """Deletes a rank's report, if there is one."""
        self._report(rank).unlink(missing_ok=True)

    def reported(self) -> set[int]:
        """Returns the ranks that have reported no progress for too long."""
        return {_rank_of(path.name) for path in self.path.glob("rank-*.json")}

    def position_content(self, rank: int) -> bytes:
        """Returns a position file's bytes, which change while the process runs; b"" if it is missing."""
        try:
            with open_plain(self.position_file(rank)) as file:
                return file.read(_LONGEST_FILE)
        except FileNotFoundError:
            return b""

    def positions(self) -> list[Position]:
        """Returns the last known position of each rank that has written one, in order of rank."""
        ranks = sorted(_rank_of(path.name) for path in self.path.glob("rank-*.position"))
        return [position for rank in ranks if (position := last_position(self.position_content(rank)))]

    def reports(self) -> list[HangReport]:
        """Returns the hang reports in order of rank: a rank's own, or one made from its dump."""
        reports = {rank: HangReport.from_json(self._text(self._report(rank))) for rank in self.reported()}
        for position in self.positions():
            if position.rank not in reports and (dump := dump_in(self.position_content(position.rank))):
                stack = dumped_stack(dump, position.thread)
                reports[position.rank] = HangReport(
                    position=position, seconds=position.limit, stack=stack, dumped=True
                )
        return [reports[rank] for rank in sorted(reports)]

    def position_file(self, rank: int) -> Path:
        """Returns the path of a rank's position file."""
        return self.path / f"rank-{rank}.position"

    def _text(self, path: Path) -> str:
        with open_plain(path) as file:
            return file.read(_LONGEST_FILE).decode()

    def _report(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.json"


class PositionFile:
    """This rank's position file, kept open so that a write needs no round trip on a network file system."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # a process of an earlier start may still have the old file open
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.lseek(self.descriptor, _RECORD, os.SEEK_SET)  # faulthandler writes a dump here

    def write(self, position: Position, *, sync: bool = False) -> None:
        """Overwrites the record. sync: whether to sync it, so that other machines see it at once."""
        if os.lseek(self.descriptor, 0, os.SEEK_CUR) > _RECORD:
            # A stack was dumped, but the process is alive: it was only paused. Remove the dump.
            os.ftruncate(self.descriptor, _RECORD)
            os.lseek(self.descriptor, _RECORD, os.SEEK_SET)
        os.pwrite(self.descriptor, position.record(), 0)
        if sync:
            os.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def last_position(content: bytes) -> Position | None:
    """Returns the position in a position file's content; None if it is missing or incomplete."""
    with suppress(ValueError, TypeError):  # not written yet, or only in part
        return Position(**json.loads(content[:_RECORD]))
    return None


def dump_in(content: bytes) -> str:
    """Returns the stack dump in a position file's content; empty if there is none."""
    return content[_RECORD:].decode(errors="replace")


def cannot_progress(content: bytes) -> bool:
    """Returns whether a rank with this position file has ended or is stuck, so that it will not progress."""
    position = last_position(content)
    return bool(dump_in(content)) or (position is not None and position.ended)


def _rank_of(name: str) -> int:
    return int(name.removeprefix("rank-").partition(".")[0])

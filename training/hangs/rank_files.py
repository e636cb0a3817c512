"""What ranks tell one another, and the driver, about where they stand: files in a folder that all see.

Two files a rank. `rank-3.position` is overwritten every second or so: one record of fixed length, after
which `faulthandler` writes the stack of a process that cannot do it itself. `rank-3.json` exists while the
rank has made no progress for too long.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from training.hangs.stack_traces import Frame, Stack, dumped_stack

_RECORD = 4096
_LONGEST_DOING = 300  # characters; of six bytes each, if it comes to that


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a rank stands.

    thread: ident of the one that trains. collectives: how many the rank has entered in the default group,
    None without a group. limit: seconds without progress from which on it counts as hung. tick: rises while
    the process lives.
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
        text = json.dumps(asdict(replace(self, doing=self.doing[:_LONGEST_DOING])))
        return text.encode().ljust(_RECORD)


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """A rank that made no progress: for how many seconds, and its stacks.

    stack: of the thread that trains. threads: of others. dumped: by C code, since the process kept Python's
    global lock.
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
    path: Path

    def report(self, report: HangReport) -> None:
        """Atomic: whoever sees it sees all of it."""
        temporary = self.path / f"rank-{report.position.rank}.tmp"
        temporary.write_text(report.to_json(), encoding="utf-8")
        temporary.replace(self._report(report.position.rank))

    def withdraw(self, rank: int) -> None:
        self._report(rank).unlink(missing_ok=True)

    def reported(self) -> set[int]:
        """The ranks that have made no progress for too long."""
        return {_rank_of(path.name) for path in self.path.glob("rank-*.json")}

    def sign_of_life(self, rank: int) -> bytes:
        """Changes while the rank's process runs; empty if it never did."""
        try:
            return self.position_file(rank).read_bytes()
        except FileNotFoundError:
            return b""

    def positions(self) -> list[Position]:
        """The last that is known of each rank, in order, as far as anything is."""
        ranks = sorted(_rank_of(path.name) for path in self.path.glob("rank-*.position"))
        return [position for rank in ranks if (position := last_position(self.sign_of_life(rank)))]

    def reports(self) -> list[HangReport]:
        """Of ranks that made no progress, in order: their own, or what was dumped in their place."""
        found = {
            rank: HangReport.from_json(self._report(rank).read_text("utf-8")) for rank in self.reported()
        }
        for position in self.positions():
            if position.rank not in found and (dump := dump_in(self.sign_of_life(position.rank))):
                stack = dumped_stack(dump, position.thread)
                found[position.rank] = HangReport(
                    position=position, seconds=position.limit, stack=stack, dumped=True
                )
        return [found[rank] for rank in sorted(found)]

    def position_file(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.position"

    def _report(self, rank: int) -> Path:
        return self.path / f"rank-{rank}.json"


class PositionFile:
    """The rank's own position, as an open file: a write costs no round trip over a network."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # a process of an earlier start may still have it open
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.lseek(self.descriptor, _RECORD, os.SEEK_SET)  # where a dump goes

    def write(self, position: Position, *, through: bool = False) -> None:
        """through: at once for readers on other machines too."""
        if os.lseek(self.descriptor, 0, os.SEEK_CUR) > _RECORD:
            # Dumped, but alive: the process was paused.
            os.ftruncate(self.descriptor, _RECORD)
            os.lseek(self.descriptor, _RECORD, os.SEEK_SET)
        os.pwrite(self.descriptor, position.record(), 0)
        if through:
            os.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def last_position(content: bytes) -> Position | None:
    with suppress(ValueError, TypeError):  # not written yet, or half
        return Position(**json.loads(content[:_RECORD]))
    return None


def dump_in(content: bytes) -> str:
    return content[_RECORD:].decode(errors="replace")


def is_settled(content: bytes) -> bool:
    """Whether a rank with this in its file will not say more: it has ended, or cannot run."""
    position = last_position(content)
    return bool(dump_in(content)) or (position is not None and position.ended)


def _rank_of(name: str) -> int:
    return int(name.removeprefix("rank-").partition(".")[0])

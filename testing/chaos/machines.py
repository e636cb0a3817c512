"""The fake machines: attempts begin, train, fail and end by themselves, and every interval is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from time import monotonic
from typing import Any

from service.backends.cluster import Launch, Node
from service.backends.memory import MemoryCluster
from training.protocol import Exit, ExitRecord, Progress, Superseded

_ORDERS = {"launch", "stop", "end", "release"}
_STEPS = 10


@dataclass(kw_only=True)
class Start:
    """One start of an attempt, as the machines saw it. Times are seconds of the machines' clock.

    number: that of the scheduler that launched it. ended: infinity while it runs. end: finished, killed,
    lost, saved or ended.
    """

    job: str
    name: str
    start: int
    number: int
    begun: float
    joins: float
    ends: float
    fate: str
    saves: float = math.inf
    is_ended: float = math.inf
    ended: float = math.inf
    end: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """starts: all so far. refused: orders of superseded schedulers, and their looks at the cluster.

    numbers: the number of the scheduler that gave each order that was obeyed, in order.
    wrong: orders that a real cluster would not expect. left: attempts that are not released.
    """

    starts: tuple[Start, ...]
    numbers: tuple[int, ...]
    refused_orders: int
    refused_looks: int
    wrong: tuple[str, ...]
    left: tuple[str, ...]


class Machines(MemoryCluster):
    """Machines that obey the scheduler with the highest number that they have heard of, as agents do.

    Nothing happens between two calls: each call first does what should have happened since the last.
    """

    def __init__(self, seed: int, *, longest: float = 1.0, clock: Callable[[], float] = monotonic) -> None:
        """longest: how many seconds a start trains at most."""
        super().__init__([Node(id=f"node-{n}", address=f"10.0.0.{n}", cpus=8, gpus=0) for n in (1, 2, 3)])
        self.obeys = False  # not at once
        self._random, self._clock, self._longest = Random(f"machines {seed}"), clock, longest
        self._fence = self._refused_orders = self._refused_looks = 0
        self._alive: dict[str, Start] = {}
        self._starts: list[Start] = []
        self._numbers: list[int] = []
        self._wrong: list[str] = []

    def handle(self, fence: int, method: str, *args: Any, **options: Any) -> Any:
        """Answers a call of scheduler `fence`; 0: of the test itself."""
        self._advance()
        if not fence:
            return getattr(self, method)(*args, **options)
        self._answer()
        if fence < self._fence:
            if method in _ORDERS:
                self._refused_orders += 1
            else:
                self._refused_looks += 1
            raise Superseded(f"scheduler {fence} has been superseded by {self._fence}")
        self._fence = fence
        if method in _ORDERS:
            self._numbers.append(fence)
        return getattr(self, method)(*args, **options)

    # Called by the test

    def set_unreachable(self, unreachable: bool) -> None:
        self.unreachable = unreachable

    def record(self) -> Record:
        return Record(
            starts=tuple(self._starts),
            numbers=tuple(self._numbers),
            refused_orders=self._refused_orders,
            refused_looks=self._refused_looks,
            wrong=tuple(self._wrong),
            left=tuple(self._statuses),
        )

    # Orders

    def launch(self, launch: Launch) -> None:
        known = self._statuses.get(launch.name)
        if known is not None and known.start >= launch.order.start:
            return
        before = [each for each in self._starts if each.name == launch.name]
        if any(each.start >= launch.order.start for each in before):
            self._wrong.append(f"{launch.name} start {launch.order.start} was launched again")
        if known is not None and not known.ended:
            self._wrong.append(f"{launch.name} start {launch.order.start} was launched while one ran")
            return
        super().launch(launch)
        now, random = self._clock(), self._random
        start = Start(
            job=launch.name.rpartition("-")[0],
            name=launch.name,
            start=launch.order.start,
            number=self._fence,
            begun=now,
            joins=now + random.uniform(0.02, 0.2),
            ends=now + random.uniform(0.1, 0.3) + random.uniform(0.0, self._longest),
            fate=random.choices(("finished", "killed", "lost"), (75, 15, 10))[0],
        )
        self._alive[launch.name] = start
        self._starts.append(start)

    def stop(self, name: str, *, seconds: float) -> None:
        super().stop(name, seconds=seconds)
        if start := self._alive.get(name):
            start.saves = min(start.saves, self._clock() + self._random.uniform(0.02, 0.4))

    def end(self, name: str) -> None:
        super().end(name)
        if start := self._alive.get(name):
            start.is_ended = min(start.is_ended, self._clock() + self._random.uniform(0.0, 0.2))

    def release(self, name: str) -> None:
        if name in self._alive:
            self._wrong.append(f"{name} was released while it ran")
            return
        super().release(name)

    # Time

    def _advance(self) -> None:
        now = self._clock()
        for name, start in list(self._alive.items()):
            ended, end = min((start.ends, start.fate), (start.saves, "saved"), (start.is_ended, "ended"))
            progress = self._progress(start, min(now, ended))
            if progress is not None:
                self.run(name, progress)
            if now < ended:
                continue
            del self._alive[name]
            start.ended, start.end = ended, end
            match end:
                case "finished":
                    self.finish(name)
                case "lost":
                    self.lose(name)
                case "killed":
                    step = progress.step if progress else 0
                    self.fail(name, ExitRecord(rank=0, kind=Exit.SIGNAL, type="SIGKILL", step=step))
                case "saved" if progress is not None:
                    self.save(name, progress.step)
                case _:
                    self._end(name, [])

    def _progress(self, start: Start, now: float) -> Progress | None:
        if now < start.joins:
            return None
        step = 1 + int((_STEPS - 1) * (now - start.joins) / max(start.ends - start.joins, 1e-3))
        return Progress(step=min(max(step, 1), _STEPS), total_steps=_STEPS, epoch=0, eta_seconds=None)

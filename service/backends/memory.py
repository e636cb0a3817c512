"""A cluster in memory, for tests. The test decides what happens to its attempts.

The contract tests run against this cluster and the real one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from service.backends.cluster import Launch, Node, Phase, Status
from service.errors import Unavailable
from training.protocol import Exit, ExitRecord, Progress, Superseded

FIRST_STEP = Progress(step=1, total_steps=10, epoch=0, eta_seconds=None)


class MemoryCluster:
    """A cluster in memory.

    launches, stops, ends, releases: the orders so far. places: whether a gang gets room at once.
    obeys: whether ranks end when they are ordered to.
    """

    def __init__(self, nodes: Sequence[Node] | None = None) -> None:
        one = Node(id="node-1", address="127.0.0.1", cpus=4, gpus=0)
        self.machines = [one] if nodes is None else list(nodes)
        self.launches: list[Launch] = []
        self.stops: list[tuple[str, float]] = []
        self.ends: list[str] = []
        self.releases: list[str] = []
        self.unreachable = self.superseded = False
        self.places = self.obeys = True
        self._statuses: dict[str, Status] = {}
        self._world_sizes: dict[str, int] = {}
        self._changed = threading.Event()

    # Called by tests

    def run(self, name: str, progress: Progress | None = FIRST_STEP) -> None:
        """Makes all ranks join the process group and, with progress, train."""
        self._set(name, phase=Phase.RUNNING, progress=progress, message="")

    def set_message(self, name: str, message: str) -> None:
        """Sets what the attempt waits for."""
        self._set(name, message=message)

    def install(self, name: str) -> None:
        """Makes the attempt install requirements."""
        self._set(name, phase=Phase.INSTALLING, message="installing requirements on node-1")

    def set_seconds(self, name: str, seconds: float) -> None:
        """Sets how long the latest start has run."""
        self._set(name, seconds=seconds)

    def finish(self, name: str, weights_sha256: str | None = None) -> None:
        """Makes every rank finish. weights_sha256: of what rank 0 delivers."""
        first, *others = (ExitRecord(rank=rank, kind=Exit.FINISHED) for rank in self.ranks(name))
        self._end(name, [replace(first, weights_sha256=weights_sha256), *others])

    def fail(self, name: str, *records: ExitRecord) -> None:
        """Makes these ranks fail and the others end. By default a signal kills rank 0."""
        self._end(name, records or [ExitRecord(rank=0, kind=Exit.SIGNAL, type="SIGKILL")])

    def fail_partly(self, name: str, *records: ExitRecord) -> None:
        """Makes these ranks fail while the others go on."""
        self._set(name, exits=(*self._statuses[name].exits, *records))

    def save(self, name: str, step: int = 1) -> None:
        """Makes all ranks save a checkpoint and end, as after a stop order."""
        self._end(name, [ExitRecord(rank=rank, kind=Exit.STOPPED, step=step) for rank in self.ranks(name)])

    def lose(self, name: str) -> None:
        """Makes the machines of the attempt vanish."""
        message = "its machine is gone"
        self._end(name, [ExitRecord(rank=rank, kind=Exit.LOST, message=message) for rank in self.ranks(name)])

    def forget(self, name: str) -> None:
        """Forgets the attempt, as if Ray's head had been lost."""
        del self._statuses[name]
        self.wake()

    def status(self, name: str) -> Status | None:
        return self._statuses.get(name)

    def launched(self) -> list[tuple[str, int]]:
        """Returns the name and number of each start that was launched."""
        return [(launch.name, launch.order.start) for launch in self.launches]

    def ranks(self, name: str) -> range:
        """Returns the ranks of the attempt."""
        return range(self._world_sizes[name])

    # The protocol

    def nodes(self) -> list[Node]:
        self._answer()
        return list(self.machines)

    def attempts(self) -> Mapping[str, Status]:
        self._answer()
        return dict(self._statuses)

    def launch(self, launch: Launch) -> None:
        self._answer()
        known = self._statuses.get(launch.name)
        if known is not None and known.start >= launch.order.start:
            return
        assert known is None or known.ended, f"{launch.name} is started again while it is at work"
        self.launches.append(launch)
        self._world_sizes[launch.name] = launch.order.world_size
        phase = Phase.STARTING if self.places else Phase.PLACING
        self._statuses[launch.name] = Status(phase=phase, start=launch.order.start)
        self.wake()

    def stop(self, name: str, *, seconds: float) -> None:
        self._answer()
        self.stops.append((name, seconds))
        status = self._statuses.get(name)
        if status is not None and not status.ended and self.obeys:
            if status.progress is None:
                self._end(name, [])  # there is nothing to save yet
            else:
                self.save(name, status.progress.step)

    def end(self, name: str) -> None:
        self._answer()
        self.ends.append(name)
        status = self._statuses.get(name)
        if status is not None and not status.ended and self.obeys:
            self._end(name, [])

    def release(self, name: str) -> None:
        self._answer()
        status = self._statuses.get(name)
        if status is not None:
            assert status.phase in {Phase.PLACING, Phase.ENDED}, f"{name} is released while it is at work"
            self.releases.append(name)
            del self._statuses[name]
            self.wake()

    def wait(self, seconds: float) -> None:
        self._answer()
        self._changed.wait(seconds)
        self._changed.clear()

    def wake(self) -> None:
        self._changed.set()

    def _end(self, name: str, records: Sequence[ExitRecord]) -> None:
        """Ends all ranks: some with these records, the others because they were killed."""
        known = {record.rank: record for record in (*self._statuses[name].exits, *records)}
        for rank in self.ranks(name):
            known.setdefault(rank, ExitRecord(rank=rank, kind=Exit.ENDED))
        self._set(name, phase=Phase.ENDED, exits=tuple(known.values()))

    def _set(self, name: str, **changes: object) -> None:
        self._statuses[name] = replace(self._statuses[name], **changes)  # type: ignore[arg-type]
        self.wake()

    def _answer(self) -> None:
        if self.superseded:
            raise Superseded
        if self.unreachable:
            raise Unavailable("Ray", "the test made it so")

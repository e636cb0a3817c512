"""The host agent as an actor of Ray, one on each machine of a cluster, and what a bundle's GPUs are.

Ray imports this module on every node; the actor and the task are made by `service.backends.ray_calls`.
"""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from training.host.agent import HostAgent
from training.host.own_folder import own_folder
from training.protocol import News, Order, Superseded

_SECONDS_TO_CHECK = 1.0


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """`instance`: another one after the agent was started again; it knows nothing of what was before."""

    instance: str
    news: News


class RayHostAgent:
    """Each call carries the fencing number of the scheduler that makes it. Raises Superseded if a scheduler
    with a higher one has called before.

    `fence`: of the scheduler that has the actor made; Ray hands it in again when it starts the actor again.
    """

    def __init__(self, fence: int) -> None:
        self._fence, self._lock = fence, threading.Lock()
        self._instance = uuid.uuid4().hex
        _forget_threads_of_ray()
        self._agent = HostAgent(own_folder())

    def news(self, fence: int, instance: str, seen: int, seconds: float) -> HostReport:
        """All that it knows: at once if `seen` was told by another `instance`, or is not its version."""
        until = monotonic() + seconds
        while True:
            self._check(fence)  # another scheduler may have come while this one waited
            left = until - monotonic()
            news = self._agent.news(seen if instance == self._instance else -1, min(left, _SECONDS_TO_CHECK))
            if news.version != seen or instance != self._instance or left <= _SECONDS_TO_CHECK:
                return HostReport(instance=self._instance, news=news)

    def rendezvous(self, fence: int, attempt: str, start: int, address: str) -> str:
        self._check(fence)
        return self._agent.rendezvous(attempt, start, address)

    def put_code(self, fence: int, digest: str, archive: bytes) -> None:
        self._check(fence)
        self._agent.put_code(digest, archive)

    def launch(self, fence: int, order: Order) -> None:
        self._check(fence)
        self._agent.launch(order)

    def stop(self, fence: int, attempt: str, seconds: float) -> None:
        self._check(fence)
        self._agent.stop(attempt, seconds=seconds)

    def end(self, fence: int, attempt: str) -> None:
        self._check(fence)
        self._agent.end(attempt)

    def forget(self, fence: int, attempt: str) -> None:
        self._check(fence)
        self._agent.forget(attempt)

    def _check(self, fence: int) -> None:
        # Race closed: orders of two schedulers that arrive at once, since Ray calls from several threads.
        with self._lock:
            if fence < self._fence:
                raise Superseded(f"scheduler {fence} has been followed by scheduler {self._fence}")
            self._fence = fence


def gpus_of_this_task() -> tuple[str, ...]:
    """A Ray task in a bundle: the ids of the GPUs that Ray has given it."""
    import ray

    return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


def _forget_threads_of_ray() -> None:
    """Ray sets OMP_NUM_THREADS to 1 for an actor without CPUs; ranks have some. The machine's own stays."""
    with suppress(OSError):
        at_first = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(line.startswith(b"OMP_NUM_THREADS=") for line in at_first):
            os.environ.pop("OMP_NUM_THREADS", None)

"""The host agent as a Ray actor, one on each node of a cluster, and a task that returns a bundle's GPUs.

Ray imports this module on every node; `service.backends.ray_calls` creates the actor and the task.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from training.host.agent import HostAgent
from training.host.job_user import JobUserError, JobUsers, of_environment
from training.host.own_folder import own_folder
from training.protocol import News, Order, Superseded
from training.versions import own_versions

log = logging.getLogger(__name__)

_SECONDS_TO_CHECK = 1.0


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """An agent's state. instance: a new id after each restart of the agent, which forgets earlier starts."""

    instance: str
    news: News


class RayHostAgent:
    """A HostAgent whose calls carry the fencing token of the calling scheduler. See HostAgent for each call.

    A call raises Superseded if a scheduler with a higher token has called before. fence: the token of the
    scheduler that creates the actor; Ray passes the same one when it restarts the actor.
    """

    def __init__(self, fence: int) -> None:
        self._fence, self._lock = fence, threading.Lock()
        self._instance = uuid.uuid4().hex
        _unset_ray_thread_count()
        self._agent = HostAgent(own_folder(), users=_job_users())

    def news(self, fence: int, instance: str, seen: int, seconds: float) -> HostReport:
        """Returns the state of the agent. Blocks for up to `seconds` while nothing is new to the caller.

        instance, seen: the instance and the version of the last report that the caller got.
        """
        deadline = monotonic() + seconds
        while True:
            self._check(fence)  # another scheduler may have taken over while this call waited
            left = deadline - monotonic()
            news = self._agent.news(seen if instance == self._instance else -1, min(left, _SECONDS_TO_CHECK))
            if news.version != seen or instance != self._instance or left <= _SECONDS_TO_CHECK:
                return HostReport(instance=self._instance, news=news)

    def rendezvous(self, fence: int, attempt: str, start: int, address: str) -> str:
        self._check(fence)
        return self._agent.rendezvous(attempt, start, address)

    def put_code(self, fence: int, digest: str, archive: bytes) -> None:
        self._check(fence)
        self._agent.put_code(digest, archive)

    def prepare(self, fence: int, order: Order) -> None:
        self._check(fence)
        self._agent.prepare(order)

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

    def about(self, storage: str, marker: str) -> dict[str, Any]:
        """Returns this machine's clock and versions, and whether it sees the file `marker` in the storage.

        Also whether jobs run as root, or why they cannot run. Any caller may ask: it needs no fencing token
        and changes nothing. marker: "" if there is none.
        """
        users = _job_users()
        sees_marker = (Path(storage) / marker).is_file() if marker else None
        return {
            "time": time.time(),
            "versions": own_versions(),
            "sees_marker": sees_marker,
            "jobs_as_root": users is None and os.geteuid() == 0,
            "job_user_problem": str(users) if isinstance(users, JobUserError) else "",
        }

    def _check(self, fence: int) -> None:
        # Race closed: orders of two schedulers that arrive at once; Ray calls the actor from several threads.
        with self._lock:
            if fence < self._fence:
                raise Superseded(f"scheduler {fence} has been superseded by scheduler {self._fence}")
            self._fence = fence


def _job_users() -> JobUsers | JobUserError | None:
    """Returns whom jobs run as or, so that each job says why it cannot start, the error."""
    try:
        users = of_environment(os.environ)
        if users is not None:
            users.check()
    except JobUserError as error:
        log.error("%s", error)
        return error
    return users


def gpus_of_this_task() -> tuple[str, ...]:
    """Returns the ids of the GPUs that Ray has given the current task. Runs as a Ray task in a bundle."""
    import ray

    return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


def _unset_ray_thread_count() -> None:
    """Removes the OMP_NUM_THREADS=1 that Ray sets for an actor without CPUs, so that ranks do not inherit it.

    Keeps the variable if the machine itself sets it.
    """
    with suppress(OSError):
        initial = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(line.startswith(b"OMP_NUM_THREADS=") for line in initial):
            os.environ.pop("OMP_NUM_THREADS", None)

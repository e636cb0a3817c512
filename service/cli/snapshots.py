"""What `top` shows, asked from the server again and again in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from service.client import Client, ClientError, Cluster, Job, RequestError, Waiting

ACTIVE = ("running", "starting", "pausing", "preempting")
_MOST = 200


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The service at one time.

    active: the newest jobs that hold workers, at most 200; those that run first. waiting: the first of those
    that wait, and waiting_total their number. cluster: None if the scheduler has not said what it sees. at:
    when the server said so, by the clock of this machine. problem: why it does not answer now; "" if it does.
    """

    active: list[Job]
    waiting: list[Waiting]
    waiting_total: int
    cluster: Cluster | None
    at: datetime
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "active": [job.to_json() for job in self.active],
            "waiting": [job.to_json() for job in self.waiting],
            "waiting_total": self.waiting_total,
            "cluster": None if self.cluster is None else self.cluster.to_json(),
        }


def look(client: Client) -> Snapshot:
    """Returns the service as it is now. Raises ClientError."""
    active = sorted(client.jobs(states=ACTIVE, limit=_MOST), key=_by_state)
    waiting, total = list(client.queue(limit=_MOST)), client.queue_length()
    return Snapshot(
        active=active,
        waiting=waiting,
        waiting_total=max(total, len(waiting)),
        cluster=_cluster(client),
        at=datetime.now(UTC),
    )


def _by_state(job: Job) -> int:
    return ACTIVE.index(job.state) if job.state in ACTIVE else len(ACTIVE)


def _cluster(client: Client) -> Cluster | None:
    try:
        return client.cluster()
    except RequestError as error:
        if error.status != 503:
            raise
        return None


class Watcher:
    """Looks every `interval` seconds while the `with` statement lasts.

    connect: makes the client, which the thread alone uses.
    """

    def __init__(self, connect: Callable[[], Client], interval: float) -> None:
        self._connect, self._interval = connect, interval
        self._ended = threading.Event()
        self._latest: Snapshot | None = None
        self._refusal: Exception | None = None
        self.problem = ""

    def __enter__(self) -> Watcher:
        # A daemon: whoever leaves does not wait for a server that does not answer.
        threading.Thread(target=self._run, name="top", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def latest(self) -> Snapshot | None:
        """Returns what was seen last; None before the first answer. Raises what ends the watching."""
        if self._refusal is not None:
            raise self._refusal
        latest, problem = self._latest, self.problem
        return None if latest is None else replace(latest, problem=problem)

    def _run(self) -> None:
        try:
            with self._connect() as client:
                while not self._ended.is_set():
                    self._look(client)
                    self._ended.wait(self._interval)
        except Exception as error:  # the thread that shows it raises it again
            self._refusal = error

    def _look(self, client: Client) -> None:
        try:
            self._latest, self.problem = look(client), ""
        except RequestError as error:
            if error.status < 500 and error.status != 429:
                raise  # such as a key that is not accepted: waiting does not help
            self.problem = str(error)
        except ClientError as error:
            self.problem = str(error)

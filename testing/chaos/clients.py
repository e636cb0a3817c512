"""The clients of a run: those that submit, each job several times with one key, and one that commands."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from queue import Empty, SimpleQueue
from random import Random
from typing import Any

from service.client import Client, ClientError, NotFound, RequestError
from testing.chaos.plan import Command, commands

_AT_ONCE = 16
_COMMANDS_AT_ONCE = 4
_SECONDS_TO_ANSWER = 5.0


class Clients:
    """Everything that clients have sent and been told. Thread-safe.

    jobs: the ids that were acknowledged, by idempotency key. cancelled: jobs that somebody has asked to
    cancel, whether or not the answer came. wrong: answers that no fault explains, counted.
    """

    def __init__(
        self, urls: Sequence[str], seed: int, spec: Callable[[int, int], Mapping[str, Any]] | None = None
    ) -> None:
        """spec: that of the job of a number and a seed; by default of one for the fake machines."""
        self._urls, self._seed, self._spec = urls, seed, spec or _spec
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self.jobs: dict[str, set[str]] = {}
        self._latest: list[str] = []
        self.cancelled: set[str] = set()
        self.commands = Counter[str]()
        self.wrong = Counter[str]()
        self.sent = self.unanswered = 0
        self._waiting = SimpleQueue[tuple[float, int]]()
        self._threads: list[threading.Thread] = []

    def submit(self, jobs: int, *, sends: int, seconds: float) -> None:
        """Begins to send `sends` requests for each job, spread over the seconds; each job until it is
        acknowledged.
        """
        begun = time.monotonic()
        for number in range(jobs):
            self._waiting.put((begun + seconds * number / jobs, number))
        for _ in range(min(_AT_ONCE, jobs)):
            self._threads.append(threading.Thread(target=self._submit_all, args=(sends,), daemon=True))
            self._threads[-1].start()

    def have_submitted(self) -> bool:
        """Returns whether all jobs have been submitted as often as they should be."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Makes the threads end."""
        self._stopped.set()

    def command(self, command: Command) -> None:
        """Sends a command; whether the job's state allows it is for the service to say."""
        with self._lock:
            if not self._latest:
                return
            job = self._latest[-1 - min(command.back, len(self._latest) - 1)]
            if command.verb == "cancel":
                self.cancelled.add(job)
            self.commands[command.verb] += 1
            url = self._urls[self.commands.total() % len(self._urls)]
        with self._client(url) as client:
            try:
                match command.verb:
                    case "resize":
                        client.resize(job, command.workers)
                    case "priority":
                        client.set_priority(job, command.priority)
                    case verb:
                        getattr(client, verb)(job)
            except NotFound:
                self._note(f"{command.verb}: an acknowledged job is not found")
            except RequestError as error:
                if error.status not in {409, 422, 503}:
                    self._note(f"{command.verb}: {error}")
            except ClientError:
                pass  # no answer

    def resume_all(self, paused: Sequence[str]) -> None:
        with self._client(self._urls[0]) as client:
            for job in paused:
                client.resume(job)

    def _submit_all(self, sends: int) -> None:
        clients = [self._client(url) for url in self._urls]
        while not self._stopped.is_set():
            try:
                due, number = self._waiting.get_nowait()
            except Empty:
                break
            self._stopped.wait(max(due - time.monotonic(), 0.0))
            self._submit(number, sends, clients)
        for client in clients:
            client.close()

    def _submit(self, number: int, sends: int, clients: Sequence[Client]) -> None:
        key, spec = f"chaos-{self._seed}-{number}", self._spec(number, self._seed)
        for sent, client in enumerate(cycle(clients)):
            if self._stopped.is_set() or (sent >= sends and key in self.jobs):
                return
            try:
                job = client.submit(spec, key).id
            except RequestError as error:
                if error.status != 503:
                    self._note(f"submit: {error}")
                time.sleep(0.05)
            except ClientError:
                with self._lock:
                    self.unanswered += 1
                time.sleep(0.05)
            else:
                with self._lock:
                    if key not in self.jobs:
                        self._latest.append(job)
                    self.jobs.setdefault(key, set()).add(job)
            with self._lock:
                self.sent += 1

    def _client(self, url: str) -> Client:
        return Client(url, "chaos", timeout=_SECONDS_TO_ANSWER)

    def _note(self, problem: str) -> None:
        with self._lock:
            self.wrong[problem[:200]] += 1


@contextmanager
def commanding(clients: Clients, seed: int, *, every: float) -> Iterator[None]:
    """Sends commands in a thread until the context ends, one about `every` so many seconds."""
    stop, begun = threading.Event(), time.monotonic()

    def work() -> None:
        with ThreadPoolExecutor(_COMMANDS_AT_ONCE) as pool:
            for command in commands(seed, every=every):
                if stop.wait(max(command.at - (time.monotonic() - begun), 0.0)):
                    return
                pool.submit(clients.command, command)

    thread = threading.Thread(target=work, name="commands", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _spec(number: int, seed: int) -> dict[str, Any]:
    random = Random(f"spec {seed} {number}")
    workers: int | dict[str, int] = random.randint(1, 2)
    if random.random() < 0.4:
        workers = {"min": 1, "max": 3}
    return {
        "name": f"chaos-{number}",
        "model": {"class_path": "training.models.ConvNet"},
        "data": {"class_path": "training.data.Digits"},
        "resources": {"workers": workers},
        "retries": random.choice((0, 1, 3, 3)),
        "priority": random.choice((0, 0, 0, 1)),
    }

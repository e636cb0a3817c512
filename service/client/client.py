"""`Client`: every call of the REST API as a method, blocking, with the retries that are safe."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from service.client.errors import ClientError, RequestError, WaitTimeout
from service.client.log_stream import follow_log
from service.client.models import (
    Cluster,
    Job,
    JobPage,
    LogLine,
    LogSource,
    Point,
    Points,
    Queue,
    Upload,
    Validation,
    Waiting,
)
from service.client.retry import Retry, ignore
from service.client.transport import Transport

DEFAULT_URL = "http://127.0.0.1:8000"
_PAGE = 100


class Client:
    """Talks to one service. Close it, or use it in a `with` statement; not for several threads at once.

    Every call blocks for up to `timeout` seconds without an answer, retries a lost connection for about a
    second, and raises ClientError. No retry can do a thing twice. `wait`, `follow` and `follow_logs`, once
    they have found the job, go on while the server is away, as during its restart, for up to `retry_seconds`
    seconds.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        retry_seconds: float = 60.0,
    ) -> None:
        self.retry_seconds = retry_seconds
        self._server = Transport(url, api_key, timeout)

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    def submit(self, spec: Mapping[str, Any] | str, idempotency_key: str | None = None) -> Job:
        """Queues a job; `spec` is a mapping, or YAML or JSON text.

        Idempotent under its key: the same key and spec again give the same job. Without one a key is
        made for this call, so that its own retries cannot run a job twice.
        """
        body, headers = _encoded(spec)
        headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        return self._server.ask(Job, "POST", "/v1/jobs", content=body, headers=headers)

    def validate(self, spec: Mapping[str, Any] | str) -> Validation:
        """What would run, where and how big; changes nothing. Raises RequestError for a bad spec."""
        body, headers = _encoded(spec)
        return self._server.ask(Validation, "POST", "/v1/jobs/validate", content=body, headers=headers)

    def jobs(
        self,
        *,
        states: Iterable[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first, up to `limit`; pages are fetched as the iteration reaches them."""
        query: list[tuple[str, Any]] = [("state", state) for state in states]
        query += [("label", f"{key}:{value}") for key, value in (labels or {}).items()]
        query += [("name", name)] if name else []
        cursor, left = None, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            position = [("limit", size)] + ([("cursor", cursor)] if cursor else [])
            page = self._server.ask(JobPage, "GET", "/v1/jobs", params=[*query, *position])
            yield from page.items
            left = None if left is None else left - len(page.items)
            cursor = page.next_cursor
            if not cursor:
                return

    def job(self, job_id: str) -> Job:
        return self._server.ask(Job, "GET", _path(job_id))

    def cancel(self, job_id: str) -> Job:
        """Asks the job to end. Returns at once; the job may still be stopping."""
        return self._server.ask(Job, "POST", f"{_path(job_id)}/cancel")

    def pause(self, job_id: str) -> Job:
        """Asks the job to save itself and to give its workers back. Returns at once: it may still be pausing.

        Raises RequestError if it has ended or is being cancelled.
        """
        return self._server.ask(Job, "POST", f"{_path(job_id)}/pause")

    def resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue; it goes on where it stopped. One that runs is left alone.

        Raises RequestError if it has ended, is being cancelled, or is still pausing.
        """
        return self._server.ask(Job, "POST", f"{_path(job_id)}/resume")

    def resize(self, job_id: str, workers: int) -> Job:
        """Asks for so many workers, within the range of the job's spec; the result stays the same.

        Returns at once: the job is stopped, and goes on with them, as soon as the cluster has room.
        Raises RequestError for a number out of that range, and if the job has ended.
        """
        return self._server.ask(Job, "POST", f"{_path(job_id)}/resize", json={"workers": workers})

    def wait(self, job_id: str, timeout: float | None = None, poll: float = 0.5) -> Job:
        """Blocks until the job has ended, in whatever state. Raises WaitTimeout after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        job = self.job(job_id)
        while not job.ended:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"job {job_id} is still {job.state} after {timeout:g} s")
            time.sleep(min(poll, left))
            job = self._job(job_id)
        return job

    def follow(
        self, job_id: str, poll: float = 0.5, *, on_away: Callable[[ClientError], None] = ignore
    ) -> Iterator[Job]:
        """Yields the job now and whenever it has changed; the last one has ended.

        `on_away` is called with each failure to reach the server that is going to be tried again.
        """
        last = self.job(job_id)
        yield last
        while not last.ended:
            time.sleep(poll)
            if (job := self._job(job_id, on_away)) != last:
                last = job
                yield job

    def _job(self, job_id: str, on_away: Callable[[ClientError], None] = ignore) -> Job:
        return self._server.ask(Job, "GET", _path(job_id), retry=Retry(self.retry_seconds, on_away))

    def logs(
        self, job_id: str, tail: int | None = None, *, rank: int | None = None, attempt: int | None = None
    ) -> str:
        """What the job printed so far, in all attempts and ranks or in one, each behind a header line if
        there are several; with `tail` the last lines of each rank in the latest attempt.
        """
        params = _given(rank=rank, attempt=attempt, tail=tail)
        return self._server.send("GET", f"{_path(job_id)}/logs", params=params).text

    def follow_logs(
        self,
        job_id: str,
        tail: int | None = None,
        *,
        rank: int | None = None,
        attempt: int | None = None,
    ) -> Iterator[str]:
        """Yields each line that the job prints, from the first, as it comes, until the job has ended.

        A header line comes before those of another attempt or rank. With `tail` it begins with the last
        lines of each rank, with `attempt` it ends with that. A dropped connection is taken up where it
        broke: no line is missing and none comes twice.
        """
        for said in self._follow_logs(job_id, _given(rank=rank, attempt=attempt, tail=tail)):
            if isinstance(said, LogLine):
                yield said.line
            elif said.header is not None:
                yield said.header

    def follow_log_lines(
        self,
        job_id: str,
        tail: int | None = None,
        *,
        rank: int | None = None,
        attempt: int | None = None,
    ) -> Iterator[LogLine]:
        """As `follow_logs`, each line with the attempt and the rank that it came from, without headers."""
        for said in self._follow_logs(job_id, _given(rank=rank, attempt=attempt, tail=tail)):
            if isinstance(said, LogLine):
                yield said

    def _follow_logs(self, job_id: str, params: Mapping[str, int]) -> Iterator[LogLine | LogSource]:
        self.job(job_id)  # a server that is not there at all is told at once
        query = urlencode({"follow": "true", **params})
        yield from follow_log(self._server, f"{_path(job_id)}/logs?{query}", Retry(self.retry_seconds))

    def metrics(self, job_id: str, names: Iterable[str] = ()) -> list[Point]:
        """Every point of the metrics named (none named: all), by name and step."""
        params = [("name", name) for name in names]
        return self._server.ask(Points, "GET", f"{_path(job_id)}/metrics", params=params).items

    def upload_code(self, archive: bytes) -> str:
        """Stores a zip archive, once however often; returns the digest to put into a spec's `code`."""
        headers = {"Content-Type": "application/zip"}
        return self._server.ask(Upload, "POST", "/v1/code", headers=headers, content=archive).digest

    def queue(self) -> list[Waiting]:
        """The jobs that wait, in the order in which they start."""
        return self._server.ask(Queue, "GET", "/v1/queue").items

    def cluster(self) -> Cluster:
        """The machines and what is free on them."""
        return self._server.ask(Cluster, "GET", "/v1/cluster")

    def ready(self) -> bool:
        """Whether the server and all that it depends on can take jobs now. Raises ServerUnreachable."""
        try:
            self._server.send("GET", "/readyz", retry=Retry(0))
        except RequestError:
            return False
        return True


def _encoded(spec: Mapping[str, Any] | str) -> tuple[bytes, dict[str, str]]:
    if isinstance(spec, str):
        return spec.encode(), {"Content-Type": "application/yaml"}
    return json.dumps(dict(spec), allow_nan=False).encode(), {"Content-Type": "application/json"}


def _given(**params: int | None) -> dict[str, int]:
    return {name: value for name, value in params.items() if value is not None}


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"

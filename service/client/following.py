"""The calls of `Client` that follow jobs: their changes, their ends, their logs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from service.client.errors import ClientError, WaitTimeout
from service.client.event_stream import follow_events
from service.client.log_stream import follow_log
from service.client.models import Job, JobEvent, LogLine, LogSource
from service.client.results import job_path
from service.client.retry import Retry, ignore
from service.client.transport import Transport


class Following:
    """A part of `Client`, which documents what every call has in common."""

    _server: Transport
    retry_seconds: float

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Blocks until the job has succeeded, failed or been cancelled, and returns it.

        timeout: seconds until WaitTimeout is raised; None: no limit.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        for job in self._follow(job_id, ignore, deadline):
            if job.ended:
                return job
        raise WaitTimeout(f"job {job_id} is still {job.state} after {timeout:g} s")

    def follow(self, job_id: str, *, on_retry: Callable[[ClientError], None] = ignore) -> Iterator[Job]:
        """Yields the job as it is now and after each change, until it has ended. Blocks between changes.

        Of changes and progress in quick succession it yields the last. on_retry: called with each error that
        is going to be retried.
        """
        yield from self._follow(job_id, on_retry, math.inf)

    def _follow(self, job_id: str, on_retry: Callable[[ClientError], None], deadline: float) -> Iterator[Job]:
        last = self._server.call(Job, "GET", job_path(job_id))
        yield last
        if last.ended:
            return
        retry = Retry(self.retry_seconds, on_retry)
        for event in follow_events(self._server, f"{job_path(job_id)}/events", retry, deadline=deadline):
            if event.name == "job" and (job := Job.model_validate_json(event.data)) != last:
                last = job
                yield last
                if last.ended:
                    return

    def events(
        self,
        job_id: str | None = None,
        *,
        name: str | None = None,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        sweep: str | None = None,
        after: int | None = None,
        on_retry: Callable[[ClientError], None] = ignore,
    ) -> Iterator[JobEvent]:
        """Yields each change: of a job, from the first one until it has ended; of all jobs, from now on.

        Blocks. Reconnects where the connection broke: no change is lost or repeated. after: begins after the
        change with this id (0: with the first one). name, experiment, labels, sweep: of all jobs, only the
        changes of those that match, as in `jobs`. on_retry: called with each error that is going to be
        retried.
        """
        last_id = "" if after is None else str(after)
        path = "/v1/events"
        if job_id is not None:
            self._server.call(Job, "GET", job_path(job_id))  # raises at once if there is no such job
            path = f"{job_path(job_id)}/events"
        query: list[tuple[str, Any]] = [
            (key, value)
            for key, value in {"name": name, "experiment": experiment, "sweep": sweep}.items()
            if value is not None
        ]
        query += [("label", f"{key}:{value}") for key, value in (labels or {}).items()]
        retry = Retry(self.retry_seconds, on_retry)
        for event in follow_events(
            self._server, f"{path}?{urlencode(query)}" if query else path, retry, last_id=last_id
        ):
            if event.name == "change":
                yield JobEvent.model_validate_json(event.data)

    def history(self, job_id: str) -> list[JobEvent]:
        """Returns the changes of the job so far, oldest first. Does not wait for others."""
        found: list[JobEvent] = []
        path = f"{job_path(job_id)}/events"
        for event in follow_events(self._server, path, Retry(min(self.retry_seconds, 1.0))):
            if event.name != "change":
                break  # the job as it is now, which comes after all its changes
            found.append(JobEvent.model_validate_json(event.data))
        return found

    def logs(
        self, job_id: str, tail: int | None = None, *, rank: int | None = None, attempt: int | None = None
    ) -> str:
        """Returns what the job has printed so far.

        rank, attempt: only the log of this rank or attempt (None: all; a header line precedes each log if
        there are several). tail: only the last `tail` lines of each rank in the latest attempt.
        """
        params = _without_none(rank=rank, attempt=attempt, tail=tail)
        return self._server.send("GET", f"{job_path(job_id)}/logs", params=params).text

    def follow_logs(
        self,
        job_id: str,
        tail: int | None = None,
        *,
        rank: int | None = None,
        attempt: int | None = None,
    ) -> Iterator[str]:
        """Yields each line that the job prints, from the first one, until the job has ended. Blocks.

        A header line precedes the lines of another attempt or rank. With `tail`, starts with the last
        `tail` lines of each rank; with `attempt`, stops when that attempt has ended. Reconnects where the
        connection broke: no line is lost or repeated.
        """
        for item in self._follow_logs(job_id, _without_none(rank=rank, attempt=attempt, tail=tail)):
            if isinstance(item, LogLine):
                yield item.line
            elif item.header is not None:
                yield item.header

    def follow_log_lines(
        self,
        job_id: str,
        tail: int | None = None,
        *,
        rank: int | None = None,
        attempt: int | None = None,
    ) -> Iterator[LogLine]:
        """Like `follow_logs`, but yields each line with its attempt and rank, and no header lines."""
        for item in self._follow_logs(job_id, _without_none(rank=rank, attempt=attempt, tail=tail)):
            if isinstance(item, LogLine):
                yield item

    def _follow_logs(self, job_id: str, params: Mapping[str, int]) -> Iterator[LogLine | LogSource]:
        self._server.call(
            Job, "GET", job_path(job_id)
        )  # raises at once if the server cannot be reached or has no such job
        query = urlencode({"follow": "true", **params})
        yield from follow_log(self._server, f"{job_path(job_id)}/logs?{query}", Retry(self.retry_seconds))


def _without_none(**params: int | None) -> dict[str, int]:
    return {name: value for name, value in params.items() if value is not None}

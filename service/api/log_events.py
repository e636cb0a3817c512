"""A job's logs as a stream of server-sent events.

source   the log of the lines that follow: {"attempt": 2, "rank": 1, "header": "==> attempt 2, rank 1 <=="}.
         `rank` is null for an attempt that an older version ran, `header` is null if there is only one log
log      one line; a very long line is split
end      the job's state
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

from fastapi.sse import format_sse_event

from service.api.sse import FULL
from service.errors import Refused
from service.job_logs import CHUNK, JobLogs, Log, View, lines_in, tail_offset
from service.jobs.job import ACTIVE, Job
from training.spec import Problem

_TURN = FULL // 2
"""Bytes of events of one rank after which other ranks with new output take their turn."""
_ID = re.compile(r"([1-9]\d{0,8}):(\d{1,18}(?:,\d{1,18})*)(?::(\d{1,6}))?")


@dataclass(frozen=True, kw_only=True)
class LogPosition:
    """A reader's position.

    attempt: the attempt that it reads. offsets: byte offset in each log of the attempt, by rank; only one if
    the reader wants one rank. source: index of the log whose lines were sent last; None before the first.
    """

    attempt: int = 1
    offsets: tuple[int, ...] = ()
    source: int | None = None

    def __str__(self) -> str:
        """Returns the event id, ATTEMPT:OFFSET,OFFSET,...:SOURCE."""
        offsets = ",".join(map(str, self.offsets or (0,)))
        return f"{self.attempt}:{offsets}" + ("" if self.source is None else f":{self.source}")

    @classmethod
    def parse(cls, event_id: str) -> Self:
        """Parses an event id. Raises Refused if its format is not valid."""
        if not (match := _ID.fullmatch(event_id)):
            problem = Problem(key="Last-Event-ID", message="is not one that this service gave out")
            raise Refused("the position in the log is not valid", [problem])
        return cls(
            attempt=int(match[1]),
            offsets=tuple(map(int, match[2].split(","))),
            source=None if match[3] is None else int(match[3]),
        )

    def offset(self, log: int) -> int:
        """Returns the byte offset in the log with this index."""
        return self.offsets[log] if log < len(self.offsets) else 0

    def moved(self, log: int, offset: int) -> Self:
        """Returns a copy with another offset in the log with this index."""
        offsets = (*self.offsets, *[0] * (log + 1 - len(self.offsets)))
        return replace(self, offsets=(*offsets[:log], offset, *offsets[log + 1 :]))


def beginning(job: Job, logs: JobLogs, view: View, tail: int | None) -> LogPosition:
    """Returns a reader's first position: the start of the first attempt, or of the last `tail` lines of each
    log of the latest attempt.
    """
    attempt = None if tail is None else logs.latest(job, view)
    if tail is None or attempt is None:
        return LogPosition(attempt=view.attempt or 1)
    position = LogPosition(attempt=attempt)
    for log in logs.of(job, attempt, view.rank):
        position = position.moved(_index(log, view), tail_offset(log, tail))
    return position


def _index(log: Log, view: View) -> int:
    """Returns the log's index in a `LogPosition`."""
    return 0 if log.rank is None or view.rank is not None else log.rank


class Follower:
    """Returns one reader's new log lines in portions of about `FULL` bytes: a `service.api.sse.News`.

    job: returns the job as it is now.
    """

    def __init__(self, job: Callable[[], Job], logs: JobLogs, view: View) -> None:
        self._job, self._logs, self._view = job, logs, view

    def __call__(self, position: LogPosition) -> tuple[bytes, LogPosition, bool]:
        # Race closed: read the job's state before its logs. After a job has ended or begun its next attempt,
        # the old logs do not grow, so this reads them completely. The other order could miss the last lines.
        job = self._job()
        event_batch = _EventBatch(position)
        self._fill(event_batch, job)
        if event_batch.full or not self._is_over(job):
            return event_batch.events, event_batch.position, False
        return (
            event_batch.events + format_sse_event(event="end", data_str=job.state),
            event_batch.position,
            True,
        )

    def _is_over(self, job: Job) -> bool:
        return job.state.ended if self._view.attempt is None else _has_ended(self._view.attempt, job)

    def _fill(self, event_batch: _EventBatch, job: Job) -> None:
        """Adds new lines, attempt by attempt, until `event_batch` is full or there is nothing new."""
        last = self._view.attempts(job).stop - 1
        while (attempt := event_batch.position.attempt) <= last:
            logs = self._logs.of(job, attempt, self._view.rank)
            headers, over = self._view.needs_headers(job, logs), _has_ended(attempt, job)
            indexed = {_index(log, self._view): log for log in logs}
            while not event_batch.full and event_batch.take_turns(indexed, over=over, headers=headers):
                pass
            if event_batch.full or attempt == last:
                return
            event_batch.position = LogPosition(attempt=attempt + 1)


def _has_ended(attempt: int, job: Job) -> bool:
    """Returns whether the attempt's logs are complete. An attempt after `job.attempt` has just begun."""
    return attempt < job.attempt or (attempt == job.attempt and job.state not in ACTIVE)


class _EventBatch:
    """Encoded events, and the position after them."""

    def __init__(self, position: LogPosition) -> None:
        self.position = position
        self._events: list[bytes] = []
        self._length = 0

    @property
    def events(self) -> bytes:
        return b"".join(self._events)

    @property
    def full(self) -> bool:
        return self._length >= FULL

    def take_turns(self, logs: dict[int, Log], *, over: bool, headers: bool) -> bool:
        """Adds new lines of each log, the current source first. Returns whether there were any."""
        before = self.position
        for index in _from(self.position.source, logs):
            self._take(index, logs[index], over=over, header=logs[index].header if headers else None)
            if self.full:
                break
        return self.position != before

    def _take(self, index: int, log: Log, *, over: bool, header: str | None) -> None:
        offset, limit = self.position.offset(index), self._length + _TURN
        data = log.read(offset, CHUNK + 1)
        for line, end in lines_in(data, last=over and len(data) <= CHUNK):
            if self.position.source != index:
                self.position = replace(self.position, source=index)
                source = {"attempt": log.attempt, "rank": log.rank, "header": header}
                self._add("source", json.dumps(source))
            self.position = self.position.moved(index, offset + end)
            self._add("log", line.rstrip("\r"))
            if self._length >= limit:
                return

    def _add(self, name: str, data: str) -> None:
        """Adds an event. Carriage returns, which progress bars print, split `data` into data lines."""
        event = format_sse_event(event=name, id=str(self.position), data_str=data)
        self._events.append(event)
        self._length += len(event)


def _from(first: int | None, indices: Iterable[int]) -> list[int]:
    """Returns the indices in cyclic order, beginning with `first`."""
    return sorted(indices, key=lambda index: (first is not None and index < first, index))

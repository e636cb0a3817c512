"""A job's logs as server-sent events, as they come.

source   whose lines follow: {"attempt": 2, "rank": 1, "header": "==> attempt 2, rank 1 <=="}; `rank` is
         null for an attempt that an older version ran, `header` where there is nothing else to mistake
         it for
log      a line; one that is very long comes in pieces
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
"""Bytes of events after which another rank has its turn, if it has printed something, too."""
_ID = re.compile(r"([1-9]\d{0,8}):(\d{1,18}(?:,\d{1,18})*)(?::(\d{1,6}))?")


@dataclass(frozen=True, kw_only=True)
class LogPosition:
    """How far a reader has come: in attempt `attempt`, behind so many bytes of each of its logs.

    Logs are counted by rank, or there is just the one of the rank that the reader wants. source: the log
    whose lines the reader gets at the moment.
    """

    attempt: int = 1
    offsets: tuple[int, ...] = ()
    source: int | None = None

    def __str__(self) -> str:
        """ATTEMPT:OFFSET,OFFSET,...:SOURCE; offsets of 0 at the end are left out."""
        offsets = ",".join(map(str, self.offsets or (0,)))
        return f"{self.attempt}:{offsets}" + ("" if self.source is None else f":{self.source}")

    @classmethod
    def parse(cls, event_id: str) -> Self:
        """Raises Refused unless `event_id` could be one of ours."""
        if not (match := _ID.fullmatch(event_id)):
            problem = Problem(key="Last-Event-ID", message="is not one that this service gave out")
            raise Refused("the place in the log is not valid", [problem])
        return cls(
            attempt=int(match[1]),
            offsets=tuple(map(int, match[2].split(","))),
            source=None if match[3] is None else int(match[3]),
        )

    def offset(self, log: int) -> int:
        return self.offsets[log] if log < len(self.offsets) else 0

    def moved(self, log: int, offset: int) -> Self:
        offsets = (*self.offsets, *[0] * (log + 1 - len(self.offsets)))
        return replace(self, offsets=(*offsets[:log], offset, *offsets[log + 1 :]))


def beginning(job: Job, logs: JobLogs, view: View, tail: int | None) -> LogPosition:
    """Where a reader begins: at the first attempt, or at the last `tail` lines of each log of the latest."""
    attempt = None if tail is None else logs.latest(job, view)
    if tail is None or attempt is None:
        return LogPosition(attempt=view.attempt or 1)
    place = LogPosition(attempt=attempt)
    for log in logs.of(job, attempt, view.rank):
        place = place.moved(_index(log, view), tail_offset(log, tail))
    return place


def _index(log: Log, view: View) -> int:
    """Of a log in a `LogPosition`."""
    return 0 if log.rank is None or view.rank is not None else log.rank


class Follower:
    """What is new for one reader, in portions of about `FULL` bytes: see `service.api.sse.News`.

    job: looks up the job as it stands. start: where the reader begins, told to it at once, so that it does
    not begin elsewhere when its first connection breaks; None if it knows.
    """

    def __init__(self, job: Callable[[], Job], logs: JobLogs, view: View, start: LogPosition | None) -> None:
        self._job, self._logs, self._view = job, logs, view
        self._welcome = b"" if start is None else format_sse_event(id=str(start))

    def __call__(self, place: LogPosition) -> tuple[bytes, LogPosition, bool]:
        # Race closed: a job that ends, or goes on to its next attempt, prints no more, so what is read after
        # this look is all. The other way round its last lines could be missed.
        job = self._job()
        event_batch = _EventBatch(place, self._welcome)
        self._fill(event_batch, job)
        self._welcome = b""
        if event_batch.full or not self._is_over(job):
            return event_batch.events, event_batch.place, False
        return event_batch.events + format_sse_event(event="end", data_str=job.state), event_batch.place, True

    def _is_over(self, job: Job) -> bool:
        return job.state.ended if self._view.attempt is None else _has_ended(self._view.attempt, job)

    def _fill(self, event_batch: _EventBatch, job: Job) -> None:
        """Reads on, attempt by attempt, until the event_batch is full or there is nothing new."""
        last = self._view.attempts(job).stop - 1
        while (attempt := event_batch.place.attempt) <= last:
            logs = self._logs.of(job, attempt, self._view.rank)
            headers, over = self._view.needs_headers(job, logs), _has_ended(attempt, job)
            indexed = {_index(log, self._view): log for log in logs}
            while not event_batch.full and event_batch.take_turns(indexed, over=over, headers=headers):
                pass
            if event_batch.full or attempt == last:
                return
            event_batch.place = LogPosition(attempt=attempt + 1)


def _has_ended(attempt: int, job: Job) -> bool:
    """Whether no more is printed in the attempt; one that `job` has not got to yet began after that look."""
    return attempt < job.attempt or (attempt == job.attempt and job.state not in ACTIVE)


class _EventBatch:
    """Events that are collected from a place on, and the place behind them."""

    def __init__(self, place: LogPosition, events: bytes) -> None:
        self.place = place
        self._events, self._length = [events], len(events)

    @property
    def events(self) -> bytes:
        return b"".join(self._events)

    @property
    def full(self) -> bool:
        return self._length >= FULL

    def take_turns(self, logs: dict[int, Log], *, over: bool, headers: bool) -> bool:
        """Takes what is new of each log, the reader's present one first. Whether there was anything."""
        before = self.place
        for index in _from(self.place.source, logs):
            self._take(index, logs[index], over=over, header=logs[index].header if headers else None)
            if self.full:
                break
        return self.place != before

    def _take(self, index: int, log: Log, *, over: bool, header: str | None) -> None:
        offset, most = self.place.offset(index), self._length + _TURN
        data = log.read(offset, CHUNK + 1)
        for line, end in lines_in(data, last=over and len(data) <= CHUNK):
            if self.place.source != index:
                self.place = replace(self.place, source=index)
                source = {"attempt": log.attempt, "rank": log.rank, "header": header}
                self._add("source", json.dumps(source))
            self.place = self.place.moved(index, offset + end)
            self._add("log", line.rstrip("\r"))
            if self._length >= most:
                return

    def _add(self, name: str, data: str) -> None:
        """Carriage returns in a line, which progress bars print, come as lines of one event."""
        event = format_sse_event(event=name, id=str(self.place), data_str=data)
        self._events.append(event)
        self._length += len(event)


def _from(first: int | None, indices: Iterable[int]) -> list[int]:
    """All of them in order, beginning with `first` and going round."""
    return sorted(indices, key=lambda index: (first is not None and index < first, index))

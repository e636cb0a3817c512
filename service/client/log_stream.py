"""Follows a job's log over server-sent events."""

from __future__ import annotations

from collections.abc import Iterator

from service.client.event_stream import follow_events
from service.client.models import LogLine, LogSource
from service.client.retry import Retry
from service.client.transport import Transport


def follow_log(server: Transport, path: str, retry: Retry) -> Iterator[LogLine | LogSource]:
    """Yields the sources and lines of the event stream at `path` until its `end` event.

    Blocks. No line is lost or repeated when connections break (`follow_events`). Raises ClientError once
    `retry` is exhausted.
    """
    source = None
    for event in follow_events(server, path, retry):
        if event.name == "source":
            source = LogSource.model_validate_json(event.data)
            yield source
        elif event.name == "log":
            yield _line(event.data, source)


def _line(text: str, source: LogSource | None) -> LogLine:
    if source is None:  # a server of an older version
        return LogLine(line=text)
    return LogLine(line=text, attempt=source.attempt, rank=source.rank)

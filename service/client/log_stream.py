"""Follows a job's log over server-sent events, reconnecting where the last connection broke."""

from __future__ import annotations

from collections.abc import Iterator

from service.client.errors import ClientError, RequestError, ServerUnreachable
from service.client.models import LogLine, LogSource
from service.client.retry import Retry
from service.client.transport import RETRIED_STATUSES, Transport


def follow_log(server: Transport, path: str, retry: Retry) -> Iterator[LogLine | LogSource]:
    """Yields the sources and lines of the event stream at `path` until its `end` event.

    Blocks. When a connection breaks, it reconnects after the last event received; no line is lost or
    repeated. Each event renews `retry`. Raises ClientError once `retry` is exhausted.
    """
    last_id, source = "", None
    while True:
        broken: ClientError = ServerUnreachable(server.url, "the stream of the log ended early")
        try:
            for event in server.events(path, {"Last-Event-ID": last_id} if last_id else {}):
                retry.renew()
                last_id = event.id or last_id
                if event.name == "end":
                    return
                if event.name == "source":
                    source = LogSource.model_validate_json(event.data)
                    yield source
                elif event.name == "log":
                    yield _line(event.data, source)
        except ServerUnreachable as error:
            broken = error
        except RequestError as error:
            if error.status not in RETRIED_STATUSES:
                raise
            broken = error
        retry.back_off(broken)


def _line(text: str, source: LogSource | None) -> LogLine:
    if source is None:  # a server of an older version
        return LogLine(line=text)
    return LogLine(line=text, attempt=source.attempt, rank=source.rank)

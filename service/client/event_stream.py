"""Follows an event stream of the service, reconnecting where the last connection broke."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from service.client import sse
from service.client.errors import ClientError, RequestError, ServerUnreachable
from service.client.retry import Retry
from service.client.transport import RETRIED_STATUSES, Transport

_STEADY_SECONDS = 1.0


def follow_events(
    server: Transport, path: str, retry: Retry, *, last_id: str = "", deadline: float = math.inf
) -> Iterator[sse.Event]:
    """Yields the events of the stream at `path` after `last_id`, and last its `end` event, if it has one.

    Blocks. When a connection breaks, it reconnects after the last event received: none is lost or repeated.
    Each event renews `retry`, and so does a connection that has lasted for a second: a job may be silent for
    longer than `retry` lasts. Raises ClientError once `retry` is exhausted. Ends without an `end` event at
    `deadline`, by the monotonic clock.
    """
    opened_at = math.inf
    while time.monotonic() < deadline:
        broken: ClientError = ServerUnreachable(server.url, "the stream of events ended early")
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            for event in server.events(path, headers, deadline=deadline):
                if event is sse.OPEN:
                    opened_at = time.monotonic()
                    continue
                retry.renew()
                last_id = event.id or last_id
                yield event
                if event.name == "end":
                    return
        except ServerUnreachable as error:
            broken = error
        except RequestError as error:
            if error.status not in RETRIED_STATUSES:
                raise
            broken = error
        if time.monotonic() - opened_at > _STEADY_SECONDS:
            retry.renew()
        opened_at = math.inf
        if time.monotonic() < deadline:
            retry.back_off(broken)

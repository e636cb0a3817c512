"""Streams that bring new points of jobs beside the parts of a page: made once for all who look at the job."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from fastapi import Request, Response
from fastapi.sse import format_sse_event

from service.api.context import Context
from service.api.looks import points_topic, spool_of
from service.errors import Unavailable
from service.job_points import JobPoints, Kind, Position, SpoolLook
from service.web import live
from service.web.live import Seen

_MOST_IN_STREAM = 1 << 16  # bytes; what is more is fetched


class _NewPoints:
    """The points by which spools have grown. Who is told of a change in the same moment shares a read."""

    def __init__(self, services: Context) -> None:
        self._points, self._lately = JobPoints(services.settings.storage), services.lately

    def after(self, job_id: str, position: Position | None) -> tuple[bytes, Position]:
        """Returns the event with the points after a position, and the position after them.

        position: None: the event has no points, and the position is the end. Raises Unavailable.
        """
        look = spool_of(job_id, self._points, self._lately)
        if position is None:
            return _event(job_id, look.end, look.end, b""), look.end
        if position == look.end:
            return b"", position
        return self._lately.of(("points", job_id, position, look), lambda: self._read(job_id, position, look))

    def _read(self, job_id: str, position: Position, look: SpoolLook) -> tuple[bytes, Position]:
        portion = self._points.read(job_id, position, Kind.CURVES, _MOST_IN_STREAM, look=look)
        if portion.restarted or portion.more:  # the page fetches them, and is then ahead of the stream
            return _event(job_id, look.end, look.end, b""), look.end
        if portion.position == position:
            return b"", position
        return _event(job_id, position, portion.position, portion.text), portion.position


def stream(
    request: Request,
    services: Context,
    view: Hashable,
    parts: Callable[[], Sequence[bytes]],
    ids: Sequence[str],
) -> Response:
    """Streams the parts of a page as `service.web.live.stream` does, and the new points of these jobs.

    An event `points` has the job and the positions before and after its lines in its first line. A page that
    is at another position fetches what it lacks.
    """
    news = _News(parts, _NewPoints(services), ids)
    beginning: _Seen = ((), (None,) * len(ids))
    return services.streams.response(points_topic(ids), (view, request.scope["path"]), news, beginning)


_Seen = tuple[Seen, tuple[Position | None, ...]]
"""What a page has of its parts; and the position of each job's points, None before the first."""


class _News:
    """The news of the parts, and of the points of each job."""

    def __init__(self, parts: Callable[[], Sequence[bytes]], points: _NewPoints, ids: Sequence[str]) -> None:
        self._of_parts, self._points, self._ids = live.News(parts), points, ids

    def __call__(self, seen: _Seen) -> tuple[bytes, _Seen, bool]:
        news, shown, _ = self._of_parts(seen[0])
        try:
            found = [self._points.after(*each) for each in zip(self._ids, seen[1], strict=True)]
        except Unavailable as error:
            return live.away_news(error, seen[0]), (live.away(error), seen[1]), False
        events, positions = [event for event, _ in found], tuple(position for _, position in found)
        return b"".join([news, *events]), (shown, positions), False


def _event(job_id: str, before: Position, after: Position, lines: bytes) -> bytes:
    text = f"{job_id} {before} {after}\n" + lines.decode(errors="replace").rstrip("\n")
    return format_sse_event(event="points", data_str=text)

"""How long requests take, by route and status."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
NO_ROUTE = "none"
"""The route of a request to a path that does not exist: anybody can invent paths."""


class RequestFigures:
    """Counts the requests of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "syncbn_http_request_seconds",
            "Time until the response begins, by route and status",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._known: dict[tuple[str, str | None, int], Histogram] = {}

    def note(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Counts a request. route: its path with the names of parameters; None: no route has the path."""
        method = method if method in _METHODS else "other"
        known = (method, route, status)
        if known not in self._known:
            self._known[known] = self._seconds.labels(method, route or NO_ROUTE, str(status))
        self._known[known].observe(seconds)

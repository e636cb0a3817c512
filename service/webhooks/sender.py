"""Sends one request to a webhook: to a checked address, within a bounded time, without reading the answer."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import httpcore

from service.errors import Refused
from service.public_addresses import Allowed, permitted

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0


class NotDelivered(Exception):
    """The receiver did not answer that it has taken the message."""


def send(url: str, headers: dict[str, str], body: str, allowed: Allowed) -> int:
    """Posts the body and returns the answer's status. Blocks for up to about `TOTAL_SECONDS`.

    Follows no redirect, uses no proxy, reads no body. Raises NotDelivered, without a status, if there is no
    answer, and Refused if the address is not permitted.
    """
    backend = _CheckedBackend(allowed, time.monotonic() + TOTAL_SECONDS)
    try:
        with (
            httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=backend) as pool,
            pool.stream("POST", url, headers=[*headers.items()], content=body.encode()) as response,
        ):
            return response.status
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
        raise NotDelivered(_cause(error)) from None


@cache
def _ssl_context() -> ssl.SSLContext:
    """Checks certificates against the machine's authorities; reading those takes a moment."""
    return ssl.create_default_context()


def _cause(error: Exception) -> str:
    if isinstance(error, httpcore.TimeoutException):
        return f"no answer in time ({CONNECT_SECONDS:g} s to connect, {TOTAL_SECONDS:g} s in all)"
    return str(error) or type(error).__name__


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to permitted addresses alone. The name is that of the certificate and the Host header."""

    def __init__(self, allowed: Allowed, deadline: float) -> None:
        self._allowed, self._deadline = allowed, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline counts
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = Refused("unreachable")
        for address in permitted(host, port, self._allowed):
            left = min(CONNECT_SECONDS, _left(self._deadline, httpcore.ConnectTimeout))
            try:
                stream = self._sockets.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A connection of which every operation ends by the deadline: a receiver cannot drip its answer."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._deadline, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline, httpcore.ConnectTimeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, error: type[httpcore.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error
    return left

"""Clients of the API that cost next to nothing: they share the cores with the API that they measure."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import cast
from urllib.parse import urlsplit

_CREATED = b"HTTP/1.1 2"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients saw. latencies: seconds of each request, in the order of the answers."""

    seconds: float
    latencies: list[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Returns the latency that this share of the requests had at most, in milliseconds."""
        return 1000 * sorted(self.latencies)[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def post(url: str, key: str, path: str, document: object, idempotency_key: str | None = None) -> bytes:
    """Returns the bytes of a POST request with a JSON body. key: the bearer token."""
    body = json.dumps(document).encode()
    head = f"{_head('POST', url, key, path)}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if idempotency_key is not None:
        head += f"Idempotency-Key: {idempotency_key}\r\n"
    return f"{head}\r\n".encode() + body


def get(url: str, key: str, path: str) -> bytes:
    """Returns the bytes of a GET request. key: the bearer token."""
    return f"{_head('GET', url, key, path)}\r\n".encode()


def _head(method: str, url: str, key: str, path: str) -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\n"


def send(url: str, requests: Iterator[bytes], *, clients: int, seconds: float) -> Load:
    """Lets each client send the next request when its last one is answered, over one connection.

    Ends after `seconds`, or when there are no more requests. Raises RuntimeError for an answer that is no
    success, or has no Content-Length.
    """
    return send_to_several([(url, requests)], clients=clients, seconds=seconds)


def send_to_several(targets: Sequence[tuple[str, Iterator[bytes]]], *, clients: int, seconds: float) -> Load:
    """Does `send` with clients that are shared out evenly. targets: each URL with the requests for it."""
    return asyncio.run(_send(targets, clients, seconds))


async def _send(targets: Sequence[tuple[str, Iterator[bytes]]], clients: int, seconds: float) -> Load:
    loop, latencies = asyncio.get_running_loop(), list[float]()
    begun = time.perf_counter()

    async def client(url: str, requests: Iterator[bytes]) -> None:
        address = urlsplit(url)
        _, made = await loop.create_connection(
            lambda: _Client(requests, begun + seconds, latencies), address.hostname or "", address.port or 80
        )
        await made.ended

    await asyncio.gather(*(client(*target) for target in islice(cycle(targets), clients)))
    return Load(seconds=time.perf_counter() - begun, latencies=latencies)


class _Client(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], until: float, latencies: list[float]) -> None:
        self._requests, self._until, self._latencies = requests, until, latencies
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._sent_at = 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._latencies.append(time.perf_counter() - self._sent_at)
        if not head.startswith(_CREATED):
            self._end(RuntimeError(self._received.decode()))
            return
        self._received.clear()
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or RuntimeError("the connection was closed"))

    def _next(self) -> None:
        request = next(self._requests, None) if time.perf_counter() < self._until else None
        if request is None:
            self._end(None)
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        self._transport.close()
        if not self.ended.done():
            self.ended.set_exception(error) if error else self.ended.set_result(None)


def _length(head: bytearray) -> int:
    """Returns the number of bytes of a body, by its head."""
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        raise RuntimeError(f"an answer without Content-Length: {head.decode()}")
    return int(rest.partition(b"\r\n")[0])

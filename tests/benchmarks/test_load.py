from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat

import pytest

from benchmarks.queue import load

KEY = "secret"


class _Handler(BaseHTTPRequestHandler):
    """Answers with the length of a request's body, and 401 without the key; keeps connections open."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.seen.append((self.path, body))
        text = str(len(body)).encode()
        self.send_response(201 if self.headers["Authorization"] == f"Bearer {KEY}" else 401)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def seen() -> list[tuple[str, bytes]]:
    """The requests that the server has got."""
    return []


@pytest.fixture
def url(seen: list[tuple[str, bytes]]) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_request_is_sent_once_and_measured(url: str, seen: list[tuple[str, bytes]]) -> None:
    requests = [load.post(url, KEY, f"/{number}", {"number": number}) for number in range(20)]

    found = load.send(url, iter(requests), clients=3, seconds=60.0)

    assert sorted(seen) == sorted((f"/{number}", b'{"number": %d}' % number) for number in range(20))
    assert len(found.latencies) == 20
    assert 0 < found.percentile(0.5) <= found.percentile(1.0) == 1000 * max(found.latencies)


def test_clients_are_shared_out_to_several_servers(url: str, seen: list[tuple[str, bytes]]) -> None:
    targets = [(url, repeat(load.post(url, KEY, f"/{name}", {}, "key"), 5)) for name in ("one", "other")]

    found = load.send_to_several(targets, clients=4, seconds=60.0)

    assert sorted(seen) == [("/one", b"{}")] * 5 + [("/other", b"{}")] * 5
    assert len(found.latencies) == 10


def test_requests_end_with_the_time(url: str) -> None:
    found = load.send(url, repeat(load.get(url, KEY, "/")), clients=2, seconds=1.0)

    assert found.latencies
    assert found.per_second == len(found.latencies) / found.seconds


def test_an_answer_that_is_no_success_is_an_error(url: str) -> None:
    with pytest.raises(RuntimeError, match="401"):
        load.send(url, repeat(load.get(url, "another", "/")), clients=1, seconds=60.0)

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Request

from service.api.http_server import MAX_HEAD_BYTES, BoundedHttp, HttpServer

BODY = b"x" * (8 * MAX_HEAD_BYTES)
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that answers with the length of a request's body."""
    app = FastAPI()

    @app.post("/")
    async def length(request: Request) -> int:
        return len(await request.body())

    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    server = HttpServer(uvicorn.Config(app, http=BoundedHttp, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([taken],))
    thread.start()
    yield taken.getsockname()[1]
    server.should_exit = True
    thread.join()
    taken.close()


def answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(request)
            found = b""
            while not found.partition(b"\r\n\r\n")[2] and (part := client.recv(4096)):
                found += part
            return found
        except (ConnectionResetError, BrokenPipeError):
            return b"closed"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        CHUNKED + CHUNK + b"0\r\n\r\n",
    ],
)
def test_a_long_body_is_left_to_the_routes(port: int, request_: bytes) -> None:
    found = answer(port, request_)

    assert found.startswith(b"HTTP/1.1 200")
    assert found.endswith(b"\r\n\r\n%d" % len(BODY))


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /" + BODY,
        b"POST / HTTP/1.1\r\nHost: " + BODY,
        b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * len(BODY),
        CHUNKED + b"1;" + BODY,
        CHUNKED + CHUNK + b"0\r\n" + b"A: b\r\n" * len(BODY),
    ],
    ids=["path", "header", "headers", "extension", "trailers"],
)
def test_an_endless_head_is_refused(port: int, request_: bytes) -> None:
    found = answer(port, request_)

    assert found == b"closed" or found.startswith(b"HTTP/1.1 400"), found

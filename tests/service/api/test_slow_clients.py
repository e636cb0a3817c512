"""Clients that ask for much and do not read it, or go while they send: they cost others nothing."""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.jobs.job import State
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec
from tests.service.serving import Stage
from training.protocol import log_file

LOG_BYTES = 50_000_000
CLIENTS = 10


@pytest.fixture
def api(stage: Stage, sqlite_store: Store, tmp_path: Path) -> Iterator[httpx.Client]:
    app = create_app(Settings(storage=str(tmp_path)), sqlite_store, FakeResults())
    with stage.showing(app) as client:
        yield client


@pytest.mark.parametrize("query", ["", "?follow=true"])
def test_clients_that_do_not_read_a_long_log_cost_little(
    api: httpx.Client, sqlite_store: Store, tmp_path: Path, query: str
) -> None:
    job, _ = sqlite_store.create_job(make_spec())
    sqlite_store.move(job, State.STARTING, attempt=1, workers=1)
    sqlite_store.move(sqlite_store.get(job.id), State.FAILED)
    log = log_file(tmp_path / job.id, 1, 0)
    log.parent.mkdir(parents=True)
    log.write_bytes((b"x" * 99 + b"\n") * (LOG_BYTES // 100))
    before = psutil.Process().memory_info().rss

    with ExitStack() as stack:
        for _ in range(CLIENTS):
            client = stack.enter_context(
                socket.create_connection((api.base_url.host, api.base_url.port or 0))
            )
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(f"GET /v1/jobs/{job.id}/logs{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            client.recv(1)  # it has begun
        for _ in range(20):
            assert api.get("/healthz").status_code == 200
            assert api.get(f"/v1/jobs/{job.id}").status_code == 200

        assert psutil.Process().memory_info().rss - before < LOG_BYTES


@pytest.mark.parametrize(
    ("request_line", "content_type"),
    [
        ("POST /v1/jobs", "application/yaml"),
        ("POST /v1/sweeps", "application/json"),
        ("POST /v1/code", "application/zip"),
        ("PUT /v1/secrets/TOKEN", "text/plain"),
        ("POST /v1/keys", "application/json"),
    ],
)
@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_a_client_that_goes_while_it_sends_leaves_no_traceback(
    api: httpx.Client,
    sqlite_store: Store,
    caplog: pytest.LogCaptureFixture,
    request_line: str,
    content_type: str,
    abrupt: bool,
) -> None:
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.WARNING, "uvicorn.error")
    head = {
        "Host": "localhost",
        "Authorization": api.headers["Authorization"],
        "Content-Type": content_type,
        "Content-Length": "5000",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())

    with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as client:
        client.sendall(f"{request_line} HTTP/1.1\r\n{lines}\r\nhalf of it".encode())
        if abrupt:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 60
    while not (entries := sqlite_store.list_audit()[0]):
        assert time.monotonic() < deadline, "the request is not in the audit log"
        time.sleep(0.01)

    assert [entry.result for entry in entries] == ["refused"]
    assert [record.getMessage() for record in caplog.records] == []
    assert api.get("/v1/jobs").json()["items"] == []

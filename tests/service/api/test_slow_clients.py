"""Clients that ask for much and do not read it: each costs a bounded amount of memory, and others nothing."""

from __future__ import annotations

import socket
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

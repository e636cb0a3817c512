"""An MLflow that hangs, or that refuses the name by which it is asked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.backends import mlflow
from service.backends.mlflow import MlflowRest
from service.errors import Unavailable


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowRest]:
    """Of a server that accepts connections and never answers."""
    monkeypatch.setattr(mlflow, "TIMEOUT_S", 2.1)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        results = MlflowRest(f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield results
        results.close()


def test_few_wait_for_one_that_hangs_and_the_others_are_told_at_once(hanging: MlflowRest) -> None:
    def seconds(_: int) -> tuple[float, str]:
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="MLflow") as caught:
            hanging.check()
        return time.monotonic() - begun, str(caught.value)

    with ThreadPoolExecutor(40) as threads:
        waited = list(threads.map(seconds, range(40)))

    assert sum("timed out" in why and "not tried" not in why for _, why in waited) == 16
    assert sum("under way already" in why or "not tried again" in why for _, why in waited) == 24
    with pytest.raises(Unavailable, match="not tried again yet"):
        hanging.check()


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_one_that_refuses_the_name_of_its_host_is_not_taken_for_ready() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        results = MlflowRest(f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(Unavailable, match="MLFLOW_SERVER_ALLOWED_HOSTS"):
                results.check()
        finally:
            results.close()
            server.shutdown()
            thread.join()

"""One real MLflow server over SQLite that tests may stop and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from service.ports import free_port

START_SECONDS = 120.0


class MlflowServer:
    def __init__(self, folder: Path, artifacts: str | None = None) -> None:
        self.folder = folder
        self.artifacts = artifacts or str(folder / "artifacts")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def begin_to_start(self) -> None:
        """Returns at once; `wait` until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", self.artifacts]
        environment = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would be processes of its own
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )

    def ensure_started(self) -> None:
        """Returns when it answers, whatever has been done to it."""
        if self._process is None:
            self.begin_to_start()
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            log = (self.folder / "server.log").read_text(errors="replace")
            assert self._process.poll() is None, f"the MLflow server ended:\n{log}"
            assert time.monotonic() < deadline, f"the MLflow server does not answer:\n{log}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Kills it with all its processes; returns when they are gone."""
        if self._process is None:
            return
        family = self.signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(family, timeout=20)
        self._process = None

    def signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Sends it to all its processes, which it returns."""
        assert self._process is not None
        try:
            root = psutil.Process(self._process.pid)
            family = [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return family

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_server(folder: Path, artifacts: str | None = None) -> Iterator[MlflowServer]:
    """One that answers. artifacts: where it keeps them; in `folder`, if not said."""
    server = MlflowServer(folder, artifacts)
    try:
        server.ensure_started()
        yield server
    finally:
        server.stop()


@contextmanager
def environment_of_a_worker() -> Iterator[None]:
    """For clients of the server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the tracker itself is patient
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        yield

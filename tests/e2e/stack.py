"""A `syncbn up` of the tests' own: started, killed, ended; with what the tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.client import Client, Job
from service.processes import MARK

SYNCBN = str(Path(sys.executable).with_name("syncbn"))
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("SYNCBN_", "RAY_", "MLFLOW_"))
} | {"OMP_NUM_THREADS": "1"}


class Stack:
    """The embedded stack on a folder, with ports that were free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.mlflow_port = free_port(), free_port()
        self.up: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def start(self) -> None:
        """Blocks until everything is ready."""
        command = [SYNCBN, "up", "--data-dir", str(self.folder)]
        ports = ["--port", str(self.port), "--mlflow-port", str(self.mlflow_port)]
        with (self.folder / "up.log").open("a") as log:
            self.up = subprocess.Popen(
                [*command, *ports], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        deadline = time.monotonic() + 240
        while not self._is_ready():
            assert self.up.poll() is None, (self.folder / "up.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "up.log").read_text()
            time.sleep(0.3)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL for the process of API and dispatcher; Ray and MLflow go on."""
        assert self.up is not None
        self.up.kill()
        self.up.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """What Ctrl-C does; returns the exit code."""
        assert self.up is not None
        self.up.send_signal(number)
        return self.up.wait(120)

    def processes(self) -> list[psutil.Process]:
        """Everything that the stack has started and that is still there, this folder's `up` aside."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == str(self.folder)
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    @contextmanager
    def second_node(self, cpus: int) -> Iterator[Node]:
        """One more Ray node on this machine, as if it was another machine."""
        head = json.loads((self.folder / "stack.json").read_text())["ray"]
        with self.client() as client:
            (known,) = client.cluster().nodes
        token = (self.folder / "ray.token").read_text().strip()
        off = {"AUTOSCALER_METRIC_PORT": "99999", "DASHBOARD_METRIC_PORT": "99999"}
        own = {MARK: str(self.folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **off}
        address = f"{known.address}:{head['gcs_port']}"
        flags = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        size = [f"--num-cpus={cpus}", f"--object-store-memory={100 * 2**20}"]
        # Of its own: two nodes in one folder take uploaded code away from each other.
        temp_dir = tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp")
        flags.append(f"--temp-dir={temp_dir}")
        with (self.folder / "second-node.log").open("w") as log:
            node = Node(
                subprocess.Popen(
                    [RAY, "start", f"--address={address}", "--block", "--disable-usage-stats", *flags, *size],
                    env=ENVIRONMENT | own | {"GLOO_SOCKET_IFNAME": "lo"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            with self.client() as client:
                deadline = time.monotonic() + 120
                while len(client.cluster().nodes) < 2:
                    assert time.monotonic() < deadline, (self.folder / "second-node.log").read_text()
                    time.sleep(0.3)
            yield node
        finally:
            node.kill()
            shutil.rmtree(temp_dir, ignore_errors=True)

    def client(self) -> Client:
        return Client(self.url)

    def cli(self, *arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        environment = ENVIRONMENT | {"SYNCBN_URL": self.url}
        return subprocess.run(
            [SYNCBN, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
        )

    def run(self, spec: Mapping[str, Any]) -> Job:
        """Submits and waits for the end."""
        with self.client() as client:
            return client.wait(client.submit(spec).id, timeout=300)

    def mlflow_get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.mlflow}/api/2.0/mlflow/{path}", params=parameters, timeout=30)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document


class Node:
    """A Ray node: `ray start` and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def kill(self) -> None:
        """SIGKILL for all of it at once, as if the machine was switched off."""
        if self.process.poll() is not None:
            return
        root = psutil.Process(self.process.pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def digits(**changes: Any) -> dict[str, Any]:
    """A job of some seconds on two workers."""
    return {
        "name": "digits",
        "model": {"class_path": "training.models.ConvNet", "init_args": {"widths": [8, 16]}},
        "data": {"class_path": "training.data.Digits"},
        "training": {"global_batch_size": 64, "max_steps": 20},
        "resources": {"workers": 2, "cpus_per_worker": 1},
        "tracking": {"experiment": "tests"},
    } | changes

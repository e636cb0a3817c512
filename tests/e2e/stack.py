"""A `syncbn up` of the tests' own: started, killed, ended; with what the tests ask of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.client import Client, Job
from service.embedded.processes import MARK
from service.ports import free_port
from service.user_code.pack import pack

SYNCBN = str(Path(sys.executable).with_name("syncbn"))
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("SYNCBN_", "RAY_", "MLFLOW_"))
} | {
    "OMP_NUM_THREADS": "1",
    # Ray's default of 15 would let other tests starve the host agents and their ranks.
    "RAY_worker_niceness": "0",
    # As in the embedded stack: the host agents are the only workers.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


def until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


class Served:
    """An API and an MLflow, and how tests ask them."""

    def __init__(self, folder: Path, *, mlflow_host: str = "127.0.0.1") -> None:
        self.folder, self.mlflow_host = folder, mlflow_host
        self.port, self.mlflow_port = free_port(), free_port(mlflow_host)
        self.url = f"http://127.0.0.1:{self.port}"
        self.mlflow = f"http://{mlflow_host}:{self.mlflow_port}"

    def client(self) -> Client:
        return Client(self.url)

    def submit(self, spec: Mapping[str, Any], code: Path | None = None) -> Job:
        with self.client() as client:
            digest = {} if code is None else {"code": client.upload_code(pack(code))}
            return client.submit({**spec, **digest})

    def ended(self, job: Job, seconds: float = 900) -> Job:
        with self.client() as client:
            return client.wait(job.id, timeout=seconds)

    def until(self, job: Job, is_so: Callable[[Job], bool]) -> Job:
        """Waits for a job that has not ended before."""
        deadline = time.monotonic() + 300
        with self.client() as client:
            while not is_so(now := client.job(job.id)):
                waits = not now.ended and time.monotonic() < deadline
                assert waits, f"{now.state}: {now.reason}\n{client.logs(job.id)}"
                time.sleep(0.2)
        return now

    def until_step(self, job: Job, step: int) -> Job:
        return self.until(job, lambda now: now.progress is not None and now.progress.step >= step)

    def log(self, job: Job, **which: int) -> str:
        with self.client() as client:
            return client.logs(job.id, **which)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, verify=False).status_code == 200
        except httpx.HTTPError:
            return False

    def mlflow_get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.mlflow}/api/2.0/mlflow/{path}", params=parameters, timeout=60)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    def mlflow_post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.mlflow}/api/2.0/mlflow/{path}", json=body, timeout=60)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document


class Stack(Served):
    """The embedded stack on a folder, with ports that were free."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.up: subprocess.Popen[str] | None = None
        self.prefix: list[str] = []
        """Begins the command of `up`."""
        self.variables: dict[str, str] = {}

    def start(self) -> None:
        """Blocks until everything is ready."""
        command = [*self.prefix, SYNCBN, "up", "--data-dir", str(self.folder)]
        ports = ["--port", str(self.port), "--mlflow-port", str(self.mlflow_port)]
        with (self.folder / "up.log").open("a") as log:
            self.up = subprocess.Popen(
                [*command, *ports],
                env=ENVIRONMENT | self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        deadline = time.monotonic() + 300
        while not self.is_ready():
            assert self.up.poll() is None, (self.folder / "up.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "up.log").read_text()
            time.sleep(0.3)

    def kill(self) -> None:
        """SIGKILL for `up`, which is the API; Ray, MLflow and the scheduler go on."""
        assert self.up is not None
        self.up.kill()
        self.up.wait()

    def scheduler(self) -> psutil.Process:
        return self._one("service.dispatcher.process")

    def agent(self) -> psutil.Process:
        """Ray's process around the host agent."""
        return self._one("ray::", "HostAgent")

    def fork_server(self) -> psutil.Process:
        """The one that ranks are forked from; it has a clean environment, so it is found below the agent."""
        below = self.agent().children(recursive=True)
        return next(process for process in below if _is(process, "multiprocessing.forkserver"))

    def _one(self, *words: str) -> psutil.Process:
        (found,) = (process for process in self.processes() if _is(process, *words))
        return found

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

    def cli(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        environment = ENVIRONMENT | {"SYNCBN_URL": self.url}
        return subprocess.run(
            [SYNCBN, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
        )


def _is(process: psutil.Process, *words: str) -> bool:
    """Whether they all stand on its command line."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return all(word in line for word in words)


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

"""A separate Ray head for the peers, with a dashboard for Ray Jobs and without the service."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.servers import environment, folder_of_our_own, wait_until
from service.embedded.processes import MARK, marked, sweep
from service.ports import free_port

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 600.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class BareRay:
    """A running Ray head. client: a ray.job_submission client. head: the process of `ray start`. url: that of
    its dashboard, which asks for the token.
    """

    folder: Path
    head: int
    client: Any
    url: str
    token: str

    def roots(self) -> list[psutil.Process]:
        """Returns the root processes; all others are their descendants."""
        return [psutil.Process(self.head), *marked(self.folder)]

    def submit(self, entrypoint: str) -> str:
        """Starts a job that can import this project's packages and the benchmarks; returns its id."""
        name: str = self.client.submit_job(
            entrypoint=entrypoint, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
        )
        return name

    def wait(self, name: str) -> None:
        """Blocks until the job has succeeded. Raises RuntimeError with its log if it fails."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while not (status := self.client.get_job_status(name)).is_terminal():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the peer's job is still {status.value}")
            time.sleep(POLL_SECONDS)
        if status.value != "SUCCEEDED":
            raise RuntimeError(f"the peer's job {status.value}; its log ends:\n{self.log(name)[-2000:]}")

    def wait_for_word(self, name: str, word: str) -> None:
        """Blocks until the job has printed the word."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while word not in (log := self.log(name)):
            if self.client.get_job_status(name).is_terminal() or time.monotonic() > deadline:
                raise RuntimeError(f"the peer's job did not print {word!r}; its log ends:\n{log[-2000:]}")
            time.sleep(POLL_SECONDS)

    def log(self, name: str) -> str:
        text: str = self.client.get_job_logs(name)
        return text

    def stop(self, name: str) -> None:
        """Blocks until the job has ended."""
        self.client.stop_job(name)
        while not self.client.get_job_status(name).is_terminal():
            time.sleep(POLL_SECONDS)


@contextmanager
def bare_ray() -> Iterator[BareRay]:
    """Runs `ray start --head` on free ports; stops all its processes when the context ends."""
    from ray.job_submission import JobSubmissionClient

    token = secrets.token_hex(32)
    # Not below the folder: a socket's path may have at most 107 characters.
    sockets = tempfile.mkdtemp(prefix="bench-ray-", dir="/tmp")
    with folder_of_our_own() as folder:
        dashboard = free_port()
        log = folder / "ray.log"
        head = _start(dashboard, f"{sockets}/r", log, _variables(folder, token))
        try:
            url = f"http://127.0.0.1:{dashboard}"
            headers = {"Authorization": f"Bearer {token}"}
            wait_until(lambda: _answers(url, headers), lambda: head.poll() is None, log)
            client = JobSubmissionClient(url, headers=headers)
            yield BareRay(folder=folder, head=head.pid, client=client, url=url, token=token)
        finally:
            head.terminate()
            sweep(folder)
            head.wait()
            shutil.rmtree(sockets, ignore_errors=True)


def _start(
    dashboard: int, temporary: str, log: Path, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    options = {
        "port": free_port(),
        "dashboard-port": dashboard,
        "dashboard-host": "127.0.0.1",
        "ray-client-server-port": free_port(),
        "temp-dir": temporary,
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "object-store-memory": 200 * 2**20,
    }
    ray = str(Path(sys.executable).with_name("ray"))
    flags = [f"--{name}={value}" for name, value in options.items()]
    with log.open("wb") as output:
        return subprocess.Popen(
            [ray, "start", "--head", "--block", "--disable-usage-stats", *flags],
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _variables(folder: Path, token: str) -> dict[str, str]:
    """Returns the variables of a user who secures Ray with a token, plus a mark to find its processes by."""
    return {
        **environment(),
        MARK: str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_enable_metrics_collection": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise printed lines appear twice
        "RAY_COLOR_PREFIX": "0",
        "AUTOSCALER_METRIC_PORT": "99999",
        "DASHBOARD_METRIC_PORT": "99999",
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _answers(url: str, headers: Mapping[str, str]) -> bool:
    """Returns whether Ray has a node."""
    import httpx

    try:
        path = f"{url}/api/v0/nodes"
        answer = httpx.get(path, headers=dict(headers), timeout=5.0, trust_env=False)
        return answer.is_success and bool(answer.json()["data"]["result"]["result"])
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return False

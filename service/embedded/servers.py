"""The processes of the embedded stack beside `up` itself: a Ray of one machine, MLflow, the scheduler."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.dispatcher import process
from service.embedded.processes import Child, StackState, end_all, marked
from service.errors import Refused, Unavailable
from service.foreground import print_line
from service.ports import free_port, is_free
from service.queue.store import Store
from service.settings import Settings

MLFLOW_DATABASE = "mlflow.db"
NO_PORT = 99_999
"""For a server that Ray would start in any case: it logs that this is no port, and goes on."""


class RayHead(Child):
    key, name = "ray", "Ray"

    def take_over_or_start(self) -> None:
        if self.is_alive() and "private_dir" not in self.known:  # of an earlier version of this software
            self.end()
        super().take_over_or_start()

    def facts(self) -> dict[str, Any]:
        # Of the old one nothing is left: what jobs have made is in the folder.
        self._forget_files()
        # Ray makes its own folder readable for everybody. Not in the stack's folder: the path of a socket may
        # have no more than 107 characters.
        private = tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp")
        return {
            # A head that is started again keeps its address: whoever knew the old one finds the new one.
            "gcs_port": self._port("gcs_port"),
            "private_dir": private,
            "temp_dir": f"{private}/r",
        }

    def _port(self, name: str) -> int:
        known: int | None = self.known.get(name)
        return known if known is not None and is_free("127.0.0.1", known) else free_port()

    def command(self) -> list[str]:
        options = {
            "port": self.known["gcs_port"],
            "temp-dir": self.known["temp_dir"],
            "include-dashboard": "false",
            "dashboard-port": NO_PORT,  # otherwise a process of 70 MiB that only counts users
            "include-log-monitor": "false",  # it sends what workers print to drivers; nobody reads it
            # 0: any free port. The defaults are the same for every Ray on the machine.
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 200 * 2**20,  # no data goes through it
        }
        ray = Path(sys.executable).with_name("ray")
        flags = [f"--{name}={value}" for name, value in options.items()]
        # No monitor: it would ask a cloud for more machines.
        return [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--no-monitor", *flags]

    def environment(self) -> dict[str, str]:
        return {
            # Ray listens on all interfaces, whatever it is told: it must ask for a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.state.token,
            "RAY_enable_metrics_collection": "0",  # a server of theirs would listen there too, without one
            "RAY_DEDUP_LOGS": "0",
            "RAY_COLOR_PREFIX": "0",
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **QUIET,
        }

    def is_ready(self) -> bool:
        """Whether its head answers; the scheduler finds out whether all of it does."""
        try:
            socket.create_connection(("127.0.0.1", self.known["gcs_port"]), timeout=2.0).close()
            return True
        except OSError:
            return False

    def end(self) -> None:
        super().end()
        # Ray's own children that outlived it, and every worker of every job.
        end_all(process for process in marked(self.state.folder) if _has(process, self.known.get("temp_dir")))
        self._forget_files()

    def _forget_files(self) -> None:
        shutil.rmtree(self.known.get("private_dir", self.known.get("temp_dir", "")), ignore_errors=True)


QUIET = {
    "RAY_START_HOOK": "service.embedded.ray_start.alone",
    # Its agent ends at once when it is told to, with the ranks below it: there is nothing to drain.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # It would kill the host agent, and so every job, to free memory that a rank has taken. The kernel kills
    # that rank.
    "RAY_memory_monitor_refresh_ms": "0",
    # Below the host agent are the ranks, which may take every CPU: the API and MLflow answer all the same.
    # Ray's own 15 would let anything else on the machine starve them.
    "RAY_worker_niceness": "5",
    # No worker runs but the host agent.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # What its dashboard would show.
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    # The agent of its dashboard logs every second that there is none.
    "RAY_ROTATION_MAX_BYTES": str(2**20),
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
"""What Ray does for others and this stack does without."""


class MlflowServer(Child):
    key, name = "mlflow", "MLflow"

    def __init__(self, state: StackState, port: int) -> None:
        super().__init__(state)
        self.port = port

    def facts(self) -> dict[str, Any]:
        if not is_free("127.0.0.1", self.port):
            raise Refused(
                f"port {self.port} is taken: choose another with --mlflow-port, or end what listens there"
            )
        return {"port": self.port}

    def take_over_or_start(self) -> None:
        if self.is_alive() and self.known.get("port") != self.port:
            self.end()
        super().take_over_or_start()

    def command(self) -> list[str]:
        folder = self.state.folder
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{folder / MLFLOW_DATABASE}"),
            *("--artifacts-destination", (folder / "artifacts").as_uri(), "--workers", "1"),
        ]

    def environment(self) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of GenAI evaluations: nine processes
        }

    def is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            return httpx.get(url, timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False


class SchedulerServer(Child):
    """Never taken over: a new one is there in seconds, with the settings and the code of this `up`."""

    key, name = "scheduler", "the scheduler"

    def __init__(self, state: StackState, store: Store, settings: Callable[[], Settings]) -> None:
        super().__init__(state)
        self._store, self._settings = store, settings
        self._last_number = 0

    def take_over_or_start(self) -> None:
        self.end()
        self.start()

    def start(self) -> None:
        try:
            last = self._store.scheduler()
            self._last_number = last.number if last is not None else 0
        except Unavailable as error:
            print_line(f"{self.name}: {error}")  # it tells when that is over
        super().start()

    def command(self) -> list[str]:
        return process.command()

    def environment(self) -> dict[str, str]:
        return self._settings().variables()

    def is_ready(self) -> bool:
        """Whether it is at work, and Ray has named it a machine."""
        try:
            row = self._store.scheduler()
        except Unavailable:
            return False
        if row is None or row.number <= self._last_number:
            return False
        return not row.problem and bool(row.nodes)


def _has(process: psutil.Process, text: str | None) -> bool:
    """Whether it belongs to the Ray in that folder, which stands on command lines and in variables."""
    try:
        words = (*process.cmdline(), *process.environ().values())
        return bool(text) and any(str(text) in word for word in words)
    except psutil.Error:
        return False

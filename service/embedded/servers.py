"""The servers of the embedded stack: Ray on one machine, MLflow, and the scheduler."""

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
from service.embedded import same_user
from service.embedded.processes import Child, StackState, end_all, marked
from service.errors import Refused, Unavailable
from service.foreground import print_line
from service.ports import free_port, is_free
from service.queue.store import Store
from service.settings import Settings

MLFLOW_DATABASE = "mlflow.db"
NO_PORT = 99_999
"""An invalid port for a server that Ray always starts: it logs that the port is invalid and goes on."""


class RayHead(Child):
    key, name = "ray", "Ray"

    def take_over_or_start(self) -> None:
        if self.is_alive() and "private_dir" not in self.known:  # of an earlier version of this software
            self.end()
        super().take_over_or_start()

    def facts(self) -> dict[str, Any]:
        # Nothing in the old head's files is needed: all results of jobs are in the stack's folder.
        self._forget_files()
        # Ray makes its own folder readable for everybody, so it goes into a private one. That is not in the
        # stack's folder because a socket's path may have at most 107 characters.
        private = tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp")
        return {
            # A restarted head keeps its address, so that clients of the old one find it.
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
            "dashboard-port": NO_PORT,  # otherwise a process of 70 MiB runs that only reports usage
            "include-log-monitor": "false",  # it sends workers' output to drivers, which do not read it
            # 0: any free port. The default ports are the same for every Ray on the machine.
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 200 * 2**20,  # no training data goes through it
        }
        ray = Path(sys.executable).with_name("ray")
        flags = [f"--{name}={value}" for name, value in options.items()]
        # --no-monitor: no autoscaler.
        return [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--no-monitor", *flags]

    def environment(self) -> dict[str, str]:
        return {
            # Ray always listens on all interfaces, so it must require a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.state.token,
            "RAY_enable_metrics_collection": "0",  # its metrics server listens there too, without a token
            "RAY_DEDUP_LOGS": "0",
            "RAY_COLOR_PREFIX": "0",
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **QUIET,
        }

    def is_ready(self) -> bool:
        """Returns whether the head accepts connections; the scheduler checks the rest of Ray."""
        try:
            socket.create_connection(("127.0.0.1", self.known["gcs_port"]), timeout=2.0).close()
            return True
        except OSError:
            return False

    def end(self) -> None:
        super().end()
        # Ray's own children that outlived it, and all workers of all jobs.
        end_all(process for process in marked(self.state.folder) if _has(process, self.known.get("temp_dir")))
        self._forget_files()

    def _forget_files(self) -> None:
        shutil.rmtree(self.known.get("private_dir", self.known.get("temp_dir", "")), ignore_errors=True)


QUIET = {
    "RAY_START_HOOK": "service.embedded.ray_start.alone",
    # The host agent ends at once with its ranks: there is nothing to drain.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray would kill the host agent, and so every job, to free memory that one rank has taken. Without this
    # monitor the kernel kills that rank.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ranks inherit this niceness from the host agent. They may use every CPU, and the API and MLflow still
    # answer. Ray's default of 15 would let any other process on the machine starve the ranks.
    "RAY_worker_niceness": "5",
    # The host agent is the only worker.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Data for Ray's dashboard, which does not run.
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    # Timers of a tenth of a second for what does not happen here: idle workers, garbage in the object store,
    # objects that move between machines, an autoscaler.
    "RAY_kill_idle_workers_interval_ms": "10000",
    "RAY_raylet_check_gc_period_milliseconds": "10000",
    "RAY_object_manager_timer_freq_ms": "10000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_debug_dump_period_milliseconds": "0",
    # The dashboard's agent logs every second that there is no dashboard.
    "RAY_ROTATION_MAX_BYTES": str(2**20),
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
"""Variables that turn off parts of Ray that this stack does not use."""


class MlflowServer(Child):
    key, name = "mlflow", "MLflow"

    def __init__(self, state: StackState, port: int) -> None:
        super().__init__(state)
        self.port = port

    def facts(self) -> dict[str, Any]:
        if not is_free("127.0.0.1", self.port):
            raise Refused(
                f"port {self.port} is taken: choose another with --mlflow-port, or stop what listens there"
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
            *("--uvicorn-opts", f"--http {same_user.__name__}:{same_user.SameUserProtocol.__name__}"),
        ]

    def environment(self) -> dict[str, str]:
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nine processes, for GenAI evaluations
        }

    def is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            # verify: otherwise every call loads certificates
            return httpx.get(url, timeout=2.0, trust_env=False, verify=False).is_success
        except httpx.HTTPError:
            return False


class SchedulerServer(Child):
    """The scheduler. Never taken over: a new one starts in seconds, with this `up`'s settings and code."""

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
            print_line(f"{self.name}: {error}")  # the scheduler reports when the database is back
        super().start()

    def command(self) -> list[str]:
        return process.command()

    def environment(self) -> dict[str, str]:
        return self._settings().variables()

    def is_ready(self) -> bool:
        """Returns whether it holds the lease and Ray has listed a machine."""
        try:
            row = self._store.scheduler()
        except Unavailable:
            return False
        if row is None or row.number <= self._last_number:
            return False
        return not row.problem and bool(row.nodes)


def _has(process: psutil.Process, text: str | None) -> bool:
    """Returns whether the process's command line or environment contains the text."""
    try:
        words = (*process.cmdline(), *process.environ().values())
        return bool(text) and any(str(text) in word for word in words)
    except psutil.Error:
        return False

"""The two servers of the embedded stack: a Ray of one machine, and MLflow."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.errors import Refused
from service.processes import Child, State, end_all, is_free, marked


class RayHead(Child):
    key, name = "ray", "Ray"

    def facts(self) -> dict[str, Any]:
        # Of the old one nothing is left: jobs' logs are in MLflow, checkpoints in the folder.
        shutil.rmtree(self.known.get("temp_dir", ""), ignore_errors=True)
        return {
            # A head that is started again keeps its address: whoever knew the old one finds the new one.
            **{name: self._port(name) for name in ("gcs_port", "dashboard_port", "client_port")},
            # Not in the folder: a socket's path may have no more than 107 characters.
            "temp_dir": tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp"),
        }

    def _port(self, name: str) -> int:
        known: int | None = self.known.get(name)
        return known if known is not None and is_free("127.0.0.1", known) else _free_port()

    def command(self) -> list[str]:
        options = {
            "port": self.known["gcs_port"],
            "dashboard-port": self.known["dashboard_port"],
            "dashboard-host": "127.0.0.1",
            "ray-client-server-port": self.known["client_port"],
            "temp-dir": self.known["temp_dir"],
            # 0: any free port. The defaults are the same for every Ray on the machine.
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 200 * 2**20,  # no data goes through it
        }
        ray = Path(sys.executable).with_name("ray")
        flags = [f"--{name}={value}" for name, value in options.items()]
        return [str(ray), "start", "--head", "--block", "--disable-usage-stats", *flags]

    def environment(self) -> dict[str, str]:
        return {
            # Ray listens on all interfaces, whatever it is told: it must ask for a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.state.token,
            # Its servers of metrics would listen there too, without one. This is no port: they stay off.
            "AUTOSCALER_METRIC_PORT": "99999",
            "DASHBOARD_METRIC_PORT": "99999",
            "RAY_enable_metrics_collection": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_COLOR_PREFIX": "0",
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def is_ready(self) -> bool:
        from service.errors import ServiceError
        from service.ray_jobs import RayJobs

        cluster = RayJobs(self.state.ray_url, self.state.token)
        try:
            return bool(cluster.nodes())
        except ServiceError:
            return False
        finally:
            cluster.close()

    def end(self) -> None:
        super().end()
        # Ray's own children that outlived it, and every worker of every job.
        end_all(process for process in marked(self.state.folder) if _has(process, self.known.get("temp_dir")))
        shutil.rmtree(self.known.get("temp_dir", ""), ignore_errors=True)


class MlflowServer(Child):
    key, name = "mlflow", "MLflow"

    def __init__(self, state: State, port: int) -> None:
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
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _has(process: psutil.Process, text: str | None) -> bool:
    """Whether it belongs to the Ray in that folder, which stands on command lines and in variables."""
    try:
        words = (*process.cmdline(), *process.environ().values())
        return bool(text) and any(str(text) in word for word in words)
    except psutil.Error:
        return False

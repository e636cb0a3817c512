"""A Ray of the tests' own, of one machine or, for Ray, several, without anything else of the service."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import psutil

from service.embedded.processes import MARK, sweep
from service.embedded.servers import NO_PORT, QUIET
from service.ports import free_port
from tests.e2e.stack import ENVIRONMENT, RAY, until


class SmallRay:
    """A head and other nodes, all on this machine, without what the embedded Ray leaves out, too.

    folder: of logs; what runs carries its name as a mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(32)
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._begun: list[subprocess.Popen[bytes]] = []
        self._temporary: list[str] = []

    def start(self, *, cpus: int, gpus: int = 0) -> None:
        """Returns when its head takes calls. The GPUs are there for Ray alone."""
        without = ["--include-dashboard=false", f"--dashboard-port={NO_PORT}", "--no-monitor"]
        self._ray("--head", *without, f"--port={self._port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")
        until(self._listens, "Ray's head does not listen")

    def add_node(self, *, cpus: int, variables: Mapping[str, str] | None = None) -> None:
        """variables: further ones of all its processes."""
        flags = f"--address={self.address}", f"--num-cpus={cpus}", "--num-gpus=0"
        self._ray(*flags, variables=variables or {})

    def kill_last_node(self) -> None:
        """SIGKILL for all of it at once, as if the machine was switched off."""
        node = psutil.Process(self._begun[-1].pid)
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._begun.pop().wait()

    def agents(self) -> list[psutil.Process]:
        """The host agents of its nodes, in the order of the nodes."""
        children = [
            child for each in self._begun for child in psutil.Process(each.pid).children(recursive=True)
        ]
        return [child for child in children if child.cmdline()[:1] and "RayHostAgent" in child.cmdline()[0]]

    def head(self) -> psutil.Process:
        """The server that knows the cluster."""
        children = psutil.Process(self._begun[0].pid).children()
        return next(child for child in children if child.name() == "gcs_server")

    def end(self) -> None:
        sweep(self.folder)
        for process in self._begun:
            process.wait()
        for folder in self._temporary:
            shutil.rmtree(folder, ignore_errors=True)

    def _ray(self, *flags: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        # Not in the tests' folder: a socket's path may have no more than 107 characters.
        self._temporary.append(tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp"))
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        own = [f"--temp-dir={self._temporary[-1]}", f"--object-store-memory={100 * 2**20}"]
        own.append("--include-log-monitor=false")
        environment = {
            "RAY_START_HOOK": QUIET["RAY_START_HOOK"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_enable_metrics_collection": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "AUTOSCALER_METRIC_PORT": "99999",
            "DASHBOARD_METRIC_PORT": "99999",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            MARK: str(self.folder),
        }
        # What a machine sets for all of its programs would hide what a rank is given.
        usual = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}
        with (self.folder / "ray.log").open("ab") as log:
            self._begun.append(
                subprocess.Popen(
                    [RAY, "start", "--block", "--disable-usage-stats", *flags, *ports, *own],
                    env=usual | environment | dict(variables),
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _listens(self) -> bool:
        assert self._begun[0].poll() is None, (self.folder / "ray.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

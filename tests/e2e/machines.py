"""A cluster of two machines, set up by hand: `ray start` on each, MLflow and `syncbn serve` on the first.

The second is a network namespace with nothing in it but its end of a cable, where such may be made; elsewhere
it is a second Ray node beside the first.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from service.embedded.processes import MARK, sweep
from service.ports import free_port
from tests.e2e.stack import ENVIRONMENT, RAY, SYNCBN, Served


@dataclass(frozen=True)
class Machine:
    """`enter`: what a command line begins with that is to run there."""

    address: str
    interface: str
    enter: Sequence[str] = ()


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """This one and another, which goes with the context; it ends nothing that still runs there."""
    number = os.getpid() % 2**16
    name, subnet = f"syncbn-{number}", f"10.213.{number // 256}.{number % 256 & 252}"
    *network, last = subnet.split(".")
    first, second = (".".join([*network, str(int(last) + host)]) for host in (1, 2))
    here = Machine(first, f"syn{number}a")
    there = Machine(second, f"syn{number}b", ["ip", "netns", "exec", name])
    if not _allowed("ip", "netns", "add", name):
        alone = Machine(_own_address(), "lo")
        yield alone, alone
        return
    try:
        cable = ["type", "veth", "peer", "name", there.interface, "netns", name]
        _do("ip", "link", "add", here.interface, *cable)
        _do("ip", "address", "add", f"{first}/30", "dev", here.interface)
        _do("ip", "link", "set", here.interface, "up")
        _do(*there.enter, "ip", "address", "add", f"{second}/30", "dev", there.interface)
        _do(*there.enter, "ip", "link", "set", there.interface, "up")
        _do(*there.enter, "ip", "link", "set", "lo", "up")
        yield here, there
    finally:
        _do("ip", "netns", "delete", name)


class Machines(Served):
    """The servers of such a cluster, with one CPU for jobs on each machine."""

    def __init__(self, folder: Path, here: Machine, there: Machine) -> None:
        super().__init__(folder, mlflow_host="127.0.0.1" if here == there else here.address)
        self.here, self.there = here, there
        self.token = secrets.token_hex(32)
        self.gcs_port = free_port(here.address)
        # Of their own: two nodes in one folder delete each other's sockets.
        self.temporary = [tempfile.mkdtemp(prefix="syncbn-ray-", dir="/tmp") for _ in "12"]
        self.begun: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when the API knows of both machines."""
        self._ray_head()
        self._mlflow()
        self._serve()
        self._wait(self.is_ready)
        self._ray_worker()
        self._wait(lambda: self.nodes() == self.addresses)

    @property
    def addresses(self) -> list[str]:
        return sorted([self.here.address, self.there.address])

    def nodes(self) -> list[str]:
        """The addresses that the API knows."""
        with self.client() as client:
            return sorted(node.address for node in client.cluster().nodes)

    def kill_second(self) -> None:
        """SIGKILL for all of it at once, as if the machine was switched off."""
        root = psutil.Process(self.begun[-1].pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.begun.pop().wait()

    def end(self) -> None:
        sweep(self.folder)
        for process in self.begun:
            process.wait()
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)

    def _ray_head(self) -> None:
        flags = ["--head", f"--port={self.gcs_port}", "--include-dashboard=false"]
        ports = [f"--ray-client-server-port={free_port()}", f"--dashboard-port={free_port()}"]
        self._ray(self.here, self.temporary[0], *flags, *ports)

    def _ray_worker(self) -> None:
        self._ray(self.there, self.temporary[1], f"--address={self.here.address}:{self.gcs_port}")

    def _ray(self, machine: Machine, temporary: str, *flags: str) -> None:
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        size = ["--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
        own = [f"--node-ip-address={machine.address}", f"--temp-dir={temporary}"]
        self._begin(
            [*machine.enter, RAY, "start", "--block", "--disable-usage-stats", *flags, *ports, *size, *own],
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=self.token,
            RAY_enable_metrics_collection="0",
            AUTOSCALER_METRIC_PORT="99999",
            DASHBOARD_METRIC_PORT="99999",
            RAY_memory_monitor_refresh_ms="0",
            RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
            GLOO_SOCKET_IFNAME=machine.interface,
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        )

    def _mlflow(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        where = ["--host", self.mlflow_host, "--port", str(self.mlflow_port), "--workers", "1"]
        self._begin(
            [sys.executable, "-m", "mlflow", "server", *where, *store, *artifacts],
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
        )

    def _serve(self) -> None:
        self._begin(
            [SYNCBN, "serve", "--port", str(self.port)],
            SYNCBN_DATABASE_URL=f"sqlite:///{self.folder / 'syncbn.db'}",
            SYNCBN_RAY_ADDRESS=f"{self.here.address}:{self.gcs_port}",
            SYNCBN_RAY_TOKEN=self.token,
            SYNCBN_MLFLOW_URL=self.mlflow,
            SYNCBN_STORAGE=str(self.folder / "runs"),
        )

    def _begin(self, command: Sequence[str], **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.begun.append(
                subprocess.Popen(
                    command,
                    env=ENVIRONMENT | environment | {MARK: str(self.folder)},
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not is_so():
            ended = [process.args for process in self.begun if process.poll() is not None]
            assert not ended, f"{ended}\n{(self.folder / 'log').read_text()}"
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.3)


def _own_address() -> str:
    """As Ray finds it, which takes no loopback address for an answer; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("8.8.8.8", 9))
        address: str = probe.getsockname()[0]
        return address
    return "127.0.0.1"


def _do(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def _allowed(*command: str) -> bool:
    with suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    return False

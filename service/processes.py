"""The servers that `syncbn up` starts, finds again and ends."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from service.errors import Refused

MARK = "SYNCBN_STACK"
"""In the environment of everything that the stack starts, Ray's workers included: the stack's folder."""


class State:
    """What is written down about the stack's processes, so that the next `up` finds them."""

    def __init__(self, folder: Path, token: str, servers: dict[str, Any]) -> None:
        self.folder, self.token, self.servers = folder, token, servers

    @classmethod
    def load(cls, folder: Path) -> Self:
        (folder / "logs").mkdir(exist_ok=True)
        path = folder / "stack.json"
        servers = json.loads(path.read_text()) if path.exists() else {}
        return cls(folder, _token(folder / "ray.token"), servers)

    def keep(self, name: str, server: dict[str, Any]) -> None:
        """Written whole or not at all: a torn file would lose a running Ray."""
        self.servers[name] = server
        temporary = self.folder / "stack.json.new"
        temporary.write_text(json.dumps(self.servers, indent=1))
        temporary.replace(self.folder / "stack.json")

    @property
    def ray_url(self) -> str:
        return f"http://127.0.0.1:{self.servers['ray']['dashboard_port']}"


def _token(path: Path) -> str:
    """Ray's secret, made once for the folder, readable by its owner alone."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.new")  # a torn secret would lock everybody out
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        temporary.replace(path)
    return path.read_text()


class Child(ABC):
    """A server in a session of its own, known by its pid and the time of its creation."""

    key: str
    name: str

    def __init__(self, state: State) -> None:
        self.state = state
        self.log = state.folder / "logs" / f"{self.key}.log"
        self._started: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    def facts(self) -> dict[str, Any]:
        """What to write down besides the process; chosen anew for each start."""
        return {}

    @property
    def known(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state.servers.get(self.key, {})
        return found

    def process(self) -> psutil.Process | None:
        if self._started is not None:
            self._started.poll()  # takes the exit status, so that a dead child is no zombie
        try:
            process = psutil.Process(self.known["pid"])
            same = process.create_time() == self.known["create_time"]
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, psutil.Error):
            return None

    def is_alive(self) -> bool:
        return self.process() is not None

    def take_over_or_start(self) -> None:
        if not self.is_alive():
            self.start()

    def restart_if_dead(self) -> None:
        if not self.is_alive():
            print(f"{self.name} has ended by itself (log: {self.log}); starting it again", flush=True)  # noqa: T201
            self.end()
            try:
                self.start()
            except Refused as error:  # its port was taken meanwhile; it may come free again
                print(f"{self.name}: {error}", flush=True)  # noqa: T201

    def start(self) -> None:
        facts = self.facts()
        self.state.keep(self.key, facts)
        environment = os.environ | {MARK: str(self.state.folder)} | self.environment()
        with self.log.open("ab") as log:
            self._started = subprocess.Popen(
                self.command(),
                env=environment,
                cwd=self.state.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for `up` alone
            )
        created = psutil.Process(self._started.pid).create_time()
        self.state.keep(self.key, facts | {"pid": self._started.pid, "create_time": created})

    def end(self) -> None:
        """Ends it with everything below it."""
        process = self.process()
        if process is not None:
            _end([process, *_children(process)])
        self.process()


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
        _end(process for process in _marked(self.state.folder) if _has(process, self.known.get("temp_dir")))
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
        return {"MLFLOW_DISABLE_TELEMETRY": "true"}

    def is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/health"
            return httpx.get(url, timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def sweep(folder: Path, spare: Iterable[Child] = ()) -> bool:
    """Ends every process that carries the mark of this folder, but those in `spare` and below them.

    Returns whether there was one.
    """
    spared: set[int] = set()
    for child in spare:
        if (process := child.process()) is not None:
            spared |= {process.pid, *(below.pid for below in _children(process))}
    found = [process for process in _marked(folder) if process.pid not in spared]
    _end(found)
    return bool(found)


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. Raises Refused where this process may not listen anyway."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Refused(f"cannot listen on {host}:{port}: {error.strerror}") from None
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _marked(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    return found


def _has(process: psutil.Process, text: str | None) -> bool:
    """Whether it belongs to the Ray in that folder, which stands on command lines and in variables."""
    try:
        words = (*process.cmdline(), *process.environ().values())
        return bool(text) and any(str(text) in word for word in words)
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _end(processes: Iterable[psutil.Process], seconds: float = 5.0) -> None:
    """Asks politely, waits, insists."""
    left = list(processes)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            try:
                ask(process)
            except psutil.Error:
                continue
        _, left = psutil.wait_procs(left, timeout=seconds)
        if not left:
            return
        time.sleep(0)

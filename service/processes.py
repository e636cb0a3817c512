"""How a server of the embedded stack is started, found again and ended."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

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
            end_all([process, *_children(process)])
        self.process()


def sweep(folder: Path, spare: Iterable[Child] = ()) -> bool:
    """Ends every process that carries the mark of this folder, but those in `spare` and below them.

    Returns whether there was one.
    """
    spared: set[int] = set()
    for child in spare:
        if (process := child.process()) is not None:
            spared |= {process.pid, *(below.pid for below in _children(process))}
    found = [process for process in marked(folder) if process.pid not in spared]
    end_all(found)
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


def marked(folder: Path) -> list[psutil.Process]:
    """Everything that carries the mark of this folder, but this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def end_all(processes: Iterable[psutil.Process], seconds: float = 5.0) -> None:
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

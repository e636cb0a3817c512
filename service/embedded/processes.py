"""How a server of the embedded stack is started, found again and ended."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from service.errors import Refused
from service.foreground import print_line
from service.identity import Identity
from service.restarts import RestartBackoff

MARK = "SYNCBN_STACK"
"""The stack's folder, in the environment of all that the stack starts; jobs are ended by their host agent."""

LOOKS = 5  # a process that is being ended may have started another one meanwhile


class StackState:
    """What is written down about the stack's processes, so that the next `up` finds them."""

    def __init__(self, folder: Path, token: str, servers: dict[str, Any]) -> None:
        self.folder, self.token, self.servers = folder, token, servers

    @classmethod
    def load(cls, folder: Path) -> Self:
        (folder / "logs").mkdir(exist_ok=True)
        return cls(folder, _token(folder / "ray.token"), _servers(folder / "stack.json"))

    def keep(self, name: str, server: dict[str, Any]) -> None:
        """Written whole or not at all: a torn file would lose a running Ray."""
        self.servers[name] = server
        temporary = self.folder / "stack.json.new"
        temporary.write_text(json.dumps(self.servers, indent=1))
        temporary.replace(self.folder / "stack.json")

    @property
    def ray_address(self) -> str:
        return f"127.0.0.1:{self.servers['ray']['gcs_port']}"


def _servers(path: Path) -> dict[str, Any]:
    try:
        servers: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # a power cut may have emptied it, and has ended what it named
        return {}
    return servers


def _token(path: Path) -> str:
    """Ray's secret, made once for the folder, readable by its owner alone."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.new")  # a torn secret would lock everybody out
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        temporary.replace(path)
    return path.read_text()


class Child(ABC):
    """A server in a session of its own, which outlives this process and is found again."""

    key: str
    name: str

    def __init__(self, state: StackState) -> None:
        self.state = state
        self.log = state.folder / "logs" / f"{self.key}.log"
        self._started: subprocess.Popen[bytes] | None = None
        self._pauses = RestartBackoff()
        self._restart_at: float | None = None

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
        identity = Identity.parse(self.known.get("process", ""))
        return identity.process() if identity else None

    def is_alive(self) -> bool:
        return self.process() is not None

    def take_over_or_start(self) -> None:
        if not self.is_alive():
            self.start()

    def restart_if_dead(self) -> bool:
        """Starts it again if it has ended; after a pause, if that came to nothing before.

        Returns whether it has been started.
        """
        if self.is_alive():
            return False
        if self._restart_at is None:
            print_line(f"{self.name} exited unexpectedly (log: {self.log}): restarting it")
            self.end()
            self._restart_at = time.monotonic() + self._pauses.next()
        if time.monotonic() < self._restart_at:
            return False
        try:
            self.start()
        except Refused as error:  # its port was taken meanwhile; it may come free again
            print_line(f"{self.name}: {error}")
            self._restart_at = time.monotonic() + self._pauses.next()
            return False
        return True

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
        self._pauses.started()
        self._restart_at = None
        self.state.keep(self.key, facts | {"process": str(Identity.of(self._started.pid))})

    def end(self) -> None:
        """Ends it with everything below it."""
        process = self.process()
        if process is not None:
            end_all([process, *(below for below in _below(process) if is_marked(below, self.state.folder))])
        self.process()


def sweep(folder: Path, spare: Iterable[Child] = ()) -> bool:
    """Ends every process that carries the mark of this folder, but those in `spare` and below them.

    Returns whether there was one.
    """
    spared: set[int] = set()
    for child in spare:
        if (process := child.process()) is not None:
            spared |= {process.pid, *(below.pid for below in _below(process))}
    for look in range(LOOKS):
        found = [process for process in marked(folder) if process.pid not in spared]
        if not found:
            return look > 0
        end_all(found)
    return True


def marked(folder: Path) -> list[psutil.Process]:
    """Everything that carries the mark of this folder, but this process."""
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if is_marked(process, folder)]


def is_marked(process: psutil.Process, folder: Path) -> bool:
    """A zombie is not: it has no environment any more."""
    try:
        return process.environ().get(MARK) == str(folder)
    except psutil.Error:  # another user's, or gone
        return False


def end_all(processes: Iterable[psutil.Process], seconds: float = 5.0) -> None:
    """Asks these to end, waits for them and for everything below them, insists.

    Ranks of jobs are below an agent of Ray: they are not asked, since their supervisor ends them with it.
    """
    asked = list(processes)
    # Found now: once its parent has ended, nothing tells whose a process was.
    left = list({each.pid: each for process in asked for each in (process, *_below(process))}.values())
    _signal(asked, psutil.Process.terminate)
    left = _wait(left, seconds)
    _signal(left, psutil.Process.kill)
    _wait(left, seconds)


def _signal(processes: Iterable[psutil.Process], send: Any) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.Error:
            continue


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are still there. One whose parent has not asked how it ended counts as gone."""
    deadline = time.monotonic() + seconds
    while (processes := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _below(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield from process.children(recursive=True)
    except psutil.Error:
        return

"""Processes of the embedded stack: starts a server, finds it again, ends it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil

from service.errors import Refused
from service.foreground import print_line
from service.identity import Identity
from service.restarts import RestartBackoff

LOGS = "logs"
MARK = "SYNCBN_STACK"
"""Environment variable with the stack's folder, set for every process that the stack starts.

Ranks of jobs are ended by their host agent instead.
"""

SECRETS = "SYNCBN_SECRET"  # begins the names of the variables with secrets, and of that with their key

LOOKS = 5  # a process that is being ended may have started another one meanwhile


class StackState:
    """The stack's processes, Ray's token and the key of secrets, stored so that the next `up` finds them."""

    def __init__(self, folder: Path, token: str, secrets_key: str, servers: dict[str, Any]) -> None:
        self.folder, self.token, self.servers = folder, token, servers
        self.secrets_key = secrets_key

    @classmethod
    def load(cls, folder: Path) -> Self:
        (folder / LOGS).mkdir(exist_ok=True)
        token = _made_once(folder / "ray.token", partial(secrets.token_hex, 32))
        key = _made_once(folder / "secrets.key", _new_key)
        return cls(folder, token, key, _servers(folder / "stack.json"))

    def keep(self, name: str, server: dict[str, Any]) -> None:
        """Stores a server's facts. The file is replaced atomically: a torn one would lose a running Ray."""
        self.servers[name] = server
        temporary = self.folder / "stack.json.new"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(self.servers, indent=1))
        temporary.replace(self.folder / "stack.json")

    @property
    def ray_address(self) -> str:
        return f"127.0.0.1:{self.servers['ray']['gcs_port']}"


def _servers(path: Path) -> dict[str, Any]:
    try:
        servers: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # a power cut may empty it, and ends the processes it named
        return {}
    return servers


def _new_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _made_once(path: Path, make: Callable[[], str]) -> str:
    """Returns the content of a file that is created once per folder, readable by its owner only."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.new")  # a torn one would lock everybody out
        temporary.touch(mode=0o600)
        temporary.write_text(make())
        temporary.replace(path)
    return path.read_text()


class Child(ABC):
    """A server in its own session. It outlives this process, and the next `up` finds it again."""

    key: str
    name: str

    def __init__(self, state: StackState) -> None:
        self.state = state
        self.log = state.folder / LOGS / f"{self.key}.log"
        self._started: subprocess.Popen[bytes] | None = None
        self._pauses = RestartBackoff()
        self._restart_at: float | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Returns the command line."""

    def environment(self) -> dict[str, str]:
        """Returns variables to add to those of this process."""
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Returns whether the server answers."""

    def facts(self) -> dict[str, Any]:
        """Returns what to store besides the process; called for each start."""
        return {}

    @property
    def known(self) -> dict[str, Any]:
        """The stored facts of the server's last start."""
        facts: dict[str, Any] = self.state.servers.get(self.key, {})
        return facts

    def process(self) -> psutil.Process | None:
        """Returns the running process, or None."""
        if self._started is not None:
            self._started.poll()  # reaps a dead child, so that it is no zombie
        identity = Identity.parse(self.known.get("process", ""))
        return identity.process() if identity else None

    def is_alive(self) -> bool:
        if self._started is not None:
            return self._started.poll() is None  # cheap: asked every second
        return self.process() is not None

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended the server that this process has started."""
        return self._started is not None and (self._started.poll() or 0) < 0

    def take_over_or_start(self) -> None:
        """Starts the server unless it is running already."""
        if not self.is_alive():
            self.start()

    def restart_if_dead(self) -> bool:
        """Restarts the server if it has ended and its backoff is over. Returns whether it was started."""
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
        except Refused as error:  # its port was taken meanwhile and may become free again
            print_line(f"{self.name}: {error}")
            self._restart_at = time.monotonic() + self._pauses.next()
            return False
        return True

    def start(self) -> None:
        """Starts the server and stores its process. Raises Refused if its port is taken."""
        facts = self.facts()
        self.state.keep(self.key, facts)
        # Only those that need the secrets of jobs get them, in their own `environment`.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
        environment = inherited | {MARK: str(self.state.folder)} | self.environment()
        with self.log.open("ab") as log:
            self._started = subprocess.Popen(
                self.command(),
                env=environment,
                cwd=self.state.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal reaches `up` alone
            )
        self._pauses.started()
        self._restart_at = None
        self.state.keep(self.key, facts | {"process": str(Identity.of(self._started.pid))})

    def end(self) -> None:
        """Ends the server and its descendants. Blocks until they are gone."""
        process = self.process()
        if process is not None:
            end_all(
                [process, *(each for each in _descendants(process) if is_marked(each, self.state.folder))]
            )
        self.process()


def sweep(folder: Path, spare: Iterable[Child] = ()) -> bool:
    """Ends every process with the mark of this folder, except `spare` and their descendants.

    Returns whether there was any.
    """
    spared: set[int] = set()
    for child in spare:
        if (process := child.process()) is not None:
            spared |= {process.pid, *(each.pid for each in _descendants(process))}
    for look in range(LOOKS):
        processes = [process for process in marked(folder) if process.pid not in spared]
        if not processes:
            return look > 0
        end_all(processes)
    return True


def marked(folder: Path) -> list[psutil.Process]:
    """Returns all processes with the mark of this folder, except this one."""
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if is_marked(process, folder)]


def is_marked(process: psutil.Process, folder: Path) -> bool:
    """Returns whether the process has the mark. A zombie has none: its environment is gone."""
    try:
        return process.environ().get(MARK) == str(folder)
    except psutil.Error:  # another user's, or gone
        return False


def end_all(processes: Iterable[psutil.Process], seconds: float = 5.0) -> None:
    """Sends SIGTERM to the processes, waits for them and their descendants, then sends SIGKILL.

    Descendants get no SIGTERM. Ranks of jobs are among them, and their supervisor ends them with their agent.
    seconds: how long to wait after each signal.
    """
    asked = list(processes)
    # Collected first: after its parent has ended, nothing tells whose descendant a process was.
    remaining = list(
        {each.pid: each for process in asked for each in (process, *_descendants(process))}.values()
    )
    _signal(asked, psutil.Process.terminate)
    remaining = _wait(remaining, seconds)
    _signal(remaining, psutil.Process.kill)
    _wait(remaining, seconds)


def _signal(processes: Iterable[psutil.Process], send: Any) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.Error:
            continue


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Returns the processes that still run after `seconds`. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while (processes := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _descendants(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield from process.children(recursive=True)
    except psutil.Error:
        return

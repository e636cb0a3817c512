"""Packages that jobs require: a host installs each list once, into an environment of its own by digest.

    FOLDER/DIGEST/            a virtual environment over this process's, with what pip adds to that
    FOLDER/DIGEST/installed   written last: the environment is complete if and only if it exists
    FOLDER/DIGEST.lock        locked exclusively while it is made or removed, shared while ranks use it

What the workers themselves need (torch, Lightning, MLflow, Ray, and what these require) keeps its version:
ranks are forked from a process that has imported it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import uuid
import venv
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.errors import BuildError, TrainingError
from training.protocol import Order
from training.reserved import hiding_in_folder, own_distributions
from training.spec.environment import line_problem

KEY = "environment.requirements"
MAX_ENVIRONMENTS, MAX_BYTES = 50, 20 * 2**30
"""The least recently used environments beyond this are removed, none that is in use."""
_MARKER = "installed"
_QUOTED_LINES = 30
_SECONDS_BETWEEN = 0.2
_MAY_PASS = ("Retrying (Retry(", "ReadTimeoutError", "No space left on device", "IncompleteRead")
_NOT_FOR_PIP = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_REQUIRE_VIRTUALENV",
)
# pip ends with this process, also if that is killed, and what it runs gains no rights (PR_SET_NO_NEW_PRIVS).
_PIP = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class Cancelled(Exception):
    """The installation was cancelled."""


class InstallFailed(TrainingError):
    """pip failed for a reason that may pass, such as a server that does not answer."""


class Installation:
    """One attempt's installation: what it says goes to `say`, and `cancel` ends it. Thread-safe."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Ends pip and what it has started. Idempotent."""
        with self._lock:
            self._is_cancelled = True
            if self._process is not None and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise Cancelled

    def run(self, command: list[str], **options: Any) -> tuple[int, list[str]]:
        """Runs a command and says each line of its output; returns its exit code and the last lines.

        Raises Cancelled.
        """
        with self._lock:
            self.raise_if_cancelled()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                **options,
            )
        last: deque[str] = deque(maxlen=_QUOTED_LINES)
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                last.append(line.rstrip())
                self.say(f"pip: {line.rstrip()}")
        code = self._process.wait()
        self.raise_if_cancelled()
        return code, list(last)


class InstalledPackages:
    """A complete environment in use. packages: its folder for the import path. `release` ends the use."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.packages, self._lock = packages_of(folder), lock

    def release(self) -> None:
        """Allows its removal. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class PackageFolder:
    """The environments of this host.

    folder: for them alone; agents of one user may share it. variables: the environment of pip. options: for
    its process, as of subprocess.Popen.
    """

    def __init__(
        self, folder: Path, variables: Mapping[str, str], options: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._options = folder, dict(options or {})
        self._variables = {name: value for name, value in variables.items() if name not in _NOT_FOR_PIP}

    def provide(self, order: Order, code: Path, installation: Installation) -> InstalledPackages:
        """Returns the environment with the order's requirements; makes it if there is none. Blocks.

        code: the working directory of the ranks, in which paths are looked up. Raises BuildError if pip
        refuses, InstallFailed if it may succeed another time, Cancelled.
        """
        lines = requirement_lines(order, code)
        digest = self._digest(order, lines)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder, is_new = self._folder / digest, False
        with self._locked(digest, installation) as lock:
            if not (folder / _MARKER).exists():
                is_new = True
                self._make(folder, order, code, lines, installation)
            (folder / _MARKER).touch()
            fcntl.flock(lock, fcntl.LOCK_SH)
            provided = InstalledPackages(folder, os.dup(lock))
        if is_new:
            self._remove_oldest()
        return provided

    def _digest(self, order: Order, lines: list[str]) -> str:
        of_pip = {name: value for name, value in order.variables.items() if name.startswith("PIP_")}
        parts = [lines, of_pip, _pins(), sys.version, sysconfig.get_platform(), sys.prefix]
        if any(map(_is_local, lines)):
            # Their content is the code's; that of a folder may have changed since.
            parts.append(order.code or uuid.uuid4().hex)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @contextmanager
    def _locked(self, digest: str, installation: Installation) -> Iterator[int]:
        """Holds the environment's lock: shared if it is complete, exclusively if it has to be made."""
        lock = os.open(self._folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        waits = False
        try:
            while not self._lock(lock, self._folder / digest):
                if not waits:
                    installation.say("waits for another job that installs the same requirements")
                    waits = True
                installation.raise_if_cancelled()
                threading.Event().wait(_SECONDS_BETWEEN)
            yield lock
        finally:
            os.close(lock)

    def _lock(self, lock: int, folder: Path) -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not (folder / _MARKER).exists():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        # Race closed: two that have the shared lock and wait for each other to give it up.
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False

    def _make(
        self, folder: Path, order: Order, code: Path, lines: list[str], installation: Installation
    ) -> None:
        if find_spec("pip") is None:
            raise BuildError(KEY, "pip is not installed where the workers run; install it there")
        installation.say(f"syncbn: installing environment.requirements on {hostname()}")
        shutil.rmtree(folder, ignore_errors=True)  # of an installation that was interrupted
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        packages = packages_of(folder)
        # pip sees what is installed already, and installs nothing of it again.
        (packages / "_base.pth").write_text("\n".join(_base_folders()) + "\n")
        (folder / "constraints.txt").write_text("\n".join(_pins()) + "\n")
        given = order.spec["environment"]["requirements"]
        file = folder / "requirements.txt"
        if isinstance(given, str):
            file = code / given
        else:
            file.write_text("\n".join(lines) + "\n")
        command = [
            str(folder / "bin" / "python"),
            "-c",
            _PIP,
            "install",
            "--progress-bar",
            "off",
            "--no-color",
        ]
        options = ["--no-input", "--disable-pip-version-check", "-c", str(folder / "constraints.txt")]
        variables = {**self._variables, **order.variables, **order.secrets, "PYTHONUNBUFFERED": "1"}
        code_, said = installation.run(
            [*command, *options, "-r", str(file)], cwd=code, env=variables, **self._options
        )
        if code_:
            raise _failure(code_, said)
        for name, why in hiding_in_folder(packages).items():
            raise BuildError(KEY, f"they install {name}, which {why.partition(': rename')[0]}; leave it out")
        (folder / _MARKER).write_text(str(_size(folder)))

    def _remove_oldest(self) -> None:
        """Removes the least recently used environments beyond the bounds."""
        kept, count = 0, 0
        found = [(path, _used_at(path)) for path in self._folder.iterdir() if path.is_dir()]
        for path, _ in sorted(found, key=lambda each: each[1], reverse=True):
            kept, count = kept + _known_size(path), count + 1
            if kept > MAX_BYTES or count > MAX_ENVIRONMENTS or not (path / _MARKER).exists():
                self._remove(path)

    def _remove(self, folder: Path) -> None:
        lock = os.open(self._folder / f"{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(BlockingIOError):  # in use, or being made
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / _MARKER).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def requirement_lines(order: Order, code: Path) -> list[str]:
    """Returns the lines of the order's requirements, [] if it has none.

    code: the folder in which a file of requirements is looked up. Raises BuildError.
    """
    given: list[str] | str = order.spec.get("environment", {}).get("requirements", [])
    if not isinstance(given, str):
        return list(given)
    try:
        lines = (code / given).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(KEY, f"{given} cannot be read in the code: {error}") from None
    for number, line in enumerate(lines, start=1):
        if why := line_problem(line, in_file=True):
            raise BuildError(KEY, f"{given}, line {number}: {why}")
    return lines


def packages_of(folder: Path) -> Path:
    """Returns the folder of a virtual environment's packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


def hostname() -> str:
    """Returns this machine's name, as a job's state shows it."""
    return socket.gethostname()


@cache
def _pins() -> list[str]:
    return sorted(f"{each.name}=={each.version}" for each in own_distributions())


def _base_folders() -> list[str]:
    """Returns the folders of the import path that have installed packages."""
    found = [path for path in map(Path, sys.path) if path.is_absolute() and any(path.glob("*.dist-info"))]
    # Without packages that another one has within itself.
    return [str(path) for path in found if not any(other in path.parents for other in found)]


def _is_local(line: str) -> bool:
    """Returns whether a line refers to a file, in or beside the code."""
    what = line.strip()
    if what.startswith("#"):
        return False
    words = what.split("#")[0].split()
    is_file = any(word.startswith((".", "/")) or word.endswith((".whl", ".zip", ".tar.gz")) for word in words)
    refers = words[:1] and words[0].partition("=")[0] in {"-r", "-c", "--requirement", "--constraint"}
    return "file:" in what or bool(refers) or (is_file and "://" not in what)


def _failure(code: int, said: list[str]) -> Exception:
    text = "\n".join(said)
    if code < 0 or any(sign in text for sign in _MAY_PASS):
        return InstallFailed(f"{KEY}: pip failed on {hostname()} (exit code {code}):\n{text}")
    kept = ""
    if "(constraint)" in text or "constraint" in text.lower():
        kept = (
            "\nWhat the workers themselves need keeps its version, and pip got it as constraints. Require "
            "the installed version, or leave it out."
        )
    return BuildError(KEY, f"pip could not install them on {hostname()}:\n{text}{kept}")


def _used_at(folder: Path) -> float:
    try:
        return (folder / _MARKER).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _known_size(folder: Path) -> int:
    try:
        return int((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return 0


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))

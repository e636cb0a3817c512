"""Where a job comes from: the user who submits it, and the state of the code directory in git."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.user_code.pack import is_left_out
from training.spec.source import LONGEST_URL, is_public

_SECONDS = 10  # for each call of git; a status may read many files
_SCP = re.compile(r"([\w.-]+@)?[\w.-]{2,}:[^:]+")
_OPTIONS = ("-c", "core.fsmonitor=false")  # starts no daemon
_OF_ANOTHER = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"})
"""Variables that git sets for its hooks: they would name the repository that the command line runs in."""
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def found_source(code: Path | None) -> dict[str, Any]:
    """Returns what is known of a spec's `source`: the user and, of a git work tree, its commit.

    code: the directory; None: the job has no code of its own. Without git, the user alone.
    """
    return _user() | ({} if code is None else _git_state(code))


def _user() -> dict[str, Any]:
    name = user_name()
    return {"user": name} if name else {}


def user_name() -> str:
    """Returns the name of the user who runs this process; "" if it is not known."""
    try:
        name = getpass.getuser()
    except (ImportError, KeyError, OSError):  # no entry for this user
        return ""
    return name[:200] if name.isprintable() else ""


def _git_state(code: Path) -> dict[str, Any]:
    where = _git(code, "rev-parse", "--verify", "--show-prefix", "HEAD")
    if where is None or _git(code, "check-ignore", "--quiet", ".") is not None:
        return {}  # no commit, or the directory is no part of it
    *_, commit = where.split()
    state: dict[str, Any] = {"commit": commit}
    changes = _git(code, "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--", ".")
    if changes is not None:
        prefix = where[: -len(commit) - 1].rstrip("\n")
        state["dirty"] = any(not is_left_out(name[3 + len(prefix) :]) for name in changes.split("\0") if name)
    if url := public_url(_git(code, "config", "--get", "remote.origin.url") or ""):
        state["url"] = url
    return state


def _git(directory: Path, *arguments: str) -> str | None:
    """Returns what git prints; None if there is no git, or if it fails."""
    try:
        done = subprocess.run(
            ["git", *_OPTIONS, "-C", str(directory), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            env={key: value for key, value in os.environ.items() if key not in _OF_ANOTHER} | _ENVIRONMENT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def public_url(remote: str) -> str | None:
    """Returns the address of a git remote without what may be secret; None for one of this machine.

    >>> public_url("https://me:token@example.org/team/nets.git?key=1")
    'https://example.org/team/nets.git'
    """
    remote = remote.strip()
    if "://" not in remote:
        url = remote if _SCP.fullmatch(remote) else ""
    else:
        try:
            parts = urlsplit(remote)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return None
        user = f"{parts.username}@" if parts.scheme == "ssh" and parts.username else ""
        known = parts.scheme in {"http", "https", "ssh", "git"} and parts.hostname
        url = f"{parts.scheme}://{user}{parts.hostname}{port}{parts.path}" if known else ""
    return url if len(url) <= LONGEST_URL and is_public(url) else None

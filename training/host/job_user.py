"""The system users under which jobs run (SYNCBN_JOB_USER), where the host agent runs as root.

    jobber          one system user for all jobs
    200000-265535   one for each user of the service, from this range of user ids

Code of a job runs after `JobUser.become`. What the agent itself does in a folder of a job, it does with the
rights of the job's user (`JobUser.files`): a link that the job has put there leads it nowhere else.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import multiprocessing.resource_tracker as tracker
import os
import pwd
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

SETTING = "SYNCBN_JOB_USER"
UMASK = 0o007
"""Of jobs: what they write is open to their own user and to the group of the storage."""
AS_ROOT = f"jobs run as root, and can read and change everything here: name a system user in {SETTING}"
CLAIMS = ".job-users"
"""The folder in the storage with a link UID -> user of the service for each user id that is in use."""
_RANGE = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,31}\$?", re.ASCII)
_LAST_UID = 2**32 - 2
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


class JobUserError(Exception):
    """Jobs cannot run as SYNCBN_JOB_USER says; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class JobUser:
    """A system user of jobs. home: its own home folder; None: it has none."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str | None = None

    def become(self) -> None:
        """Makes this process one of the user for good; no program that it starts gains other rights."""
        _leave_agent()
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Otherwise /proc/self would belong to root, with /dev/stdout and what measures memory. Nothing in the
        # memory of a process that the fork server has forked is older than its own arguments.
        _libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        os.umask(UMASK)
        with suppress(PermissionError):
            os.setuid(0)
            raise JobUserError(f"{SETTING}: this process can become root again, so no job is started")

    @contextmanager
    def files(self) -> Iterator[None]:
        """Within it this thread opens, creates and deletes files with the rights of the user. Reentrant."""
        before = _file_user(self.uid, self.gid)
        try:
            yield
        finally:
            _file_user(*before)

    @property
    def process_options(self) -> dict[str, object]:
        """The arguments of subprocess.Popen for a process of the user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups), "umask": UMASK}


class AgentUser:
    """The user of the agent itself: in place of a JobUser where SYNCBN_JOB_USER is not set."""

    process_options: Mapping[str, object] = {}

    def become(self) -> None:
        """Does nothing."""

    @contextmanager
    def files(self) -> Iterator[None]:
        """Does nothing."""
        yield


@dataclass(frozen=True, kw_only=True)
class JobUsers:
    """The system users of SYNCBN_JOB_USER: `one` for all jobs, or the user ids from `first` to `last`."""

    one: JobUser | None = None
    first: int = 0
    last: int = -1

    @classmethod
    def named(cls, text: str) -> JobUsers:
        """Returns what the variable says. Raises JobUserError."""
        problem = format_problem(text)
        if problem:
            raise JobUserError(f"{SETTING}: {problem}")
        if found := _RANGE.fullmatch(text):
            first, last = map(int, found.groups())
            _check_unused(first, last)
            return cls(first=first, last=last)
        return cls(one=_system_user(text))

    def has(self, uid: int) -> bool:
        """Returns whether it is one of the user ids of jobs."""
        return uid == self.one.uid if self.one is not None else self.first <= uid <= self.last

    def of(self, user: str | None, storage: Path) -> JobUser:
        """Returns the system user for the jobs of a user of the service; None: for jobs without one.

        storage: the folder of all runs, in which a user keeps the user id that it gets first. Raises OSError,
        JobUserError.
        """
        if self.one is not None:
            return self.one
        uid = _claimed(storage / CLAIMS, user, self.first, self.last)
        return JobUser(name=f"syncbn-{uid}", uid=uid, gid=uid)

    def enter(self) -> None:
        """Prepares this process, which runs as root, to work for such users: without groups of its own, whose
        rights `JobUser.files` would keep, and with the umask of jobs.
        """
        os.setgroups([])
        os.umask(UMASK)

    def check(self, *folders: Path) -> None:
        """Raises JobUserError if this process cannot become such a user, or if jobs could not run as one.

        folders: that jobs have to reach, with the Python of this process.
        """
        if sys.platform != "linux":
            raise JobUserError(f"{SETTING} needs Linux: leave it out here")
        if os.geteuid() != 0:
            raise JobUserError(
                f"{SETTING} is set, and this process does not run as root, so that it cannot start processes "
                "of another user: start it as root, or leave the variable out"
            )
        user = self.one or JobUser(name=f"{self.first}", uid=self.first, gid=self.first)
        python = (sys.executable, os.__file__, sysconfig.get_path("purelib"), __file__)
        for path in (*map(Path, python), *folders):
            is_file = path.is_file()
            with user.files():
                try:
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK if is_file else os.O_PATH))
                except OSError as error:
                    raise JobUserError(
                        f"{SETTING}: the system user {user.name} cannot reach {path} ({error.strerror}): "
                        "open the folders above it to all users (chmod o+x), or move it where they are open"
                    ) from None


def of_environment(variables: Mapping[str, str]) -> JobUsers | None:
    """Returns what SYNCBN_JOB_USER says; None if it is not set. Raises JobUserError."""
    text = variables.get(SETTING)
    return JobUsers.named(text) if text else None


def format_problem(text: str) -> str:
    """Returns what is wrong with the form of SYNCBN_JOB_USER, "" if nothing. Looks nothing up."""
    if not (found := _RANGE.fullmatch(text)):
        return (
            "" if _NAME.fullmatch(text) else "must be the name of a system user, or a range as 200000-265535"
        )
    first, last = map(int, found.groups())
    if not 0 < first < last <= _LAST_UID:
        return f"{text} is not a range of user ids from 1 to {_LAST_UID}, the smaller one first"
    return ""


def _system_user(name: str) -> JobUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise JobUserError(
            f"{SETTING}: this machine has no system user {name}: create it (useradd --system "
            f"{name}), or name another one"
        ) from None
    if entry.pw_uid == 0:
        raise JobUserError(f"{SETTING}: {name} is root: name a user without rights")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    if 0 in groups:
        raise JobUserError(f"{SETTING}: {name} is in the group of root: name another user")
    home = entry.pw_dir if _owner(entry.pw_dir) == entry.pw_uid else None
    return JobUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups, home=home)


def _owner(path: str) -> int | None:
    try:
        return Path(path).stat().st_uid
    except OSError:
        return None


def _check_unused(first: int, last: int) -> None:
    for entry in pwd.getpwall():
        if first <= entry.pw_uid <= last:
            raise JobUserError(
                f"{SETTING}: {entry.pw_name} has the user id {entry.pw_uid}, which is in the range: name a "
                "range without users of this machine"
            )


def _claimed(claims: Path, user: str | None, first: int, last: int) -> int:
    """Returns the user id of a user of the service: that which it has, or the next one that is free."""
    claims.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner, count = "no user" if user is None else f"user {user}", last - first + 1
    start = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big")
    for offset in range(count):
        claim = claims / str(first + (start + offset) % count)
        # Race closed: agents of two machines choose at once. A link is there with its content, or not at all.
        with suppress(FileExistsError):
            claim.symlink_to(owner)
        if str(claim.readlink()) == owner:
            return int(claim.name)
    raise JobUserError(f"{SETTING}: all {count} user ids are taken: name a larger range on all machines")


def _file_user(uid: int, gid: int) -> tuple[int, int]:
    """Sets the user and the group whose rights to files this thread has; returns those before."""
    # Each call returns the value before; one with -1 changes nothing.
    before_gid, before_uid = _libc().setfsgid(gid), _libc().setfsuid(uid)
    if (_unsigned(_libc().setfsuid(-1)), _unsigned(_libc().setfsgid(-1))) != (uid, gid):
        raise JobUserError(f"{SETTING}: the kernel does not let this process use the rights of user {uid}")
    return _unsigned(before_uid), _unsigned(before_gid)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unsigned(number: int) -> int:
    return number & 0xFFFFFFFF


def _leave_agent() -> None:
    """Closes the pipes to the agent's resource tracker and to its fork server.

    The first deletes what is named there, and the second ends when something is written to its pipe. Also
    forgets the agent's folder for the sockets of multiprocessing, which is closed to others.
    """
    current: Any = multiprocessing.current_process()
    current._config.pop("tempdir", None)
    own: Any = tracker._resource_tracker
    if own._fd is not None:
        os.close(own._fd)
        own._fd = own._pid = None
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None

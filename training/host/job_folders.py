"""Folders that belong to the system user of a job: its run folder, and what it keeps on this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from training.host.job_user import SETTING, AgentUser, JobUser, JobUserError

_CACHE = Path("/var/cache/syncbn")
_MODE = 0o2770
"""Of folders in a run folder: what is made there has the group of the storage, which the service may have."""
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def give_run_folder(folder: Path, user: JobUser | AgentUser) -> None:
    """Creates a run folder, if there is none, and makes it the user's, with what others have written there.

    No other user can open it, except those in the group of the storage, its parent. Raises OSError,
    JobUserError.
    """
    if isinstance(user, AgentUser):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    storage = folder.parent.stat()
    with _opened(folder) as opened:
        owner = os.fstat(opened).st_uid
        if owner != user.uid:  # new, or of a time when jobs ran as another user
            _give_below(opened, {owner}, user, storage.st_gid)
        else:  # the service may have written a line
            with suppress(FileNotFoundError, NotADirectoryError), _opened("logs", opened) as logs:
                _give_below(logs, {0, storage.st_uid}, user, storage.st_gid)
        os.fchown(opened, user.uid, storage.st_gid)
        os.fchmod(opened, _MODE)
    with user.files():
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            raise JobUserError(
                f"{SETTING}: the system user {user.name} cannot reach {folder} ({error.strerror}): open the "
                "folders above the storage to all users (chmod o+x)"
            ) from None


def user_folder(user: JobUser, variables: Mapping[str, str], environments: str) -> Path:
    """Returns the folder for what the jobs of a user keep on this machine; creates it, closed to others.

    environments: the name of the variable with the folder above it; by default that is _CACHE.
    """
    above = Path(variables.get(environments) or _CACHE)
    if not above.exists():
        above.mkdir(parents=True, exist_ok=True)
        above.chmod(0o711)
    folder = above / str(user.uid)
    give_folder(folder, user)
    return folder


def give_folder(folder: Path, user: JobUser | AgentUser) -> None:
    """Creates the folder, if there is none, for this user alone. Only the agent's user writes above it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700 if isinstance(user, JobUser) else 0o777)
    if isinstance(user, JobUser):
        os.chown(folder, user.uid, user.gid, follow_symlinks=False)


@contextmanager
def _opened(folder: Path | str, inside: int | None = None) -> Iterator[int]:
    """Opens a folder. Raises OSError: NotADirectoryError also for a symbolic link."""
    opened = os.open(folder, _LOOK | os.O_DIRECTORY, dir_fd=inside)
    try:
        yield opened
    finally:
        os.close(opened)


def _give_below(opened: int, owners: set[int], user: JobUser, group: int) -> None:
    """Makes an opened folder and all in it the user's, as far as it belongs to `owners`. Follows no links.

    A file with a second name stays as it is: the other name may be that of a file elsewhere.
    """
    for _, _, files, inside in os.fwalk(".", dir_fd=opened):
        if os.fstat(inside).st_uid in owners:
            os.fchown(inside, user.uid, group)
            os.fchmod(inside, _MODE)
        for each in files:
            with suppress(OSError):  # a link, or deleted meanwhile
                file = os.open(each, _LOOK, dir_fd=inside)
                try:
                    found = os.fstat(file)
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in owners:
                        os.fchown(file, user.uid, group)
                finally:
                    os.close(file)

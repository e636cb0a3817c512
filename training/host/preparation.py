"""What happens before the ranks of a start are forked: its requirements are installed, in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from training.host.job_user import AgentUser, JobUser
from training.host.packages import Cancelled, Installation, InstalledPackages, PackageFolder, hostname
from training.masking import Masker
from training.protocol import Order, log_file

FOLDER = "SYNCBN_ENVIRONMENTS"
_OF_PIP = ("PIP_", "GIT_", "XDG_", "NETRC", "SSH_AUTH_SOCK")


class Preparation:
    """The preparation of one start.

    code: the working directory of its ranks. user: whose files it writes. done: called in the thread, with
    the error or None. may_fork: whether the ranks are to be forked once it is done. is_done: whether it has
    succeeded.
    """

    def __init__(
        self,
        order: Order,
        code: Path,
        packages: PackageFolder,
        user: JobUser | AgentUser,
        done: Callable[[Exception | None], object],
    ) -> None:
        self.order, self.code, self.user = order, code, user
        self.may_fork = self.is_done = False
        self.message = f"installing requirements on {hostname()}"
        self.provided: InstalledPackages | None = None
        self._packages, self._done = packages, done
        self._masker = Masker(order.secrets.values())
        self._installation = Installation(self._say)

    def start(self) -> None:
        """Begins it in a thread."""
        threading.Thread(target=self._run, name="preparation", daemon=True).start()

    def cancel(self) -> None:
        """Ends it; `done` is called with Cancelled, unless it is done already."""
        self._installation.cancel()

    def release(self) -> None:
        """Ends the use of the installed packages. Idempotent."""
        if self.provided is not None:
            self.provided.release()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            with self.user.files():
                self.provided = self._packages.provide(self.order, self.code, self._installation)
        except Exception as raised:
            error = raised
            if not isinstance(raised, Cancelled):
                self._say(f"{type(raised).__name__}: {raised}")
        self._done(error)

    def _say(self, text: str) -> None:
        """Appends a line to the log of the first rank on this host."""
        path = log_file(self.order.folder, self.order.number, self.order.ranks[0].rank)
        with self.user.files(), suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(log, self._masker.mask(f"{text}\n").encode("utf-8", "backslashreplace"))
            finally:
                os.close(log)


def package_folder(variables: Mapping[str, str], own: Path) -> Path:
    """Returns the folder for environments of this user: of SYNCBN_ENVIRONMENTS, or of the user's cache.

    own: the folder to use if that cannot be written.
    """
    if given := variables.get(FOLDER):
        return Path(given)
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        cache = Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "syncbn" / "environments"
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(cache, os.W_OK):
            return cache
    return own / "environments"


def pip_variables(base: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of pip: that of the ranks, and the variables that configure pip and git."""
    return {**base, **{name: value for name, value in variables.items() if name.startswith(_OF_PIP)}}

"""What jobs get on this machine by their system user: rights, variables and installed packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.errors import BuildError
from training.host.job_folders import give_folder, give_run_folder, user_folder
from training.host.job_user import AgentUser, JobUser, JobUserError, JobUsers
from training.host.packages import PackageFolder
from training.host.preparation import FOLDER, package_folder, pip_variables
from training.protocol import Order

_OF_PIP = ("PIP_", "GIT_")


@dataclass(frozen=True, kw_only=True)
class Account:
    """One system user. variables: for its ranks, in place of the agent's own."""

    user: JobUser | AgentUser
    variables: Mapping[str, str]
    packages: PackageFolder


class Accounts:
    """The accounts of this machine.

    users: see HostAgent. base: the variables of all ranks. folder: the agent's.
    environments: see HostAgent.
    """

    def __init__(
        self,
        users: JobUsers | JobUserError | None,
        base: Mapping[str, str],
        folder: Path,
        environments: Path | None,
    ) -> None:
        self._users, self._base = users, base
        if isinstance(users, JobUsers):
            users.enter()
            folder.chmod(0o711)  # the working directories are in it
        own = environments or package_folder(os.environ, folder)
        packages = PackageFolder(own, pip_variables(base, os.environ))
        self._own = Account(user=AgentUser(), variables={}, packages=packages)

    def of(self, order: Order) -> Account:
        """Returns the account for an order, whose run folder becomes its user's.

        Raises OSError, JobUserError.
        """
        if self._users is None:
            return self._own
        if isinstance(self._users, JobUserError):
            raise self._users
        run = Path(order.folder)
        user = self._users.of(order.user, run.parent)
        give_run_folder(run, user)
        _check_source(order.start_from, user)
        return self._account(user)

    def _account(self, user: JobUser) -> Account:
        kept = user_folder(user, os.environ, FOLDER)
        variables = _variables(user, kept / "home")
        of_pip = {name: value for name, value in os.environ.items() if name.startswith(_OF_PIP)}
        packages = PackageFolder(
            kept / "environments", {**self._base, **of_pip, **variables}, user.process_options
        )
        return Account(user=user, variables=variables, packages=packages)


def _check_source(source: str | None, user: JobUser) -> None:
    """Raises BuildError if the job may not read what its `start_from` names."""
    if source is None or "://" in source:
        return
    try:
        with user.files():
            os.close(os.open(source, os.O_RDONLY))
    except PermissionError:
        raise BuildError(
            "start_from",
            f"{source} belongs to another user, whose files a job of this service cannot read; download the "
            "weights (syncbn download) and send them with your code",
        ) from None
    except OSError:
        return  # the rank says what is wrong


def _variables(user: JobUser, home: Path) -> dict[str, str]:
    if user.home is None:
        give_folder(home, user)
    own = user.home or str(home)
    return {
        "HOME": own,
        "USER": user.name,
        "LOGNAME": user.name,
        "MPLCONFIGDIR": f"{own}/.config/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": f"{own}/.cache/torchinductor",
    }

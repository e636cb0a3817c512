"""Scopes, and who sends a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Scope(enum.StrEnum):
    """What a key allows; each scope includes those before it.

    read: sees everything. submit: also submits jobs, and steers those of its own user. admin: everything,
    with the jobs of all users, the secrets, the keys and the audit log.
    """

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        """Returns whether a key of this scope may do what `other` allows."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sends a request.

    user: of a key; None for the server's own key (SYNCBN_API_KEY) and its token, which belong to nobody.
    credential: tells the credentials apart: the id of a key, or which of the server's own it is.
    """

    user: str | None
    scope: Scope
    credential: str

    @property
    def name(self) -> str:
        """The user, or the name of the server's own credential."""
        return self.user or self.credential

    def may_change(self, owner: str | None) -> bool:
        """Returns whether the caller may change a job or sweep of this user."""
        return self.scope is Scope.ADMIN or (
            self.scope is Scope.SUBMIT and owner is not None and owner == self.user
        )


SERVER_KEY = Caller(user=None, scope=Scope.ADMIN, credential="SYNCBN_API_KEY")
"""Whoever has the key of the server's settings."""

LOCAL_TOKEN = Caller(user=None, scope=Scope.ADMIN, credential="token of this machine")
"""Whoever can read the token file of a server without such a key: the user who started it."""

"""The user who gives a command: the key's, or, for the server's own key, the one that the client names."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header

from service.api.access import Asking
from service.jobs.job import NO_USERS

_LONGEST = 200


def _user(
    caller: Asking,
    syncbn_user: Annotated[
        str | None,
        Header(max_length=3 * _LONGEST, description="Name of the user, percent-encoded: who gives a command"),
    ] = None,
) -> str:
    if caller.user is not None:
        return caller.user
    name = unquote(syncbn_user or "", errors="replace")[:_LONGEST]
    return name if name.isprintable() and name not in NO_USERS else ""


By = Annotated[str, Depends(_user)]
"""The user's name; "" if it is not known."""

"""The user on whose behalf a request comes, as the client names it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header

_LONGEST = 200


def _user(
    syncbn_user: Annotated[
        str | None,
        Header(max_length=3 * _LONGEST, description="Name of the user, percent-encoded: who gives a command"),
    ] = None,
) -> str:
    name = unquote(syncbn_user or "", errors="replace")[:_LONGEST]
    return name if name.isprintable() else ""


By = Annotated[str, Depends(_user)]
"""The user's name; "" if it is not known."""

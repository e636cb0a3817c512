"""The token of a server of this machine that was started without a key: where its user finds it.

It is in `~/.local/state/syncbn/tokens/HOST_PORT` (XDG_STATE_HOME instead of ~/.local/state, if that is set):
HOST is the name of this machine, since a home folder may be shared by several, and PORT that of the API.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import httpx


def token_file(port: int) -> Path:
    """Returns the file of the token of the server on this port."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "syncbn" / "tokens" / f"{socket.gethostname()}_{port}"


class LocalToken(httpx.Auth):
    """Sends the token of a server of this machine, read for each request: a new server has a new one."""

    def __init__(self, port: int) -> None:
        self._file = token_file(port)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # Without one the server is another user's, or has a key: it says what it requires.
        with suppress(OSError, ValueError):
            request.headers["Authorization"] = f"Bearer {self._file.read_text().strip()}"
        yield request

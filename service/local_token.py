"""The token of an API without a key: made at each start, in a file that only its user can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import Refused


@contextmanager
def published(file: Path) -> Iterator[str]:
    """Yields a new token, which is in the file until the context ends.

    A new one each time: whoever listens on the port after this server gets from a client that still reads the
    file what opens nothing. Raises Refused if the file cannot be written.
    """
    token = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.parent.chmod(0o700)
        _write(file, token)
    except OSError as error:
        raise Refused(
            f"the API's token cannot be written to {file}: {error.strerror}: name another folder with "
            "XDG_STATE_HOME, or set SYNCBN_API_KEY"
        ) from None
    try:
        yield token
    finally:
        with suppress(OSError):
            if file.read_text() == token:  # another server may have followed on the port
                file.unlink()


def _write(file: Path, token: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(token)
    temporary.replace(file)

"""Downloads a file: in chunks, into a file that appears when it is complete."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from service.client.errors import UnexpectedAnswer
from service.client.retry import Retry
from service.client.transport import Transport

Progress = Callable[[int, int | None], None]


def no_progress(done: int, total: int | None) -> None:
    """Does nothing: the default for `on_progress`."""


def download(server: Transport, path: str, output: Path, retry: Retry, on_progress: Progress) -> Path:
    """Downloads `path` and returns the path of the file. Holds only a chunk of it in memory.

    output: a folder, in which the file has the name that the server gives it, or the path of the file. Raises
    ClientError, also if the bytes differ from what the server has, and OSError if they cannot be written.
    """

    def write(chunks: Iterator[bytes], headers: httpx.Headers) -> Path:
        target = output / _name(headers, server.url) if output.is_dir() else output
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with part.open("xb") as file:
                digest, size, total = hashlib.sha256(), 0, headers.get("Content-Length")
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    on_progress(size, int(total) if total else None)
                file.flush()
                os.fsync(file.fileno())
            expected = _sha256(headers)
            if expected not in {None, digest.digest()}:
                raise UnexpectedAnswer(server.url, "the checkpoint that it sent is damaged; try again")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    return server.read(path, write, retry)


def _name(headers: httpx.Headers, url: str) -> str:
    named = re.search(r'filename="([\w.-]+)"', headers.get("Content-Disposition", ""))
    if named is None or named[1].startswith("."):
        raise UnexpectedAnswer(url, "it sent a file without a name")
    return named[1]


def _sha256(headers: httpx.Headers) -> bytes | None:
    """Returns the digest of the file as the server has it (RFC 9530); None if it does not say."""
    given = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get("Repr-Digest", ""))
    return base64.b64decode(given[1]) if given else None

"""Files in object storage that speaks S3, by their names under a URL.

Credentials, region and endpoint are those of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT_URL), or what else the AWS SDK finds.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from pyarrow import ArrowException, fs

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PART_BYTES = 32 * 2**20
"""S3 takes 10,000 parts: files of up to 320 GB."""
PARTS_ON_THE_WAY = 4
_FOR_GOOD = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH")


class StorageUnavailable(OSError):
    """The storage did not do what it was asked to; names the URL.

    `for_good`: it would not the next time either, because there is no such bucket or it lets nobody in.
    """

    @property
    def for_good(self) -> bool:
        return _FOR_GOOD.search(str(self)) is not None


class File(NamedTuple):
    """`size` in bytes."""

    name: str
    size: int
    written_at: datetime


def _or_unavailable(
    method: Callable[Concatenate[Bucket, Parameters], Result],
) -> Callable[Concatenate[Bucket, Parameters], Result]:
    @wraps(method)
    def call(bucket: Bucket, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(bucket, *args, **kwargs)
        except (OSError, ArrowException) as error:
            if getattr(error, "errno", None):  # a file that is not there, or this machine's own disk
                raise
            raise StorageUnavailable(errno.EIO, str(error), bucket.url) from error

    return call


class Bucket:
    """Every method blocks. Tries three times, then raises StorageUnavailable."""

    def __init__(self, url: str) -> None:
        self.url = url

    @_or_unavailable
    def files(self) -> list[File]:
        """All of them."""
        storage, root = self._opened
        try:
            found = storage.get_file_info(fs.FileSelector(root, recursive=True))
        except FileNotFoundError:  # no file yet; a bucket that is not there is another error
            return []
        return [
            File(info.path.removeprefix(f"{root}/"), info.size, info.mtime) for info in found if info.is_file
        ]

    @_or_unavailable
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        storage, root = self._opened
        with storage.open_input_file(f"{root}/{name}") as source:
            return bytes(source.read())

    @_or_unavailable
    def download(self, name: str, target: Path) -> None:
        """Raises FileNotFoundError."""
        storage, root = self._opened
        with storage.open_input_file(f"{root}/{name}") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, PART_BYTES)

    @_or_unavailable
    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all, in the place of what was there."""
        storage, root = self._opened
        with storage.open_output_stream(f"{root}/{name}") as target:
            target.write(content)

    @_or_unavailable
    def upload(self, source: Path, name: str) -> None:
        """An error may leave a part of it under its name."""
        storage, root = self._opened
        with source.open("rb") as file, storage.open_output_stream(f"{root}/{name}") as target:
            parts = 0
            while part := file.read(PART_BYTES):
                target.write(part)  # returns at once: what is on its way stays in memory
                parts += 1
                if parts % PARTS_ON_THE_WAY == 0:
                    target.flush()

    @_or_unavailable
    def rename(self, name: str, new: str) -> None:
        """By a copy: for small files."""
        storage, root = self._opened
        storage.move(f"{root}/{name}", f"{root}/{new}")

    @_or_unavailable
    def remove(self, name: str) -> None:
        storage, root = self._opened
        with suppress(FileNotFoundError):
            storage.delete_file(f"{root}/{name}")

    @_or_unavailable
    def remove_folder(self, name: str) -> None:
        storage, root = self._opened
        with suppress(FileNotFoundError):
            storage.delete_dir(f"{root}/{name}")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The storage, and what its paths begin with."""
        storage, root = fs.FileSystem.from_uri(self.url)
        return storage, root

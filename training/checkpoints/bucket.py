"""The files under a URL in S3-compatible object storage.

Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT_URL) or from any other source of the AWS SDK.
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
from typing import Any, BinaryIO, Concatenate, NamedTuple, ParamSpec, TypeVar

from pyarrow import ArrowException, fs

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PART_BYTES = 32 * 2**20
"""S3 allows 10,000 parts per file, so a file may have up to 320 GB."""
PARTS_IN_FLIGHT = 4
"""Parts of an upload held in memory before waiting for their transfer."""
_PERMANENT = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH")


class StorageUnavailable(OSError):
    """A request to the storage failed. The message names the URL."""

    @property
    def is_permanent(self) -> bool:
        """Whether a retry cannot help, because the bucket does not exist or access is denied."""
        return _PERMANENT.search(str(self)) is not None


class File(NamedTuple):
    """A file in the bucket. size: in bytes."""

    name: str
    size: int
    written_at: datetime


def _translate_errors(
    method: Callable[Concatenate[Bucket, Parameters], Result],
) -> Callable[Concatenate[Bucket, Parameters], Result]:
    """Makes a method raise StorageUnavailable for errors of the storage."""

    @wraps(method)
    def call(bucket: Bucket, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(bucket, *args, **kwargs)
        except (OSError, ArrowException) as error:
            if getattr(error, "errno", None):  # a missing file, or this machine's own disk
                raise
            raise StorageUnavailable(errno.EIO, str(error), bucket.url) from error

    return call


class Bucket:
    """The files under `url`. Every method blocks, tries three times, then raises StorageUnavailable."""

    def __init__(self, url: str) -> None:
        self.url = url

    @_translate_errors
    def files(self) -> list[File]:
        """Lists all files."""
        storage, root = self._filesystem
        try:
            infos = storage.get_file_info(fs.FileSelector(root, recursive=True))
        except FileNotFoundError:  # no file yet; a missing bucket raises another error
            return []
        return [
            File(info.path.removeprefix(f"{root}/"), info.size, info.mtime) for info in infos if info.is_file
        ]

    @_translate_errors
    def read(self, name: str) -> bytes:
        """Returns a file's content. Raises FileNotFoundError."""
        storage, root = self._filesystem
        with storage.open_input_file(f"{root}/{name}") as source:
            return bytes(source.read())

    @_translate_errors
    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading from its beginning to its end. Raises FileNotFoundError."""
        storage, root = self._filesystem
        opened: BinaryIO = storage.open_input_stream(f"{root}/{name}")
        return opened

    @_translate_errors
    def download(self, name: str, target: Path) -> None:
        """Copies a file to the local path `target`. Raises FileNotFoundError."""
        storage, root = self._filesystem
        with storage.open_input_file(f"{root}/{name}") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, PART_BYTES)

    @_translate_errors
    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically, replacing an existing one."""
        storage, root = self._filesystem
        with storage.open_output_stream(f"{root}/{name}") as target:
            target.write(content)

    @_translate_errors
    def upload(self, source: Path, name: str) -> None:
        """Copies a local file of any size to the storage. After an error, part of it may be there."""
        storage, root = self._filesystem
        with source.open("rb") as file, storage.open_output_stream(f"{root}/{name}") as target:
            parts = 0
            while part := file.read(PART_BYTES):
                target.write(part)  # returns at once: the part stays in memory until it is sent
                parts += 1
                if parts % PARTS_IN_FLIGHT == 0:
                    target.flush()

    @_translate_errors
    def rename(self, name: str, new: str) -> None:
        """Renames a file by copying it: for small files only."""
        storage, root = self._filesystem
        storage.move(f"{root}/{name}", f"{root}/{new}")

    @_translate_errors
    def remove(self, name: str) -> None:
        storage, root = self._filesystem
        with suppress(FileNotFoundError):
            storage.delete_file(f"{root}/{name}")

    @_translate_errors
    def remove_folder(self, name: str) -> None:
        storage, root = self._filesystem
        with suppress(FileNotFoundError):
            storage.delete_dir(f"{root}/{name}")

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        """The file system, and the path of `url` in it."""
        storage, root = fs.FileSystem.from_uri(self.url)
        return storage, root

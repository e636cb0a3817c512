"""The manifest of a checkpoint, manifest.json: the size and SHA-256 of every file in it.

It is written last. A checkpoint is valid if and only if its files match its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A valid checkpoint. metric: None if it was not given, NaN or infinite."""

    path: Path
    step: int
    metric: float | None


class InvalidCheckpoint(Exception):
    """A checkpoint differs from what was saved; the message says how."""


def step_of(name: str) -> int:
    """Returns the step in a checkpoint's folder name: step-000000120 or step-000000120-1f0c88d2."""
    return int(name.split("-")[1])


def seal(draft: Path, step: int, metric: float | None, *, epoch: int | None = None) -> None:
    """Writes the manifest of the files in `draft`. Raises ValueError for a file that it cannot list.

    epoch: the number of complete epochs; None if it is not known.
    """
    files = {}
    for name, file in files_in(draft).items():
        if name == NAME or not _is_plain(file):
            raise ValueError(f"{name} cannot be in a checkpoint: save plain files, none named {NAME}")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            files[name] = {"size": size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    facts = {"step": step, "metric": metric, "epoch": epoch, "saved_at": time.time()}
    contents = {"format": FORMAT, **facts, "files": files}
    (draft / NAME).write_text(serialize(contents), encoding="utf-8")


def serialize(contents: Mapping[str, Any]) -> str:
    """Returns `contents` as the text of a manifest; the inverse of `parse`."""
    return json.dumps({**contents, "sha256": _digest(contents)}, indent=1)


def parse(text: bytes) -> dict[str, Any]:
    """Returns format, step, metric and, by name, each file's size and sha256. Raises InvalidCheckpoint.

    epoch and saved_at (seconds since 1970) are missing if an earlier version wrote the manifest.
    """
    try:
        contents = json.loads(text)
    except ValueError:
        raise InvalidCheckpoint(f"{NAME} is not valid JSON") from None
    if not isinstance(contents, dict) or "format" not in contents:
        raise InvalidCheckpoint(f"{NAME} is not a checkpoint manifest")
    if contents["format"] != FORMAT:
        raise InvalidCheckpoint(
            f"it has format {contents['format']}, but this version of the software reads {FORMAT}"
        )
    if contents.pop("sha256", None) != _digest(contents):
        raise InvalidCheckpoint(f"{NAME} was changed after it was written")
    return contents


def check(contents: Mapping[str, Any], *, step: int, sizes: Mapping[str, int | None]) -> None:
    """Raises InvalidCheckpoint unless the manifest `contents` fits `step` and the files that exist.

    sizes: of all files that exist, manifest included, in bytes by name; None if it is not a plain file.
    """
    if contents["step"] != step:
        raise InvalidCheckpoint(f"it was saved as step {contents['step']}")
    for name in sorted(sizes.keys() ^ {NAME, *contents["files"]}):
        raise InvalidCheckpoint(f"{name} is {'not part of it' if name in sizes else 'missing'}")
    for name, file in contents["files"].items():
        if sizes[name] is None:
            raise InvalidCheckpoint(f"{name} is not a file")
        if sizes[name] != file["size"]:
            raise InvalidCheckpoint(f"{name} has {sizes[name]} bytes instead of {file['size']}")


@contextmanager
def _missing_file_is_invalid() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:  # another writer may have just deleted it
        raise InvalidCheckpoint(f"{Path(error.filename).name} is missing") from None


@_missing_file_is_invalid()
def read(path: Path) -> dict[str, Any]:
    """Returns the manifest of the checkpoint in `path`. Raises InvalidCheckpoint."""
    if not _is_plain(path / NAME):
        raise InvalidCheckpoint(f"{NAME} is not a file")
    return parse((path / NAME).read_bytes())


@_missing_file_is_invalid()
def sizes_checked(path: Path) -> Saved:
    """Checks the names and sizes of a checkpoint's files. Raises InvalidCheckpoint."""
    if path.is_symlink():
        raise InvalidCheckpoint("it is a symbolic link")
    contents = read(path)
    sizes = {name: file.lstat().st_size if _is_plain(file) else None for name, file in files_in(path).items()}
    check(contents, step=step_of(path.name), sizes=sizes)
    return Saved(path=path, step=contents["step"], metric=contents["metric"])


@_missing_file_is_invalid()
def verified(path: Path) -> Saved:
    """Checks the names, sizes and content of a checkpoint's files. Raises InvalidCheckpoint."""
    saved = sizes_checked(path)
    for name, file in read(path)["files"].items():
        with (path / name).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                raise InvalidCheckpoint(f"{name} has different content than was saved")
    return saved


def files_in(folder: Path) -> dict[str, Path]:
    """Returns all entries in `folder` and its subfolders that are not folders, by name; follows no links."""

    def fail(error: OSError) -> None:
        raise error

    paths: dict[str, Path] = {}
    for base, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        paths |= {(path := Path(base) / name).relative_to(folder).as_posix(): path for name in files + links}
    return paths


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _digest(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

"""What makes a folder a whole checkpoint: manifest.json, with the size and SHA-256 of every file in it.

It is written when all the others are there. A folder that is not as its manifest says is torn.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A whole checkpoint. `metric` is None where none was given, and for NaN and infinities."""

    path: Path
    step: int
    metric: float | None


class Torn(Exception):
    """A checkpoint is not what was saved; the message says what is wrong with it."""


def step_of(name: str) -> int:
    """Of a checkpoint's folder: step-000000120, or step-000000120-1f0c88d2."""
    return int(name.split("-")[1])


def seal(draft: Path, step: int, metric: float | None) -> None:
    """Says in a manifest what the files in `draft` are. Raises ValueError for what cannot be one of them."""
    files = {}
    for name, file in files_in(draft).items():
        if name == NAME or not _is_plain(file):
            raise ValueError(f"{name} cannot be in a checkpoint: save plain files, none named {NAME}")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            files[name] = {"size": size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    contents = {"format": FORMAT, "step": step, "metric": metric, "files": files}
    (draft / NAME).write_text(text_of(contents), encoding="utf-8")


def text_of(contents: Mapping[str, Any]) -> str:
    """What `parse` makes `contents` of."""
    return json.dumps({**contents, "sha256": _digest(contents)}, indent=1)


def parse(text: bytes) -> dict[str, Any]:
    """format, step, metric and, by name, each file's size and sha256. Raises Torn."""
    try:
        contents = json.loads(text)
    except ValueError:
        raise Torn(f"{NAME} is no JSON") from None
    if not isinstance(contents, dict) or "format" not in contents:
        raise Torn(f"{NAME} is none of a checkpoint")
    if contents["format"] != FORMAT:
        raise Torn(f"it is of format {contents['format']}, and this version of the software reads {FORMAT}")
    if contents.pop("sha256", None) != _digest(contents):
        raise Torn(f"{NAME} is not as it was written")
    return contents


def check(contents: Mapping[str, Any], *, step: int, sizes: Mapping[str, int | None]) -> None:
    """Raises Torn unless these are the files that were saved, the manifest among them, and it was this step.

    sizes: in bytes by name; None where it is no plain file.
    """
    if contents["step"] != step:
        raise Torn(f"it was saved as step {contents['step']}")
    for name in sorted(sizes.keys() ^ {NAME, *contents["files"]}):
        raise Torn(f"{name} is {'no part of it' if name in sizes else 'missing'}")
    for name, file in contents["files"].items():
        if sizes[name] is None:
            raise Torn(f"{name} is no file")
        if sizes[name] != file["size"]:
            raise Torn(f"{name} has {sizes[name]} bytes and not {file['size']}")


@contextmanager
def _missing_is_torn() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:  # at once or, beside another writer, meanwhile
        raise Torn(f"{Path(error.filename).name} is missing") from None


@_missing_is_torn()
def read(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `path`. Raises Torn."""
    if not _is_plain(path / NAME):
        raise Torn(f"{NAME} is no file")
    return parse((path / NAME).read_bytes())


@_missing_is_torn()
def described(path: Path) -> Saved:
    """The checkpoint whose files are all there, with the sizes they had. Raises Torn."""
    if path.is_symlink():
        raise Torn("it is a symbolic link")
    contents = read(path)
    sizes = {name: file.lstat().st_size if _is_plain(file) else None for name, file in files_in(path).items()}
    check(contents, step=step_of(path.name), sizes=sizes)
    return Saved(path=path, step=contents["step"], metric=contents["metric"])


@_missing_is_torn()
def verified(path: Path) -> Saved:
    """The checkpoint whose files are all there, with the content they had. Raises Torn."""
    saved = described(path)
    for name, file in read(path)["files"].items():
        with (path / name).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                raise Torn(f"{name} has other content than was saved")
    return saved


def files_in(folder: Path) -> dict[str, Path]:
    """By name, all in it and its subfolders that is no folder; links are not followed."""

    def fail(error: OSError) -> None:
        raise error

    found: dict[str, Path] = {}
    for base, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        found |= {(path := Path(base) / name).relative_to(folder).as_posix(): path for name in files + links}
    return found


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _digest(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

"""Packs a user's code directory into a zip archive; equal files give equal bytes.

PackError (a ValueError) says what is wrong: no such directory, no files in it, or too many bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 50 * 2**20
"""Maximum total size of the files; more is taken to be data. A server accepts this much by default."""

_SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules", "mlruns", "syncbn-data"})
_SKIPPED_SUFFIXES = frozenset({".pyc", ".pyo"})
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can store


class PackError(ValueError):
    """The directory cannot be packed."""


def pack(directory: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns a zip archive of the directory's files, with paths relative to it.

    Skips hidden files and directories (.git, .venv, .env, ...), __pycache__, node_modules, virtual
    environments, *.egg-info, *.pyc, and the folders of MLflow (mlruns) and `syncbn up` (syncbn-data).
    Follows links. Order, times and permissions are fixed, so that equal files give equal bytes and the server
    recognises an archive by its digest. Raises PackError.
    """
    root = Path(directory)
    if not root.is_dir():
        raise PackError(f"{root} is not a directory; give the one that contains your modules")
    try:
        files = sorted((path.relative_to(root).as_posix(), path) for path in _files(root))
        if not files:
            raise PackError(f"{root} contains no files to upload (hidden and generated files are skipped)")
        _check_size(root, files, max_bytes)
        return _zipped(files)
    except OSError as error:
        raise PackError(f"cannot read {error.filename or root}: {error.strerror or error}") from None
    except UnicodeEncodeError as error:
        raise PackError(
            f"{root} contains a file whose name is not valid text: {error.object!r}; rename it"
        ) from None


def _files(root: Path) -> Iterator[Path]:
    for here, directories, names in os.walk(root, followlinks=True, onerror=_raise):
        directories[:] = [name for name in directories if _wanted(Path(here, name))]
        for name in names:
            path = Path(here, name)
            if not is_left_out(name) and path.is_file():
                yield path


def is_left_out(path: str) -> bool:
    """Returns whether the name of a file or of a folder above it says that `pack` skips the file.

    path: relative to the packed directory, with slashes.
    """
    *folders, name = path.split("/")
    return _is_hidden(name) or Path(name).suffix in _SKIPPED_SUFFIXES or any(map(_is_skipped, folders))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_skipped(folder: str) -> bool:
    return _is_hidden(folder) or folder in _SKIPPED_DIRECTORIES or folder.endswith(".egg-info")


def _raise(error: OSError) -> None:
    raise error  # os.walk would skip an unreadable directory, and the job would miss a module


def _wanted(directory: Path) -> bool:
    if _is_skipped(directory.name):
        return False
    return not (directory / "pyvenv.cfg").exists() and not _links_to_ancestor(directory)


def _links_to_ancestor(directory: Path) -> bool:
    """Returns whether this is a link to a directory above it, which os.walk would follow forever."""
    if not directory.is_symlink():
        return False
    return directory.resolve() in {ancestor.resolve() for ancestor in directory.absolute().parents}


def _check_size(root: Path, files: list[tuple[str, Path]], max_bytes: int) -> None:
    sizes = sorted(((path.stat().st_size, name) for name, path in files), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > max_bytes:
        biggest = ", ".join(f"{name} ({_mebibytes(size)})" for size, name in sizes[:3])
        raise PackError(
            f"{root} contains {_mebibytes(total)}, more than the {_mebibytes(max_bytes)} allowed for code; "
            f"the biggest: {biggest}. Keep data and results outside the code directory"
        )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _zipped(files: list[tuple[str, Path]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, on every system: the digest must not depend on the system
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, _content(path))
    return buffer.getvalue()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        error.filename = path  # unlike a failed open, a failed read does not name the file
        raise

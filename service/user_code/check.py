"""Checks an uploaded code archive without unpacking it to disk."""

from __future__ import annotations

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from service.errors import Refused
from training.reserved import hiding_among
from training.spec import Problem

MAX_FILES = 10_000
_CHUNK = 1 << 16
_SHOWN = 300  # characters of an entry's name in an error
_ENTRY = b"PK\x01\x02"
"""What each entry of an archive's directory begins with."""

_MAX_ENTRIES_READ = 10 * MAX_FILES  # more than MAX_FILES, because a file may hold an archive as it is
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
)
"""What zipfile raises for damaged or hostile bytes; only some are errors of its own."""


def check_archive(data: bytes, limit: int) -> None:
    """Raises Refused, naming each bad entry, unless `data` is a zip archive that is safe to unpack.

    Safe means: at most MAX_FILES entries, only plain files inside the directory, no duplicates, no module
    that shadows one training needs, and at most `limit` bytes unpacked. Every entry is read completely.
    """
    with _opened(data) as archive:
        entries = archive.infolist()
        _raise_if_any(_count_problems(entries))
        _raise_if_any(problem for entry in entries if (problem := _entry_problem(entry)))
        _raise_if_any([*_duplicates(entries), *_shadowing(entries)])
        _raise_if_any(_content_problems(archive, entries, limit))


def _opened(data: bytes) -> zipfile.ZipFile:
    """Opens the archive, which reads its directory. Raises Refused."""
    if data.count(_ENTRY) > _MAX_ENTRIES_READ:  # each would take a thousand times its share of memory
        raise Refused(
            "the archive is not accepted", [_problem("", f"contains more than {MAX_FILES} entries")]
        )
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except _UNREADABLE as error:
        why = str(error) or type(error).__name__
        raise Refused(
            "the archive is not accepted", [_problem("", f"is not a valid zip archive: {why}")]
        ) from None


def _raise_if_any(problems: Iterable[Problem]) -> None:
    if first := list(problems)[:20]:
        raise Refused("the archive is not accepted", first)


def _problem(name: str, message: str) -> Problem:
    return Problem(key=f"code:{name[:_SHOWN]}" if name else "code", message=message)


def _count_problems(entries: list[zipfile.ZipInfo]) -> Iterator[Problem]:
    files = sum(not entry.is_dir() for entry in entries)
    if not files:
        yield _problem("", "contains no files")
    if len(entries) > MAX_FILES:
        yield _problem("", f"contains {len(entries)} entries; {MAX_FILES} are allowed")


def _entry_problem(entry: zipfile.ZipInfo) -> Problem | None:
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    wrong = {
        "has an absolute path": name.startswith("/"),
        "has a backslash, drive letter or control character in its name": _is_odd(name),
        "has an empty part, '.' or '..' in its path": bool({"", ".", ".."} & set(parts)),
        "has a name that is too long": any(len(part.encode()) > 255 for part in parts) or len(name) > 2000,
        "is a link or a device; pack plain files": kind not in {0, stat.S_IFREG, stat.S_IFDIR},
        "is encrypted": bool(entry.flag_bits & 1),
    }
    message = next((message for message, applies in wrong.items() if applies), None)
    return _problem(name, message) if message else None


def _is_odd(name: str) -> bool:
    return "\\" in name or name[1:2] == ":" or any(ord(character) < 32 for character in name)


def _duplicates(entries: list[zipfile.ZipInfo]) -> Iterator[Problem]:
    """Finds two entries of one path, or a file where others need a directory: unpackers differ on these."""
    seen: set[str] = set()
    for entry in entries:
        path = entry.filename.removesuffix("/")
        if path in seen:
            yield _problem(entry.filename, "appears twice")
        seen.add(path)
    files = {entry.filename for entry in entries if not entry.is_dir()}
    for entry in entries:
        for parent in PurePosixPath(entry.filename).parents:
            if str(parent) in files:
                yield _problem(entry.filename, f"is inside {parent}, which is a file")


def _shadowing(entries: list[zipfile.ZipInfo]) -> Iterator[Problem]:
    """Finds modules that would shadow others: the archive comes first on the ranks' import path."""
    for name, message in hiding_among(entry.filename for entry in entries).items():
        yield _problem(name, message)


def _content_problems(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], limit: int
) -> Iterator[Problem]:
    """Reads every entry. zipfile reads only as much as the size says, so a false size gives a wrong CRC."""
    if sum(entry.file_size for entry in entries) > limit:
        yield _problem("", f"is larger than {limit} bytes when unpacked")
        return
    for entry in entries:
        try:
            with archive.open(entry) as file:
                while file.read(_CHUNK):
                    pass
        except _UNREADABLE as error:
            yield _problem(entry.filename, f"cannot be unpacked: {error}")

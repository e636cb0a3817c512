"""The checkpoints of a run: one folder on a file system that all machines share.

checkpoints/
├── step-000000120/   whole: what was saved, and manifest.json with the size and SHA-256 of every file
├── .writing-…/       on its way; one rename makes it step-…, so that half a checkpoint never has a good name
├── .deleting-…/      on its way out; it lost its good name before its first file
└── broken-step-…/    was refused when it should be read; kept for a look at it

Whatever is killed, at whatever moment, the last checkpoint that was written stays, and stays whole. The file
system has to rename atomically; no lock is asked of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
BROKEN_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A whole checkpoint. `metric` is None where none was given, and for NaN and infinities."""

    path: Path
    step: int
    metric: float | None


class Torn(Exception):
    """A checkpoint is not what was saved; the message says what is wrong with it."""


class Checkpoints:
    """Keeps the last `keep_last` checkpoints and the one whose metric is the best, the `mode` of all."""

    def __init__(self, folder: Path, *, keep_last: int = 2, mode: Literal["min", "max"] = "min") -> None:
        assert keep_last >= 1
        self.folder, self.keep_last, self.mode = folder, keep_last, mode

    @contextmanager
    def writing(self, step: int, *, metric: float | None = None) -> Iterator[Path]:
        """An empty folder for the files of a checkpoint, subfolders allowed. One process of a run calls this.

        Left without an error, the checkpoint is on disk and in place, and what is not to be kept any more is
        gone. On any error, that of a full disk included, nothing of it stays and the error goes on. Where
        the step has a whole checkpoint already, that one stays, and learns the metric if it had none.
        Raises ValueError for a symbolic link and for a file named manifest.json.
        """
        metric = metric if metric is not None and math.isfinite(metric) else None
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".writing-{step:09d}-{uuid4().hex}"
        draft.mkdir()
        try:
            yield draft
            _seal(draft, step, metric)
            self._put_in_place(draft, self.folder / f"step-{step:09d}", metric)
        except BaseException:
            _remove(draft)
            raise
        self._retain()

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, every byte of it verified; None where there is none.

        Newer ones that are not whole are set aside and reported, and what killed writers left is removed:
        called where no other process writes. Raises OSError where the storage does not answer: that is no
        reason to go back to an older checkpoint.
        """
        for left in self._named(r"\.writing-.*"):
            _discard(
                left
            )  # renamed first: should its writer live after all, it cannot put half of it in place
        for left in self._named(r"\.deleting-.*"):
            _remove(left)
        found, refused = None, []
        for path in self._newest_first():
            try:
                found = _verified(path)
                break
            except Torn as fault:
                self._set_aside(path)
                refused.append(f"{path.name} is not used: {fault}; it is kept as broken-{path.name}")
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"the checkpoint cannot be read ({error.strerror}): try again when its storage answers, "
                    "or move it away to go on from the one before",
                    str(path),
                ) from error
        instead = f"the run goes on from {found.path.name}" if found else "the run starts from the beginning"
        for refusal in refused:
            log.warning("checkpoint %s; %s", refusal, instead)
        return found

    def _put_in_place(self, draft: Path, target: Path, metric: float | None) -> None:
        while not _renamed(draft, target):
            # An earlier attempt was here, or one that is not dead yet is here at this moment.
            try:
                saved, contents = _verified(target), _read_manifest(target)
                if saved.metric is None and metric is not None:
                    _write_manifest(draft, contents | {"metric": metric})
                    with suppress(FileNotFoundError):  # by now another writer has newer ones
                        (draft / MANIFEST).replace(target / MANIFEST)
                        _sync_folder(target)
                _remove(draft)
                break
            except Torn as fault:
                if self._set_aside(target):
                    log.warning(
                        "checkpoint %s is written anew: %s; it is kept as broken-%s",
                        target.name,
                        fault,
                        target.name,
                    )
        _sync_folder(self.folder)

    def _retain(self) -> None:
        whole = []
        for path in self._newest_first():
            with suppress(Torn):  # what is not whole takes the place of none that is
                whole.append(_described(path))
        measured = [saved for saved in whole if saved.metric is not None]
        best = sorted(measured, key=attrgetter("metric"), reverse=self.mode == "max")[:1]
        for saved in whole[self.keep_last :]:
            if saved not in best:
                _discard(saved.path)

    def _newest_first(self) -> list[Path]:
        return sorted(self._named(r"step-\d{9,}"), key=_step_of, reverse=True)

    def _named(self, pattern: str) -> list[Path]:
        # Not by glob, which takes a folder that it may not read for an empty one.
        if not self.folder.exists():
            return []
        return [path for path in self.folder.iterdir() if re.fullmatch(pattern, path.name)]

    def _set_aside(self, path: Path) -> bool:
        """False where it is gone: another writer has newer ones and did not keep it."""
        aside = path.with_name(f"broken-{path.name}")
        _discard(aside)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        os.utime(aside, follow_symlinks=False)
        by_age = sorted(self._named("broken-.*"), key=lambda broken: broken.lstat().st_mtime_ns)
        for old in by_age[:-BROKEN_KEPT]:
            _discard(old)
        return True


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _seal(draft: Path, step: int, metric: float | None) -> None:
    """Makes the files durable, and then says in a manifest what they are."""
    files = {}
    for name, file in _files(draft).items():
        if name == MANIFEST or not _is_plain(file):
            raise ValueError(f"{name} cannot be in a checkpoint: save plain files, none named {MANIFEST}")
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            size = os.fstat(opened.fileno()).st_size
            files[name] = {"size": size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
    _write_manifest(draft, {"format": FORMAT, "step": step, "metric": metric, "files": files})
    for folder, _, _ in os.walk(draft):
        _sync_folder(Path(folder))


def _write_manifest(folder: Path, contents: dict[str, Any]) -> None:
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(contents | {"sha256": _digest(contents)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _digest(contents: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


@contextmanager
def _missing_is_torn() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:  # at once or, beside another writer, meanwhile
        raise Torn(f"{Path(error.filename).name} is missing") from None


@_missing_is_torn()
def _read_manifest(path: Path) -> dict[str, Any]:
    if not _is_plain(path / MANIFEST):
        raise Torn(f"{MANIFEST} is no file")
    try:
        contents = json.loads((path / MANIFEST).read_bytes())
    except ValueError:
        raise Torn(f"{MANIFEST} is no JSON") from None
    if not isinstance(contents, dict) or "format" not in contents:
        raise Torn(f"{MANIFEST} is none of a checkpoint")
    if contents["format"] != FORMAT:
        raise Torn(f"it is of format {contents['format']}, and this version of the software reads {FORMAT}")
    if contents.pop("sha256", None) != _digest(contents):
        raise Torn(f"{MANIFEST} is not as it was written")
    return contents


@_missing_is_torn()
def _described(path: Path) -> Saved:
    """The checkpoint whose files are all there, with the sizes they had. Raises Torn."""
    if path.is_symlink():
        raise Torn("it is a symbolic link")
    contents, found = _read_manifest(path), _files(path)
    if contents["step"] != _step_of(path):
        raise Torn(f"it was saved as step {contents['step']}")
    for name in sorted(found.keys() ^ {MANIFEST, *contents["files"]}):
        raise Torn(f"{name} is {'no part of it' if name in found else 'missing'}")
    for name, file in contents["files"].items():
        if not _is_plain(found[name]):
            raise Torn(f"{name} is no file")
        if (size := found[name].lstat().st_size) != file["size"]:
            raise Torn(f"{name} has {size} bytes and not {file['size']}")
    return Saved(path=path, step=contents["step"], metric=contents["metric"])


@_missing_is_torn()
def _verified(path: Path) -> Saved:
    """The checkpoint whose files are all there, with the content they had. Raises Torn."""
    saved = _described(path)
    for name, file in _read_manifest(path)["files"].items():
        with (path / name).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                raise Torn(f"{name} has other content than was saved")
    return saved


def _files(folder: Path) -> dict[str, Path]:
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


def _renamed(draft: Path, target: Path) -> bool:
    """False where something is in the way; an empty folder is not."""
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            return False
        raise
    return True


def _discard(path: Path) -> None:
    doomed = path.with_name(f".deleting-{path.name}-{uuid4().hex}")
    with suppress(FileNotFoundError):  # another writer does the same
        path.rename(doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what stays behind has no good name; `newest` tries again
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF}:  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)

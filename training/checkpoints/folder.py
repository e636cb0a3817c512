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
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from training.checkpoints import manifest
from training.checkpoints.manifest import Saved, Torn, step_of
from training.checkpoints.retention import BROKEN_KEPT, Mode, comparable, newest_whole, outdated

log = logging.getLogger(__name__)


class Checkpoints:
    """Keeps the last `keep_last` checkpoints and the one whose metric is the best, the `mode` of all."""

    def __init__(self, folder: Path, *, keep_last: int = 2, mode: Mode = "min") -> None:
        assert keep_last >= 1
        self.folder, self.keep_last, self.mode = folder, keep_last, mode

    @property
    def remedy(self) -> str:
        """What to do when a checkpoint could not be written."""
        return f"Make room in {self.folder}."

    @contextmanager
    def writing(self, step: int, *, metric: float | None = None) -> Iterator[Path]:
        """An empty folder for the files of a checkpoint, subfolders allowed. One process of a run calls this.

        Left without an error, the checkpoint is on disk and in place, and what is not to be kept any more is
        gone. On any error, that of a full disk included, nothing of it stays and the error goes on. Where
        the step has a whole checkpoint already, that one stays, and learns the metric if it had none.
        Raises ValueError for a symbolic link and for a file named manifest.json.
        """
        metric = comparable(metric)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".writing-{step:09d}-{uuid4().hex}"
        draft.mkdir()
        try:
            yield draft
            manifest.seal(draft, step, metric)
            _make_durable(draft)
            self._put_in_place(draft, self.folder / f"step-{step:09d}", metric)
        except BaseException:
            _remove(draft)
            raise
        self._retain()

    def latest_valid(self) -> Saved | None:
        """The newest whole checkpoint, every byte of it verified; None where there is none.

        Newer ones that are not whole are set aside and reported, and what killed writers left is removed:
        called where no other process writes. Raises OSError where the storage does not answer: that is no
        reason to go back to an older checkpoint.
        """
        for left in self._named(r"\.writing-.*"):
            # Renamed first: should its writer live after all, it cannot put half of it in place.
            _discard(left)
        for left in self._named(r"\.deleting-.*"):
            _remove(left)
        return newest_whole([path.name for path in self._newest_first()], self._read, self._refuse)

    def fetch_to_node(self, saved: Saved) -> Saved:
        """What `latest_valid` has found on another machine, where this one can read it."""
        return saved

    def release(self) -> None:
        """What was found has been read, by all ranks of this machine."""

    def _read(self, name: str) -> Saved:
        try:
            return manifest.verified(self.folder / name)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint cannot be read ({error.strerror}): try again when its storage answers, "
                "or move it away to go on from the one before",
                str(self.folder / name),
            ) from error

    def _refuse(self, name: str) -> str:
        self._set_aside(self.folder / name)
        return f"broken-{name}"

    def _put_in_place(self, draft: Path, target: Path, metric: float | None) -> None:
        while not _renamed(draft, target):
            # An earlier attempt was here, or one that is not dead yet is here at this moment.
            try:
                saved, contents = manifest.verified(target), manifest.read(target)
                if saved.metric is None and metric is not None:
                    (draft / manifest.NAME).write_text(manifest.text_of(contents | {"metric": metric}))
                    _sync(draft / manifest.NAME)
                    with suppress(FileNotFoundError):  # by now another writer has newer ones
                        (draft / manifest.NAME).replace(target / manifest.NAME)
                        _sync(target)
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
        _sync(self.folder)

    def _retain(self) -> None:
        metrics = {}
        for path in self._newest_first():
            with suppress(Torn):  # what is not whole takes the place of none that is
                metrics[path.name] = manifest.described(path).metric
        for name in outdated(metrics, keep_last=self.keep_last, mode=self.mode):
            _discard(self.folder / name)

    def _newest_first(self) -> list[Path]:
        return sorted(self._named(r"step-\d{9,}"), key=lambda path: step_of(path.name), reverse=True)

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


def _make_durable(draft: Path) -> None:
    for file in manifest.files_in(draft).values():
        _sync(file)
    for folder, _, _ in os.walk(draft):
        _sync(Path(folder))


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
        shutil.rmtree(path, ignore_errors=True)  # a part that stays has no valid name; removed next time
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.EBADF}):  # some sync no folders
            raise
    finally:
        os.close(descriptor)

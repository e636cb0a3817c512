"""A run's checkpoints in one folder on a file system that all machines share.

checkpoints/
├── step-000000120/   a complete checkpoint: its files, and manifest.json with their sizes and SHA-256
├── .writing-…/       being written; one rename makes it step-…, so a partial checkpoint never has that name
├── .deleting-…/      being deleted; it was renamed before its first file was removed
└── broken-step-…/    failed its check when it was read; kept for inspection

The last checkpoint written stays complete, whichever process is killed at whichever moment. Requires atomic
rename from the file system; needs no locks.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from training.checkpoints import manifest
from training.checkpoints.listing import Listed, listed
from training.checkpoints.manifest import InvalidCheckpoint, Saved, step_of
from training.checkpoints.retention import BROKEN_KEPT, Mode, comparable, newest_valid, outdated

log = logging.getLogger(__name__)


class Checkpoints:
    """Keeps the last `keep_last` checkpoints and the one with the best metric.

    mode: whether the best metric is the smallest or the largest one.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, mode: Mode = "min") -> None:
        assert keep_last >= 1
        self.folder, self.keep_last, self.mode = folder, keep_last, mode

    @property
    def remedy(self) -> str:
        """What the user can do if a checkpoint cannot be written; ends the warning about it."""
        return f"Make room in {self.folder}."

    @contextmanager
    def writing(self, step: int, *, metric: float | None = None, epoch: int | None = None) -> Iterator[Path]:
        """Yields an empty folder for the files of a checkpoint. Only one process of a run may call this.

        When the context exits, the checkpoint is in place and synced to disk, and outdated checkpoints are
        deleted. On any error, such as a full disk, the draft is removed and the error is raised again. If the
        step already has a valid checkpoint, that one stays and gets the metric if it had none.
        Raises ValueError for symbolic links and for a file named manifest.json.
        """
        metric = comparable(metric)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".writing-{step:09d}-{uuid4().hex}"
        draft.mkdir()
        try:
            yield draft
            manifest.seal(draft, step, metric, epoch=epoch)
            _make_durable(draft)
            self._publish(draft, self.folder / f"step-{step:09d}", metric)
        except BaseException:
            _remove(draft)
            raise
        self._retain()

    def latest_valid(self) -> Saved | None:
        """Returns the newest valid checkpoint, every byte of it verified; None if there is none.

        Sets newer invalid ones aside with a warning, and removes what killed writers left behind. Call it
        only while no other process writes. Raises OSError if the storage does not answer, instead of going
        back to an older checkpoint.
        """
        for leftover in self._matching(r"\.writing-.*"):
            # Race closed: renamed first, so a writer that still lives cannot put a partial draft in place.
            _discard(leftover)
        for leftover in self._matching(r"\.deleting-.*"):
            _remove(leftover)
        return newest_valid([path.name for path in self._newest_first()], self._read, self._refuse)

    def listed(self) -> list[Listed]:
        """Returns the checkpoints by step. Their content is not verified.

        Changes nothing: any process may call it at any time. Raises OSError.
        """
        found = {}
        for path in self._newest_first():
            with suppress(InvalidCheckpoint):
                manifest.sizes_checked(path)
                found[path.name] = manifest.read(path)
        return listed(found, self.mode)

    def read(self, name: str) -> Saved:
        """Returns the checkpoint of that name, every byte verified. Raises OSError, InvalidCheckpoint."""
        return self._read(name)

    def open(self, name: str, file: str) -> BinaryIO:
        """Opens a file of a checkpoint for reading. Raises OSError, also for a symbolic link.

        It can be read to its end even if the checkpoint is deleted meanwhile.
        """
        return os.fdopen(os.open(self.folder / name / file, os.O_RDONLY | os.O_NOFOLLOW), "rb")

    def fetch_to_node(self, saved: Saved) -> Saved:
        """Returns `saved`, which `latest_valid` found on another machine: this one can read it as well."""
        return saved

    def release(self) -> None:
        """Does nothing: there is no local copy to remove. Call it when all ranks have read the checkpoint."""

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of everything in the folder by name: checkpoints, broken ones, leftovers.

        Changes nothing. Raises OSError.
        """
        return {path.name: size_of(path) for path in self._matching(".*")}

    def remove(self, name: str) -> None:
        """Removes what `sizes` names. Idempotent. Call it only while no other process writes.

        Raises OSError, also if the folder of the checkpoints is a symbolic link: a job may have put it there.
        """
        with suppress(FileNotFoundError), _opened(self.folder) as folder:
            doomed = f".deleting-{name}-{uuid4().hex}"
            # Race closed: renamed first, as in `_discard`.
            os.rename(name, doomed, src_dir_fd=folder, dst_dir_fd=folder)
            if stat.S_ISDIR(os.lstat(doomed, dir_fd=folder).st_mode):
                shutil.rmtree(doomed, ignore_errors=True, dir_fd=folder)
            else:
                os.unlink(doomed, dir_fd=folder)

    def _read(self, name: str) -> Saved:
        try:
            return manifest.verified(self.folder / name)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint cannot be read ({error.strerror}): try again when its storage answers, "
                "or move it away to resume from the one before",
                str(self.folder / name),
            ) from error

    def _refuse(self, name: str) -> str:
        self._set_aside(self.folder / name)
        return f"broken-{name}"

    def _publish(self, draft: Path, target: Path, metric: float | None) -> None:
        while not _try_rename(draft, target):
            # An earlier attempt has written this step, or is writing it now because it is not dead yet.
            try:
                saved, contents = manifest.verified(target), manifest.read(target)
                if saved.metric is None and metric is not None:
                    (draft / manifest.NAME).write_text(manifest.serialize(contents | {"metric": metric}))
                    _sync(draft / manifest.NAME)
                    with suppress(FileNotFoundError):  # another writer has newer ones and deleted this one
                        (draft / manifest.NAME).replace(target / manifest.NAME)
                        _sync(target)
                _remove(draft)
                break
            except InvalidCheckpoint as fault:
                if self._set_aside(target):
                    log.warning(
                        "checkpoint %s is written again: %s; it is kept as broken-%s",
                        target.name,
                        fault,
                        target.name,
                    )
        _sync(self.folder)

    def _retain(self) -> None:
        metrics = {}
        for path in self._newest_first():
            with suppress(InvalidCheckpoint):  # an invalid checkpoint does not count towards `keep_last`
                metrics[path.name] = manifest.sizes_checked(path).metric
        for name in outdated(metrics, keep_last=self.keep_last, mode=self.mode):
            _discard(self.folder / name)

    def _newest_first(self) -> list[Path]:
        return sorted(self._matching(r"step-\d{9,}"), key=lambda path: step_of(path.name), reverse=True)

    def _matching(self, pattern: str) -> list[Path]:
        # Not with glob, which treats a folder without read permission as empty.
        if not self.folder.exists():
            return []
        return [path for path in self.folder.iterdir() if re.fullmatch(pattern, path.name)]

    def _set_aside(self, path: Path) -> bool:
        """Renames an invalid checkpoint to broken-…. Returns False if another writer has deleted it."""
        aside = path.with_name(f"broken-{path.name}")
        _discard(aside)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        os.utime(aside, follow_symlinks=False)
        by_age = sorted(self._matching("broken-.*"), key=lambda broken: broken.lstat().st_mtime_ns)
        for old in by_age[:-BROKEN_KEPT]:
            _discard(old)
        return True


def _make_durable(draft: Path) -> None:
    for file in manifest.files_in(draft).values():
        _sync(file)
    for folder, _, _ in os.walk(draft):
        _sync(Path(folder))


def _try_rename(draft: Path, target: Path) -> bool:
    """Renames `draft` to `target`. Returns False if `target` exists and is not an empty folder."""
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            return False
        raise
    return True


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield opened
    finally:
        os.close(opened)


def _discard(path: Path) -> None:
    """Renames the folder first, so that a partly deleted checkpoint never has a valid name."""
    doomed = path.with_name(f".deleting-{path.name}-{uuid4().hex}")
    with suppress(FileNotFoundError):  # another writer is deleting it too
        path.rename(doomed)
        _remove(doomed)


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; symbolic links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(root, name).lstat().st_size for root, _, names in os.walk(path) for name in names)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what remains has no valid name and is removed next time
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.EBADF}):  # some cannot sync folders
            raise
    finally:
        os.close(descriptor)

"""A run's checkpoints in S3-compatible object storage.

<url>/
└── step-000000120-1f0c88d2/    one upload; the random end of its name keeps two uploads apart
    ├── …                       the saved files
    ├── manifest.json           written last, deleted first: a checkpoint exists if and only if this does
    └── broken-manifest.json    the manifest of a checkpoint that failed its check; kept for inspection

The last checkpoint written stays complete, whichever process is killed at whichever moment. Requires
read-after-write consistency, as S3 has; needs no atomic rename and no locks.
"""

from __future__ import annotations

import errno
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from training.backoff import Backoff
from training.checkpoints import manifest
from training.checkpoints.bucket import Bucket, StorageUnavailable
from training.checkpoints.listing import Listed, listed
from training.checkpoints.manifest import InvalidCheckpoint, Saved, step_of
from training.checkpoints.retention import BROKEN_KEPT, Mode, comparable, newest_valid, outdated
from training.checkpoints.tempdirs import TemporaryFolder

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BROKEN = f"broken-{manifest.NAME}"
SECONDS_BETWEEN = 1.0, 30.0
"""The first and the longest backoff between two requests to storage that does not answer."""


class ObjectStore:
    """`training.checkpoints.folder.Checkpoints` for a URL like s3://bucket/prefix/run.

    Drafts, and the checkpoint that a run resumes from, are in TMPDIR while they are needed. Reads are
    retried for `retry_seconds` if the storage does not answer. Writes are not retried, so that training does
    not wait.
    """

    def __init__(
        self, url: str, *, keep_last: int = 2, mode: Mode = "min", retry_seconds: float = 600.0
    ) -> None:
        assert keep_last >= 1
        self.url, self.keep_last, self.mode = url, keep_last, mode
        self.retry_seconds = retry_seconds
        self._bucket = Bucket(url)
        self._copy: TemporaryFolder | None = None

    @property
    def remedy(self) -> str:
        """What the user can do if a checkpoint cannot be written; ends the warning about it."""
        return f"Make sure that {self.url} can be written, and that {tempfile.gettempdir()} has room."

    @contextmanager
    def writing(self, step: int, *, metric: float | None = None, epoch: int | None = None) -> Iterator[Path]:
        """As `Checkpoints.writing`: when the context exits, the checkpoint is in the storage.

        Raises OSError naming the URL if the storage does not accept it.
        """
        metric = comparable(metric)
        draft = TemporaryFolder()
        try:
            yield draft.path
            manifest.seal(draft.path, step, metric, epoch=epoch)
            if not self._already_saved(step, metric):
                self._upload(draft.path, step)
            self._retain()
        finally:
            draft.remove()

    def latest_valid(self) -> Saved | None:
        """As `Checkpoints.latest_valid`; its path is a copy on this machine that exists until `release`.

        Raises OSError naming the URL if the storage does not answer.
        """
        return self._retry(self._latest_valid)

    def listed(self) -> list[Listed]:
        """As `Checkpoints.listed`. Raises OSError naming the URL if the storage does not answer."""
        return self._retry(self._listed)

    def read(self, name: str) -> Saved:
        """As `Checkpoints.read`; its path is a copy on this machine that exists until `release`."""
        return self._retry(lambda: self._fetch(name, self._uploads().get(name, {}), self._new_local_folder()))

    def open(self, name: str, file: str) -> BinaryIO:
        """As `Checkpoints.open`. Reading fails if the checkpoint is deleted meanwhile."""
        return self._bucket.open(f"{name}/{file}")

    def sizes(self) -> dict[str, int]:
        """As `Checkpoints.sizes`: the bytes of each upload, finished or not."""
        sizes: dict[str, int] = {}
        for path, size, _ in self._retry(self._bucket.files):
            name = path.partition("/")[0]
            sizes[name] = sizes.get(name, 0) + size
        return sizes

    def remove(self, name: str) -> None:
        """As `Checkpoints.remove`. Raises OSError naming the URL if the storage does not accept it."""
        self._remove(name)

    def fetch_to_node(self, saved: Saved) -> Saved:
        """Copies a checkpoint that `latest_valid` found on another machine to this one, until `release`."""
        name = saved.path.name
        try:
            return self.read(name)
        except InvalidCheckpoint as fault:
            raise OSError(errno.EIO, f"{name} was valid on another machine: {fault}", self.url) from None

    def release(self) -> None:
        """Removes the local copy, if there is one. Call it when all ranks have read the checkpoint."""
        if self._copy:
            self._copy.remove()

    # Writing

    def _already_saved(self, step: int, metric: float | None) -> bool:
        """Returns whether the step has a valid checkpoint, after adding the metric to it if it had none."""
        for name, sizes in self._checkpoints().items():
            if step_of(name) != step:
                continue
            local_folder = TemporaryFolder()
            try:
                saved = self._fetch(name, sizes, local_folder.path)
                if saved.metric is None and metric is not None:
                    contents = manifest.read(saved.path) | {"metric": metric}
                    self._bucket.write(f"{name}/{manifest.NAME}", manifest.serialize(contents).encode())
                return True
            except InvalidCheckpoint as fault:
                aside = self._set_aside(name)
                log.warning("checkpoint %s is written again: %s; it is kept as %s", name, fault, aside)
            finally:
                local_folder.remove()
        return False

    def _upload(self, draft: Path, step: int) -> None:
        name = f"step-{step:09d}-{uuid4().hex[:8]}"
        contents = manifest.read(draft)
        try:
            for file in contents["files"]:
                self._bucket.upload(draft / file, f"{name}/{file}")
            # Race narrowed: an attempt that believes this one dead removes uploads without a manifest.
            manifest.check(contents, step=step, sizes={manifest.NAME: 0, **self._uploads().get(name, {})})
            self._bucket.write(f"{name}/{manifest.NAME}", (draft / manifest.NAME).read_bytes())
        except BaseException as error:
            with suppress(OSError):  # what remains has no manifest; `latest_valid` removes it later
                self._remove(name)
            if isinstance(error, InvalidCheckpoint):
                raise OSError(errno.EIO, f"{name} was removed meanwhile: {error}", self.url) from None
            raise

    def _retain(self) -> None:
        metrics = {}
        for name, sizes in self._checkpoints().items():
            with suppress(InvalidCheckpoint):  # an invalid checkpoint does not count towards `keep_last`
                metrics[name] = self._manifest(name, sizes)["metric"]
        for name in outdated(metrics, keep_last=self.keep_last, mode=self.mode):
            self._remove(name)

    def _remove(self, name: str) -> None:
        # The manifest first: without it, the rest counts as an unfinished upload even if removal stops here.
        self._bucket.remove(f"{name}/{manifest.NAME}")
        self._bucket.remove_folder(name)

    # Reading

    def _latest_valid(self) -> Saved | None:
        for name, sizes in self._uploads().items():
            if not sizes.keys() & {manifest.NAME, BROKEN}:
                self._remove(name)
        checkpoints, local_folder = self._checkpoints(), self._new_local_folder()
        return newest_valid(
            checkpoints, lambda name: self._fetch(name, checkpoints[name], local_folder), self._set_aside
        )

    def _listed(self) -> list[Listed]:
        found = {}
        for name, sizes in self._checkpoints().items():
            with suppress(InvalidCheckpoint):
                found[name] = self._manifest(name, sizes)
        return listed(found, self.mode)

    def _new_local_folder(self) -> Path:
        self.release()
        self._copy = TemporaryFolder()
        return self._copy.path

    def _checkpoints(self) -> dict[str, dict[str, int]]:
        """Returns the finished uploads, as `_uploads` does."""
        return {name: sizes for name, sizes in self._uploads().items() if manifest.NAME in sizes}

    def _uploads(self) -> dict[str, dict[str, int]]:
        """Returns the sizes of each upload's files, in bytes by name; the newest upload first."""
        sizes: dict[str, dict[str, int]] = {}
        for path, size, _ in self._bucket.files():
            upload, _, name = path.partition("/")
            if re.fullmatch(r"step-\d{9,}-[0-9a-f]{8}", upload):
                sizes.setdefault(upload, {})[name] = size
        return dict(sorted(sizes.items(), key=lambda item: step_of(item[0]), reverse=True))

    def _fetch(self, name: str, sizes: dict[str, int], local_folder: Path) -> Saved:
        """Copies a checkpoint into `local_folder` and verifies it there. Raises InvalidCheckpoint."""
        for file in (manifest.NAME, *self._manifest(name, sizes)["files"]):
            target = local_folder / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.download(f"{name}/{file}", target)
        return manifest.verified(local_folder / name)

    def _manifest(self, name: str, sizes: dict[str, int]) -> dict[str, Any]:
        """Returns an upload's manifest, checked against its files' sizes. Raises InvalidCheckpoint."""
        try:
            contents = manifest.parse(self._bucket.read(f"{name}/{manifest.NAME}"))
        except FileNotFoundError:  # another writer has just deleted it
            raise InvalidCheckpoint(f"{manifest.NAME} is missing") from None
        manifest.check(contents, step=step_of(name), sizes=sizes)
        return contents

    def _set_aside(self, name: str) -> str:
        """Renames the manifest of an invalid checkpoint; returns where the checkpoint is now kept."""
        with suppress(FileNotFoundError):  # another writer has newer ones and deleted this one
            self._bucket.rename(f"{name}/{manifest.NAME}", f"{name}/{BROKEN}")
        broken = [file for file in self._bucket.files() if file.name.endswith(f"/{BROKEN}")]
        for file in sorted(broken, key=attrgetter("written_at"))[:-BROKEN_KEPT]:
            self._remove(file.name.removesuffix(f"/{BROKEN}"))
        return f"{self.url}/{name}, with its manifest renamed to {BROKEN}"

    def _retry(self, read: Callable[[], Result]) -> Result:
        deadline, backoff = time.monotonic() + self.retry_seconds, Backoff(*SECONDS_BETWEEN)
        while True:
            try:
                return read()
            except StorageUnavailable as error:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or error.is_permanent:
                    raise
                log.warning("%s; retrying for another %.0f seconds", error, remaining)
                time.sleep(min(backoff.next(), remaining))

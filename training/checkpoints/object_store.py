"""The checkpoints of a run in object storage that speaks S3.

<url>/
└── step-000000120-1f0c88d2/    one upload; the end of its name is drawn, so that two never mix
    ├── …                       what was saved
    ├── manifest.json           the last to come and the first to go: while it is there, the checkpoint is
    └── broken-manifest.json    in its place, where the checkpoint was refused; kept for a look

Whatever is killed, at whatever moment, the last checkpoint that was written stays, and stays whole. Of the
storage this asks that it shows at once what was written, as S3 does; neither a rename nor a lock.
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
from typing import Any, TypeVar
from uuid import uuid4

from training.checkpoints import manifest
from training.checkpoints.bucket import Bucket, StorageUnavailable
from training.checkpoints.manifest import Saved, Torn, step_of
from training.checkpoints.retention import BROKEN_KEPT, Mode, comparable, newest_whole, outdated
from training.checkpoints.tempdirs import TemporaryFolder

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BROKEN = f"broken-{manifest.NAME}"
SECONDS_BETWEEN = 1.0, 30.0
"""From the first to the longest between two questions to storage that does not answer."""


class ObjectStore:
    """`training.checkpoints.folder.Checkpoints` for a URL like s3://bucket/prefix/run.

    A draft, and the checkpoint that a run goes on from, are in TMPDIR for as long as they are needed. Storage
    that does not answer is asked again for `retry_seconds` when a checkpoint is to be read. Not so when
    one is to be written: training does not wait.
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
        return f"See to it that {self.url} can be written, and that {tempfile.gettempdir()} has room."

    @contextmanager
    def writing(self, step: int, *, metric: float | None = None) -> Iterator[Path]:
        """As `Checkpoints.writing`: left without an error, the checkpoint is in the storage.

        Raises OSError naming the URL where the storage does not take it.
        """
        metric = comparable(metric)
        draft = TemporaryFolder()
        try:
            yield draft.path
            manifest.seal(draft.path, step, metric)
            if not self._is_there(step, metric):
                self._upload(draft.path, step)
            self._retain()
        finally:
            draft.remove()

    def latest_valid(self) -> Saved | None:
        """As `Checkpoints.latest_valid`; its path is a copy on this machine, until `release`.

        Raises OSError naming the URL where the storage does not answer.
        """
        return self._retried(self._latest_valid)

    def fetch_to_node(self, saved: Saved) -> Saved:
        """What `latest_valid` has found on another machine, as a copy on this one, until `release`."""
        name = saved.path.name
        try:
            return self._retried(lambda: self._fetched(name, self._uploads().get(name, {}), self._room()))
        except Torn as fault:
            raise OSError(errno.EIO, f"{name} was whole on another machine: {fault}", self.url) from None

    def release(self) -> None:
        """The copy is not needed any more."""
        if self._copy:
            self._copy.remove()

    # Writing

    def _is_there(self, step: int, metric: float | None) -> bool:
        """Whether the step has a whole checkpoint; it learns the metric if it had none."""
        for name, sizes in self._checkpoints().items():
            if step_of(name) != step:
                continue
            room = TemporaryFolder()
            try:
                saved = self._fetched(name, sizes, room.path)
                if saved.metric is None and metric is not None:
                    contents = manifest.read(saved.path) | {"metric": metric}
                    self._bucket.write(f"{name}/{manifest.NAME}", manifest.text_of(contents).encode())
                return True
            except Torn as fault:
                aside = self._set_aside(name)
                log.warning("checkpoint %s is written anew: %s; it is kept as %s", name, fault, aside)
            finally:
                room.remove()
        return False

    def _upload(self, draft: Path, step: int) -> None:
        name = f"step-{step:09d}-{uuid4().hex[:8]}"
        contents = manifest.read(draft)
        try:
            for file in contents["files"]:
                self._bucket.upload(draft / file, f"{name}/{file}")
            # Race narrowed: an attempt that takes this one for dead clears away what has no manifest yet.
            manifest.check(contents, step=step, sizes={manifest.NAME: 0, **self._uploads().get(name, {})})
            self._bucket.write(f"{name}/{manifest.NAME}", (draft / manifest.NAME).read_bytes())
        except BaseException as error:
            with suppress(OSError):  # what stays behind has no manifest; `latest_valid` tries again
                self._remove(name)
            if isinstance(error, Torn):
                raise OSError(errno.EIO, f"{name} was cleared away: {error}", self.url) from None
            raise

    def _retain(self) -> None:
        metrics = {}
        for name, sizes in self._checkpoints().items():
            with suppress(Torn):  # what is not whole takes the place of none that is
                metrics[name] = self._manifest(name, sizes)["metric"]
        for name in outdated(metrics, keep_last=self.keep_last, mode=self.mode):
            self._remove(name)

    def _remove(self, name: str) -> None:
        # Without its manifest it is an upload that came to no end, whatever becomes of the rest.
        self._bucket.remove(f"{name}/{manifest.NAME}")
        self._bucket.remove_folder(name)

    # Reading

    def _latest_valid(self) -> Saved | None:
        for name, sizes in self._uploads().items():
            if not sizes.keys() & {manifest.NAME, BROKEN}:
                self._remove(name)
        found, room = self._checkpoints(), self._room()
        return newest_whole(found, lambda name: self._fetched(name, found[name], room), self._set_aside)

    def _room(self) -> Path:
        self.release()
        self._copy = TemporaryFolder()
        return self._copy.path

    def _checkpoints(self) -> dict[str, dict[str, int]]:
        """The uploads that have come to their end."""
        return {name: sizes for name, sizes in self._uploads().items() if manifest.NAME in sizes}

    def _uploads(self) -> dict[str, dict[str, int]]:
        """The newest first; of each the sizes of its files, in bytes by name."""
        found: dict[str, dict[str, int]] = {}
        for path, size, _ in self._bucket.files():
            upload, _, name = path.partition("/")
            if re.fullmatch(r"step-\d{9,}-[0-9a-f]{8}", upload):
                found.setdefault(upload, {})[name] = size
        return dict(sorted(found.items(), key=lambda item: step_of(item[0]), reverse=True))

    def _fetched(self, name: str, sizes: dict[str, int], room: Path) -> Saved:
        """Copied into a folder in `room`, and verified there. Raises Torn."""
        for file in (manifest.NAME, *self._manifest(name, sizes)["files"]):
            target = room / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.download(f"{name}/{file}", target)
        return manifest.verified(room / name)

    def _manifest(self, name: str, sizes: dict[str, int]) -> dict[str, Any]:
        """That of an upload whose files have these sizes. Raises Torn."""
        try:
            contents = manifest.parse(self._bucket.read(f"{name}/{manifest.NAME}"))
        except FileNotFoundError:  # beside another writer
            raise Torn(f"{manifest.NAME} is missing") from None
        manifest.check(contents, step=step_of(name), sizes=sizes)
        return contents

    def _set_aside(self, name: str) -> str:
        with suppress(FileNotFoundError):  # another writer has newer ones
            self._bucket.rename(f"{name}/{manifest.NAME}", f"{name}/{BROKEN}")
        broken = [file for file in self._bucket.files() if file.name.endswith(f"/{BROKEN}")]
        for file in sorted(broken, key=attrgetter("written_at"))[:-BROKEN_KEPT]:
            self._remove(file.name.removesuffix(f"/{BROKEN}"))
        return f"{self.url}/{name}, its manifest as {BROKEN}"

    def _retried(self, read: Callable[[], Result]) -> Result:
        until = time.monotonic() + self.retry_seconds
        seconds, longest = SECONDS_BETWEEN
        while True:
            try:
                return read()
            except StorageUnavailable as error:
                left = until - time.monotonic()
                if left <= 0 or error.for_good:
                    raise
                log.warning("%s; it is asked again for %.0f seconds", error, left)
                time.sleep(min(seconds, left))
                seconds = min(2 * seconds, longest)

"""The checkpoints of a job, in its run folder or in object storage: listed, chosen and read.

Nothing here loads a checkpoint: that would need torch, and the API must not run a job's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from service.errors import NotFound, Unavailable
from service.jobs.job import Job, Removed
from service.settings import Settings
from training.checkpoints.folder import Checkpoints
from training.checkpoints.listing import LIGHTNING, Listed, NoSuchCheckpoint, Which, chosen

if TYPE_CHECKING:
    from training.checkpoints.object_store import ObjectStore


_CHECKPOINTS = Removed.CHECKPOINTS | Removed.OTHER_CHECKPOINTS


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The file of a checkpoint that Lightning reads, open at its beginning. sha256: in hex."""

    checkpoint: Listed
    file: BinaryIO
    size: int
    sha256: str


class JobCheckpoints:
    """The checkpoints of one job. Every method blocks, and raises Unavailable if they cannot be read."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._settings, self._job = settings, job

    @property
    def location(self) -> str:
        """The folder that holds the checkpoints, or its URL in object storage."""
        return location_of(self._settings, self._job.id)

    def all(self) -> list[Listed]:
        """Returns the checkpoints by step."""
        if self._job.attempt:
            check_mounted(Path(self._settings.storage))
        with _readable(self.location):
            return self.store().listed()

    def chosen(self, which: Which) -> Listed:
        """Returns the checkpoint that is meant. Raises NotFound naming those that exist."""
        try:
            return chosen(self.all(), which)
        except NoSuchCheckpoint as error:
            why = "; retention has removed some or all" if self._job.removed & _CHECKPOINTS else ""
            raise NotFound(f"job {self._job.id!r} has no such checkpoint: {error}{why}") from None

    def open(self, which: Which) -> Opened:
        """Opens the checkpoint that is meant. Raises NotFound."""
        checkpoint = self.chosen(which)
        contents = checkpoint.files[LIGHTNING]
        try:
            with _readable(self.location):
                file = self.store().open(checkpoint.name, LIGHTNING)
        except FileNotFoundError:
            raise NotFound(
                f"the checkpoint of step {checkpoint.step} of job {self._job.id!r} has just been deleted, "
                "because a later one was saved"
            ) from None
        return Opened(checkpoint=checkpoint, file=file, size=contents["size"], sha256=contents["sha256"])

    def store(self) -> Checkpoints | ObjectStore:
        """Returns the store of the checkpoints. Raises NotFound for a script, which has none."""
        if self._job.runs_script:
            raise NotFound(
                f"job {self._job.id!r} runs a script, which saves files of its own in SYNCBN_CHECKPOINT_DIR; "
                "the service knows no checkpoints of it"
            )
        mode = self._job.spec["training"]["checkpoint"]["mode"]
        location = self.location
        if "://" not in location:
            if Path(location).is_symlink():
                raise NotFound(f"job {self._job.id!r} has put a link in place of its folder of checkpoints")
            return Checkpoints(Path(location), mode=mode)
        from training.checkpoints.object_store import ObjectStore

        return ObjectStore(location, mode=mode, retry_seconds=0)


def location_of(settings: Settings, job_id: str) -> str:
    """Returns the folder that holds a job's checkpoints, or its URL in object storage."""
    folder = Path(settings.storage) / job_id / "checkpoints"
    # The job may be older than the setting.
    if settings.checkpoints is None or folder.exists():
        return str(folder)
    return f"{settings.checkpoints}/{job_id}"


def check_mounted(storage: Path) -> None:
    """Raises Unavailable if the folder of all runs is not there, where a job has run."""
    if not storage.exists():
        raise Unavailable("the run folder", f"{storage} does not exist on this machine")


@contextmanager
def _readable(location: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(
            f"the storage of checkpoints at {location}", error.strerror or str(error)
        ) from error

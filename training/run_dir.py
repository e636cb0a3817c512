"""The folder of a run on a file system that all its machines share: what it needs to resume.

The checkpoints, which are large, may be in object storage instead.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The paths in a run's folder.

    path: on a file system that all machines of the cluster share. output: of a run on this machine, for its
    results. checkpoints_url: of the run's checkpoints, if they are in object storage
    (s3://bucket/prefix/run). attempt, start: identify this start of the run; files about one start are
    ignored by the next.
    """

    path: Path
    output: Path | None = None
    checkpoints_url: str | None = None
    attempt: int = 1
    start: int = 1

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint: see `training.checkpoints.folder`."""
        return self.path / "checkpoints"

    @property
    def script_checkpoints(self) -> Path:
        """What a script saves to go on from: the same folder in every attempt and start."""
        return self.path / "script-checkpoints"

    @property
    def files(self) -> Path:
        """What the user's code writes through the Trainer: see `training.callbacks.own_checkpoints`."""
        return (self.output or self.path) / "files"

    @property
    def logger_versions(self) -> Path:
        """The versions of the user's loggers: see `training.rank.own_output`."""
        return self.path / "logger_versions.json"

    @property
    def written_checkpoints(self) -> Path:
        """See `training.callbacks.own_checkpoints.WrittenCheckpoints`."""
        return self.path / "written_checkpoints.jsonl"

    @property
    def spool(self) -> Path:
        """Metrics on their way to MLflow: see `training.tracking.spool`."""
        return self.path / "spool"

    @staticmethod
    def truncated_mark(spool: Path) -> Path:
        """A file that exists once a spool has lost its first points: see `training.tracking.spool`."""
        return spool.with_name(f"{spool.name}.truncated")

    @property
    def mlflow_run_id(self) -> Path:
        """The id of the run in a local MLflow store: see `training.tracking.mlflow_run.LocalRun`."""
        return self.path / "mlflow_run_id"

    @property
    def stop_request(self) -> Path:
        """A file that asks the run to save itself and stop: written by an agent, polled by rank 0."""
        return self.path / "stop" / self._this_start

    @property
    def hang(self) -> Path:
        """What each rank was doing when the run hung: see `training.hangs.watchdog`."""
        return self.path / "hang" / self._this_start

    @property
    def _this_start(self) -> str:
        return f"attempt-{self.attempt}-start-{self.start}"


def open_plain(path: Path) -> BinaryIO:
    """Opens a file that a job may have written, for reading. Raises OSError.

    It is FileNotFoundError also for a symbolic link and for what is not a plain file.
    """
    try:
        # O_NONBLOCK: opening a pipe does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise FileNotFoundError(errno.ENOENT, "not a plain file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")

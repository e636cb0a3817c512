"""Where a run keeps what it needs to go on: one folder that all its machines see.

Its checkpoints, which are what is large, may be elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """`path`: on a file system that all machines of the cluster share.

    `checkpoints_url`: of the run's checkpoints, if they are in object storage (s3://bucket/prefix/run).
    `attempt`, `start`: which start of the run this is; what one leaves behind means nothing to the next.
    """

    path: Path
    checkpoints_url: str | None = None
    attempt: int = 1
    start: int = 1

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint: see `training.checkpoints.folder`."""
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        """Metrics on their way to MLflow: see `training.tracking.spool`."""
        return self.path / "spool"

    @property
    def stop_request(self) -> Path:
        """Exists while the run shall save itself and end: written by an agent, looked for by rank 0."""
        return self.path / "stop" / self._this_start

    @property
    def hang(self) -> Path:
        """What each rank was doing when the run hung: see `training.hangs.watchdog`."""
        return self.path / "hang" / self._this_start

    @property
    def _this_start(self) -> str:
        return f"attempt-{self.attempt}-start-{self.start}"

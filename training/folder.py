"""Where a run keeps what it needs to go on: one folder that the driver and all workers see.

Its checkpoints, which are what is large, may be elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """`path`: on a file system that all machines of the cluster share.

    `checkpoints_url`: of the run's checkpoints, if they are in object storage (s3://bucket/prefix/run).
    """

    path: Path
    checkpoints_url: str | None = None

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint: see `training.checkpoints`."""
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        """Metrics on their way to MLflow: see `training.spool`."""
        return self.path / "spool"

    @property
    def stop_request(self) -> Path:
        """Exists while the run shall save itself and end: written by the driver, looked for by rank 0."""
        return self.path / "stop"

    @property
    def stopped(self) -> Path:
        """The number of its last step, if the run ended because of such a request."""
        return self.path / "stopped"

    @property
    def hang(self) -> Path:
        """What each rank was doing when the run hung: see `training.watchdog`."""
        return self.path / "hang"

"""The calls of `Client` for what a job has produced: its metrics, checkpoints and other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from service.client.download import download, no_progress
from service.client.errors import ClientError
from service.client.models import Checkpoint, Checkpoints, Files, Point, Points
from service.client.retry import Retry
from service.client.transport import Transport


def job_path(job_id: str) -> str:
    """Returns the path of a job's resource."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


class Results:
    """A part of `Client`, which documents what every call has in common."""

    _server: Transport
    retry_seconds: float

    def metrics(self, job_id: str, names: Iterable[str] = ()) -> list[Point]:
        """Returns every point of the metrics in `names`, ordered by name and step.

        No names: all metrics except the system's, which must be named.
        """
        params = [("name", name) for name in names]
        return self._server.call(Points, "GET", f"{job_path(job_id)}/metrics", params=params).items

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Returns the job's checkpoints, ordered by step; may be empty.

        Raises RequestError (503) if the server cannot read the storage that holds them.
        """
        return self._server.call(Checkpoints, "GET", f"{job_path(job_id)}/checkpoints").items

    def download_checkpoint(
        self,
        job_id: str,
        which: str | int = "last",
        output: str | os.PathLike[str] = ".",
        *,
        on_progress: Callable[[int, int | None], None] = no_progress,
    ) -> Path:
        """Downloads a checkpoint and returns the path of its file, which Lightning and torch load.

        which: "best", "last" or a step. output: a folder, in which the file is JOB-step-STEP.ckpt, or the
        path of the file. It appears, and replaces an existing one, when it is complete and its SHA-256 is
        right. on_progress: called with the bytes so far and their total, None if it is unknown.

        Raises NotFound if the job has no such checkpoint, and OSError if the file cannot be written.
        """
        path = f"{job_path(job_id)}/checkpoints/{quote(str(which), safe='')}"
        return download(self._server, path, Path(output), Retry(self.retry_seconds), on_progress)

    def files(self, job_id: str) -> Files:
        """Returns the files that the job's own code has written, by path: at most the first 10,000.

        Of a training they are what it wrote to relative paths through the Trainer, such as the files of its
        loggers; of a script they are those in SYNCBN_CHECKPOINT_DIR. Raises RequestError (503) if the server
        cannot read the folder that holds them.
        """
        return self._server.call(Files, "GET", f"{job_path(job_id)}/files")

    def download_file(
        self,
        job_id: str,
        path: str,
        output: str | os.PathLike[str] = ".",
        *,
        on_progress: Callable[[int, int | None], None] = no_progress,
    ) -> Path:
        """Downloads a file that the job's own code has written and returns the path of the copy.

        path: as `files` names it. output: a folder, in which the file keeps its name, or the path of the
        file. It appears when it is complete. on_progress: as for `download_checkpoint`. Raises ClientError
        for a path that `files` cannot name, NotFound if the job has no such file, and OSError if the copy
        cannot be written.
        """
        parts = path.split("/")
        if any(part in {"", ".", ".."} for part in parts) or not path.isprintable():
            raise ClientError(f"{path!r} is not the path of a file as files(job_id) names it")
        target = Path(output)
        if target.is_dir():
            target /= parts[-1]
        file = f"{job_path(job_id)}/files/{quote(path)}"
        return download(self._server, file, target, Retry(self.retry_seconds), on_progress)

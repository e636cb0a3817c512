"""The calls of the REST API that retry, delete and clean up, which are a part of `Client`."""

from __future__ import annotations

from collections.abc import Iterator

from service.client.models import CleanupPage, Job
from service.client.results import job_path
from service.client.transport import Transport


class LifecycleCalls:
    """Jobs that have ended, and what they leave."""

    _server: Transport

    def retry(self, job_id: str, *, from_scratch: bool = False) -> Job:
        """Puts a failed or cancelled job back into the queue, with all its retries. Idempotent.

        It continues from its last checkpoint, in the same MLflow run; with `from_scratch` its checkpoints are
        removed, and it begins from step 0 in a new run. Returns the job, unchanged if it has not ended.
        Raises RequestError if it has succeeded, or if what it needs was removed.
        """
        body = {"from_scratch": from_scratch}
        return self._server.call(Job, "POST", f"{job_path(job_id)}/retry", json=body)

    def set_priority(self, job_id: str, priority: int) -> Job:
        """Changes the priority of a job that has not ended, waiting or running. Idempotent.

        Raises RequestError if it is outside -1000 to 1000, or if the job has ended or is being cancelled.
        """
        return self._server.call(Job, "POST", f"{job_path(job_id)}/priority", json={"priority": priority})

    def delete(self, job_id: str, *, with_run: bool = False) -> None:
        """Deletes a job that has ended: its row, run folder, logs, checkpoints, and code that only it uses.

        It is not shown any more; the service removes the files soon. with_run: its MLflow run, too. Raises
        NotFound, and RequestError if it has not ended, or if a job that has not ended starts from it.
        """
        params = {"with_run": "true"} if with_run else {}
        self._server.send("DELETE", job_path(job_id), params=params)

    def cleanup_plan(self) -> Iterator[CleanupPage]:
        """Yields pages of what retention would remove now, with sizes. Changes nothing."""
        return self._cleanup("GET")

    def clean_up(self) -> Iterator[CleanupPage]:
        """Removes what retention gives up, page by page; yields what it was. Idempotent."""
        return self._cleanup("POST")

    def _cleanup(self, method: str) -> Iterator[CleanupPage]:
        position: dict[str, str] = {}
        while True:
            page = self._server.call(CleanupPage, method, "/v1/cleanup", params=position)
            yield page
            if page.next_cursor is None:
                return
            position = {"cursor": page.next_cursor}

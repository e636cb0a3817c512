"""The tab `files` of a job: its checkpoints, what its code has written, its run's artifacts, its code."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.schemas import CheckpointDocument
from service.checkpoints import JobCheckpoints
from service.errors import NotFound, Unavailable
from service.job_files import JobFile, JobFiles
from service.jobs.job import Job, Removed
from service.web import live
from service.web.page import PageRoute, fragment

router = APIRouter(route_class=PageRoute, include_in_schema=False)
MOST_FILES = 500
_EVERY_S = 5.0
_PARTS = {
    Removed.OTHER_CHECKPOINTS: "all checkpoints except the best and the last",
    Removed.CHECKPOINTS: "the checkpoints",
    Removed.LOGS: "the logs",
    Removed.CODE: "the uploaded code",
}


@dataclass(frozen=True, kw_only=True)
class FilesView:
    """What the tab shows.

    checkpoints: newest first. no_checkpoints, no_files: why there are none, or cannot be read; "".
    monitor: the metric that says which checkpoint is the best. files: the first MOST_FILES by path.
    file_count: of all that can be listed. left_out: entries besides. removed: what retention has removed.
    code: digest of the uploaded code; "" if there is none.
    """

    checkpoints: list[CheckpointDocument]
    no_checkpoints: str
    monitor: str
    files: list[JobFile]
    no_files: str
    file_count: int
    left_out: int
    removed: list[str]
    code: str


def values(request: Request, services: Context, job: Job) -> Mapping[str, Any]:  # noqa: ARG001
    """Returns what the tab shows."""
    return {"files": _view(services, job)}


# Links are relative: the stream has a path as deep as that of its page.
@router.get("/live/job-files/{job_id}")
def live_files(request: Request, services: Services, job_id: str) -> Response:
    """Keeps the checkpoints and files up to date."""
    services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    view = ("files", job_id, caller_or_none(request))
    return live.stream(request, view, _Parts(request, services, job_id))


class _Parts:
    """Lists the files again after an event of the job, and every few seconds until it has ended."""

    def __init__(self, request: Request, services: Context, job_id: str) -> None:
        self._request, self._services, self._job_id = request, services, job_id
        self._seen: Hashable = None
        self._text = b""

    def __call__(self) -> list[bytes]:
        snapshot = self._services.job_watcher.snapshot(self._job_id)
        job = snapshot.job
        moment = 0 if job.state.ended else time.monotonic() // _EVERY_S
        if (now := (snapshot.last_event, job.state, moment)) != self._seen and job.deleted_at is None:
            view = _view(self._services, job)
            self._text = fragment(self._request, "job_files_live.html", job=job, files=view)
            self._seen = now
        return [self._text]


def _view(services: Context, job: Job) -> FilesView:
    checkpoints, no_checkpoints = _checkpoints(services, job)
    files, count, left_out, no_files = _files(services, job)
    return FilesView(
        checkpoints=checkpoints,
        no_checkpoints=no_checkpoints,
        monitor="" if job.runs_script else job.spec["training"]["checkpoint"]["monitor"],
        files=files,
        no_files=no_files,
        file_count=count,
        left_out=left_out,
        removed=[text for part, text in _PARTS.items() if part in job.removed],
        code=job.spec.get("code") or "",
    )


def _checkpoints(services: Context, job: Job) -> tuple[list[CheckpointDocument], str]:
    if job.runs_script:
        return [], (
            "The job runs a script. What it has saved to SYNCBN_CHECKPOINT_DIR is listed below as its files."
        )
    try:
        found = JobCheckpoints(services.settings, job).all()
    except (NotFound, Unavailable) as error:
        return [], f"The checkpoints cannot be read: {error}"
    if found:
        return [CheckpointDocument.of(each, job) for each in reversed(found)], ""
    if Removed.CHECKPOINTS in job.removed:
        return [], "Retention has removed the checkpoints."
    return [], "There is no checkpoint." if job.state.ended else "No checkpoint has been saved yet."


def _files(services: Context, job: Job) -> tuple[list[JobFile], int, int, str]:
    """Returns the first files, the number of all, the number of entries left out, and why there are none."""
    try:
        found = JobFiles(services.settings, job).all()
    except Unavailable as error:
        return [], 0, 0, f"The files cannot be read: {error}"
    none = "" if found.files else "The job’s own code has written no files."
    return found.files[:MOST_FILES], len(found.files), found.left_out, none

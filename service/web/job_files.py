"""The tab `files` of a job: its checkpoints, what its code has written, its run's artifacts, its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from service.api.context import Context
from service.api.schemas import CheckpointDocument
from service.checkpoints import JobCheckpoints
from service.errors import NotFound, Unavailable
from service.job_files import JobFile, JobFiles
from service.jobs.job import Job, Removed

MOST_FILES = 500
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
    checkpoints, no_checkpoints = _checkpoints(services, job)
    files, count, left_out, no_files = _files(services, job)
    return {
        "files": FilesView(
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
    }


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

"""The tab of what a job's machines use: CPU, memory, disk, network, GPUs, from the tracking server."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from service.api.context import Context
from service.jobs.job import Job


def values(request: Request, services: Context, job: Job) -> dict[str, Any]:  # noqa: ARG001
    """Returns nothing more: a script fetches the points (`service.web.job_curves.read_history`)."""
    return {}

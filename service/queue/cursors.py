"""Opaque cursors: positions in a list of jobs, which a client sends back to get the next page."""

from __future__ import annotations

import base64
import binascii

from service.errors import Refused
from service.jobs.job import is_id
from training.spec import Problem


def encode(job_id: str) -> str:
    """Returns the cursor of the page that follows this job."""
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """Returns the job id in a cursor. Raises Refused for a text that `encode` did not return."""
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        job_id = ""
    if not is_id(job_id):
        problem = Problem(key="cursor", message="is not a cursor of this service; start without one")
        raise Refused("the cursor is not valid", [problem])
    return job_id

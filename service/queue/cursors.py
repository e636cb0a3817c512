"""Opaque places in a list of jobs: what a client gives back to get the next page."""

from __future__ import annotations

import base64
import binascii

from service.errors import Refused
from service.jobs.job import is_id
from training.spec import Problem


def encode(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """Raises Refused for one that `encode` did not make."""
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        job_id = ""
    if not is_id(job_id):
        problem = Problem(key="cursor", message="is not one that this service gave out; begin without it")
        raise Refused("the cursor is not valid", [problem])
    return job_id

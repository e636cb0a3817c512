"""Opaque cursors: positions in a list, which a client sends back to get the next page."""

from __future__ import annotations

import base64
import binascii

from service.errors import Refused
from service.jobs.job import JOB_PREFIX, is_id
from training.spec import Problem


def encode(last_id: str) -> str:
    """Returns the cursor of the page that follows this job or sweep."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode(cursor: str, prefix: str = JOB_PREFIX) -> str:
    """Returns the id in a cursor. Raises Refused for a text that `encode` did not return.

    prefix: that of the ids in the list.
    """
    try:
        last_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        last_id = ""
    if not is_id(last_id, prefix):
        problem = Problem(key="cursor", message="is not a cursor of this service; start without one")
        raise Refused("the cursor is not valid", [problem])
    return last_id

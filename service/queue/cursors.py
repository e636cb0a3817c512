"""Opaque cursors: positions in a list, which a client sends back to get the next page."""

from __future__ import annotations

import base64
import binascii
import re

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
    last_id = _decoded(cursor)
    if not is_id(last_id, prefix):
        raise refused()
    return last_id


def decode_number(cursor: str) -> int:
    """Returns the number in a cursor. Raises Refused for a text that `encode` did not return."""
    number = _decoded(cursor)
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise refused()
    return int(number)


def encode_queued(priority: int, last_id: str) -> str:
    """Returns the cursor of the page of the queue that follows this job."""
    return encode(f"{priority} {last_id}")


def decode_queued(cursor: str) -> tuple[int, str]:
    """Returns the priority and the id in a cursor of the queue. Raises Refused as `decode` does."""
    match = re.fullmatch(r"(-?\d{1,10}) (\w+)", _decoded(cursor), re.ASCII)
    if match is None or abs(int(match[1])) >= 2**31 or not is_id(match[2]):
        raise refused()
    return int(match[1]), match[2]


def encode_sorted(value: str, last_id: str) -> str:
    """Returns the cursor of the jobs beyond this one, in a list in order of the value."""
    return encode(f"{value} {last_id}")


def decode_sorted(cursor: str) -> tuple[str, str]:
    """Returns the value and the id in a cursor of such a list. Raises Refused as `decode` does."""
    value, _, last_id = _decoded(cursor).rpartition(" ")
    if not is_id(last_id) or "\x00" in value:
        raise refused()
    return value, last_id


def _decoded(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""


def refused() -> Refused:
    """Returns the error for a cursor that is none of the list."""
    problem = Problem(key="cursor", message="is not a cursor of this list; start without one")
    return Refused("the cursor is not valid", [problem])

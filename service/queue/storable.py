"""Converts text and JSON values to what every supported database can store. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST_REASON = 10_000
"""Maximum length of a reason in a job's row, in characters: lists of jobs contain it."""

_CUT = "… (the full text is in the logs)"


def reason(text: str) -> str:
    """Returns the reason as it is stored: encodable, and of bounded length."""
    text = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - len(_CUT)] + _CUT
    return _encodable(text).replace("\0", "?")  # PostgreSQL rejects NUL


def plain(value: Any) -> Any:
    """Returns a JSON value that every database accepts; numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, Mapping):
        return {_encodable(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _encodable(text: str) -> str:
    """Replaces lone surrogates, which a program may print and UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()

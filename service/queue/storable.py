"""What a database can keep of what programs print and compute. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST_REASON = 10_000
"""Characters of the reason in a job's row: a list of jobs shows it for each."""

_CUT = "… (the full text is in the logs)"


def reason(said: str) -> str:
    """The reason as the row has it: text that a database takes, of a bounded length."""
    said = said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - len(_CUT)] + _CUT
    return _encodable(said).replace("\0", "?")  # PostgreSQL takes no NUL


def plain(value: Any) -> Any:
    """A value of JSON as any database takes it: null for a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, Mapping):
        return {_encodable(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _encodable(text: str) -> str:
    """What a program printed may hold half a surrogate pair, which is no text in UTF-8."""
    return text.encode(errors="replace").decode()

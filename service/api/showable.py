"""Stored values as a response can show them, whoever wrote them: an earlier version, or a hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_LEVELS = 150
"""More than any spec that is accepted has, and less than what the serializer refuses (255)."""

_CUT = "… (nested too deeply to be shown)"


def showable(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document, with the values below MAX_LEVELS replaced by a note."""
    if _fits(document, MAX_LEVELS):
        return document
    shown: dict[str, Any] = _cut(document, MAX_LEVELS)
    return shown


def _fits(document: dict[str, Any], levels: int) -> bool:
    # Level by level, which takes half the time of a recursion: it is done for each job of a list.
    containers: list[Any] = [document]
    for _ in range(levels):
        values = (each.values() if isinstance(each, dict) else each for each in containers)
        containers = [value for inside in values for value in inside if isinstance(value, dict | list)]
        if not containers:
            return True
    return False


def _cut(value: Any, levels: int) -> Any:
    if not isinstance(value, Mapping | list):
        return value
    if not levels:
        return _CUT
    if isinstance(value, Mapping):
        return {key: _cut(item, levels - 1) for key, item in value.items()}
    return [_cut(item, levels - 1) for item in value]

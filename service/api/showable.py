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


def _fits(value: object, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels > 0 and all(_fits(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels > 0 and all(_fits(item, levels - 1) for item in value)
    return True


def _cut(value: Any, levels: int) -> Any:
    if not isinstance(value, Mapping | list):
        return value
    if not levels:
        return _CUT
    if isinstance(value, Mapping):
        return {key: _cut(item, levels - 1) for key, item in value.items()}
    return [_cut(item, levels - 1) for item in value]

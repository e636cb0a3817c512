"""What a check finds: how bad it is, what is wrong, and what to do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass


class Level(enum.StrEnum):
    """How bad a finding is. Only a FAULT keeps jobs from running or puts them at risk."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result of a check. about: the part that was checked. advice: what to do, "" if nothing."""

    about: str
    level: Level
    message: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check of one part. run: returns what it found; may block. seconds: how long it may take."""

    about: str
    run: Callable[[], Iterable[Finding]]
    seconds: float = 30.0


def ok(about: str, message: str) -> Finding:
    """Returns a finding that all is well."""
    return Finding(about=about, level=Level.OK, message=message)


def warning(about: str, message: str, advice: str) -> Finding:
    """Returns a finding that may matter."""
    return Finding(about=about, level=Level.WARNING, message=message, advice=advice)


def fault(about: str, message: str, advice: str) -> Finding:
    """Returns a finding that has to be mended."""
    return Finding(about=about, level=Level.FAULT, message=message, advice=advice)

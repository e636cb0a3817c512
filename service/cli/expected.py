"""When a waiting job is expected to start, in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service.cli.output import clean, duration

if TYPE_CHECKING:
    from service.client import ExpectedStart


def expected(start: ExpectedStart | None) -> str:
    """Returns as "in about 12 min, when job X ends"; "" if nothing is known."""
    if start is None:
        return ""
    because = clean(start.because)
    if start.at is None:
        return because
    return f"{_time(start.at, at_latest=start.at_latest)}, {because}"


def _time(at: datetime, *, at_latest: bool) -> str:
    about = f"in about {roughly((at - datetime.now(UTC)).total_seconds())}"
    return f"at the latest {about}" if at_latest else about


def roughly(seconds: float) -> str:
    """Returns a duration as exact as an estimate may sound.

    >>> roughly(2.4), roughly(43), roughly(751), roughly(5_000)
    ('5 s', '45 s', '13 min', '1 h 23 min')
    """
    if seconds < 57.5:
        return f"{max(round(seconds / 5), 1) * 5} s"
    return duration(round(seconds / 60) * 60)

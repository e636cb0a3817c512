"""Times and spans of time as the tables show them: short, without spaces."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise

_UNITS = ((365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def age(since: datetime) -> str:
    """Returns how long ago a time was, in its largest unit of which there are two, as in 45s, 90m, 30h."""
    seconds = _seconds((datetime.now(UTC) - since).total_seconds())
    return next((f"{seconds // size}{unit}" for size, unit in _UNITS if seconds >= 2 * size), f"{seconds}s")


def span(seconds: float | None) -> str:
    """Returns a length of time in its two largest units, as in 45s, 3m5s, 2d4h; "" for None."""
    if seconds is None:
        return ""
    total = _seconds(seconds)
    for (size, unit), (smaller, minor) in pairwise(_UNITS):
        if total >= size:
            rest = total % size // smaller
            return f"{total // size}{unit}" + (f"{rest}{minor}" if rest else "")
    return f"{total}s"


def spent(changes: Iterable[tuple[str, datetime]], until: datetime) -> dict[str, float]:
    """Returns the seconds in each state, in order of the states.

    changes: each state and when the job came into it, in order. until: when it left the last one, or now.
    """
    found: dict[str, float] = {}
    for (state, begin), (_, end) in pairwise([*changes, ("", until)]):
        found[state] = found.get(state, 0.0) + max(0.0, (end - begin).total_seconds())
    return found


def date(time: datetime | None) -> str:
    """Returns the local time to the minute, as in 2026-01-31 08:00; "" for None."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M")


def moment(time: datetime | None) -> str:
    """Returns the local time to the second, with its offset from UTC; "" for None."""
    return "" if time is None else time.astimezone().isoformat(sep=" ", timespec="seconds")


def _seconds(seconds: float) -> int:
    return max(0, round(seconds))

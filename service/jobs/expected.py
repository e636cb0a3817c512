"""When a waiting job is expected to start, and why then. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Self

LEAST_CHANGE = 5.0
"""Seconds by which an estimate has to change to be worth writing; of a later start 10 % of what is left."""
_CHANGE = 0.1


@dataclass(frozen=True, kw_only=True)
class ExpectedStart:
    """An estimate of when a job starts.

    at: the moment; None if none can be estimated. because: what lets it start then, or why nothing is known.
    at_latest: it may start earlier, because the length of a job before it is limited but not known.
    first: the first moment that was estimated for the job since it was queued.
    """

    at: datetime | None
    because: str
    at_latest: bool = False
    first: datetime | None = None

    def shown(self, now: datetime) -> ExpectedStart:
        """Returns the estimate as it is shown: without a moment that has passed."""
        if self.at is None or self.at > now:
            return self
        return replace(self, at=None, because=f"soon, {self.because}")

    def differs(self, other: ExpectedStart | None, now: datetime) -> bool:
        """Returns whether the estimate says something notably different from an earlier one."""
        if other is None or (self.because, self.at_latest) != (other.because, other.at_latest):
            return True
        if self.at is None or other.at is None:
            return self.at is not other.at
        left = max((self.at - now).total_seconds(), 0.0)
        return abs((self.at - other.at).total_seconds()) > max(LEAST_CHANGE, _CHANGE * left)

    def to_json(self) -> dict[str, Any]:
        """Returns the estimate as it is stored."""
        first = None if self.first is None else self.first.isoformat()
        at = None if self.at is None else self.at.isoformat()
        return {"at": at, "because": self.because, "at_latest": self.at_latest, "first": first}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_json` has returned."""
        return cls(
            at=_moment(data["at"]),
            because=data["because"],
            at_latest=data["at_latest"],
            first=_moment(data["first"]),
        )


def expected_in(seconds: float | None, because: str, now: datetime, *, at_latest: bool) -> ExpectedStart:
    """Returns the estimate of a start in `seconds` from now; None: no moment is known."""
    at = None if seconds is None else now + timedelta(seconds=seconds)
    return ExpectedStart(at=at, because=because, at_latest=at_latest, first=at)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

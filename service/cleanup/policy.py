"""The retention policy: after how many days an ended job loses what. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from service.jobs.job import Removed
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Days since a job's end; None: it is kept until the job is deleted.

    other_checkpoints: all except the best and the last. checkpoints: these two as well, and what a script has
    saved. logs: and exit records; the tracking server has a copy of the logs. spools: of metrics that the
    tracking server has. code: archives whose jobs have all ended.
    """

    other_checkpoints: float | None = None
    checkpoints: float | None = None
    logs: float | None = None
    spools: float | None = None
    code: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Returns the policy that the settings give."""
        return cls(
            other_checkpoints=settings.retention_other_checkpoints_days,
            checkpoints=settings.retention_checkpoints_days,
            logs=settings.retention_logs_days,
            spools=settings.retention_spools_days,
            code=settings.retention_code_days,
        )

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever removed."""
        return self == Policy()

    def limits(self, now: datetime) -> dict[Removed, datetime]:
        """Returns what jobs lose that ended before which moment."""
        days = {
            Removed.CHECKPOINTS: self.checkpoints,
            Removed.OTHER_CHECKPOINTS: self.other_checkpoints,
            Removed.LOGS: self.logs,
            Removed.SPOOL: self.spools,
        }
        return {what: _before(now, after) for what, after in days.items() if after is not None}

    def code_limit(self, now: datetime) -> datetime | None:
        """Returns before which moment all jobs of an archive must have ended; None: archives are kept."""
        return None if self.code is None else _before(now, self.code)


def _before(now: datetime, days: float) -> datetime:
    return now - timedelta(days=days)

"""How the parts are that the service depends on, for the page of settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Any

from service.doctor.diagnosis import parts
from service.doctor.examine import examine
from service.doctor.finding import Finding, Level
from service.settings import Settings

SECONDS = 10.0
_FRESH_SECONDS = 5.0


class Examination:
    """Examines one service at a time: those who ask meanwhile, and just after, get the same answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[Settings, float, list[Finding]] | None = None

    def of(self, settings: Settings) -> dict[str, Any]:
        """Returns what is found, faults first. Blocks for at most about twice SECONDS."""
        with self._lock:
            last = self._last
            if last is None or last[0] is not settings or monotonic() - last[1] > _FRESH_SECONDS:
                found = list(examine(parts(settings, SECONDS)))
                last = self._last = settings, monotonic(), found
        return _document(last[2])


def _document(findings: Sequence[Finding]) -> dict[str, Any]:
    worst_first = [Level.FAULT, Level.WARNING, Level.OK]
    ordered = sorted(findings, key=lambda finding: (worst_first.index(finding.level), finding.about))
    return {
        "faults": sum(finding.level is Level.FAULT for finding in findings),
        "warnings": sum(finding.level is Level.WARNING for finding in findings),
        "findings": [finding.to_json() for finding in ordered],
    }

"""The roles of a service process: API, scheduler, or both."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """What one process does. API and scheduler share only the database, so they may run apart or together."""

    API = "api"
    SCHEDULER = "scheduler"
    BOTH = "both"

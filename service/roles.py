"""What one process of the service does."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """API and scheduler meet in the database: they may run in one place or in two."""

    API = "api"
    SCHEDULER = "scheduler"
    BOTH = "both"

"""The check that disks have room: those of the run folders and of an SQLite database."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import make_url

from service.errors import Unavailable
from service.settings import Settings

LEAST_FREE = 64 * 2**20
"""Bytes. With less, the next logs, checkpoints or jobs are likely to be lost."""


def places_of(settings: Settings) -> list[Path]:
    """Returns the folders on this machine that the service fills."""
    database = make_url(settings.database_url)
    own = (
        [Path(database.database).parent]
        if database.get_backend_name() == "sqlite" and database.database
        else []
    )
    return [Path(settings.storage), *own]


def check_space(places: Iterable[Path]) -> None:
    """Raises Unavailable if a disk is full or cannot be asked. A folder that does not exist yet is fine."""
    for place in places:
        try:
            free = shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unavailable("the storage", f"{place}: {error.strerror}") from error
        if free < LEAST_FREE:
            left = f"{free >> 20} MiB are free in {place}; at least {LEAST_FREE >> 20} MiB are needed"
            raise Unavailable("the storage", f"the disk is full: {left}")

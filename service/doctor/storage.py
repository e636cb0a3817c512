"""Checks of the storage of runs: it is there and can be written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.doctor.finding import Finding, fault, ok, warning
from service.doctor.machine import is_read_only

ABOUT = "storage"
_PREFIX = ".syncbn-doctor-"


def check(storage: str, checkpoints: str | None) -> Iterator[Finding]:
    """Yields what is wrong with the folder of all runs."""
    folder = Path(storage)
    if not folder.is_absolute():
        advice = "give an absolute path in SYNCBN_STORAGE: other parts start in other folders"
        yield warning(ABOUT, f"{storage} is relative to the folder in which a part starts", advice)
    if not folder.is_dir():
        yield warning(
            ABOUT,
            f"there is no folder {folder}",
            "the first job makes it; if there were jobs, it is not mounted here: check SYNCBN_STORAGE",
        )
    elif is_read_only(folder):
        advice = "right for the API alone; the scheduler and the workers have to write to it"
        yield warning(ABOUT, f"{folder} is read-only on this machine", advice)
    else:
        yield _writing(folder)
    if checkpoints is not None:
        yield ok(ABOUT, f"checkpoints are in {checkpoints}, which is not looked at")


def _writing(folder: Path) -> Finding:
    try:
        with marker(folder):
            return ok(ABOUT, f"{folder} can be written")
    except OSError as error:
        advice = "make it writable for the user of the service and of Ray, and free space"
        return fault(ABOUT, f"{folder} cannot be written: {error.strerror}", advice)


@contextmanager
def marker(folder: Path) -> Iterator[str]:
    """Yields the random name of a file in the storage, which exists in the context. Raises OSError."""
    path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            file.write(b"written by syncbn doctor")
            file.flush()
            os.fsync(file.fileno())
        yield path.name
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)

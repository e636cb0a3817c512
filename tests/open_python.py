"""A Python and a folder that every user reaches: those of the tests may be closed to others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPENED = """
set -e
held=$(mktemp -d)
mount --bind "$2" "$held"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount --bind "$held" "$2"
umount "$held"
rmdir "$held"
shift 2
exec "$@"
"""


def _closed_folder(path: Path) -> Path | None:
    """Returns the topmost folder above a path that other users cannot enter, None if there is none."""
    return next((each for each in reversed(path.parents) if not each.stat().st_mode & 0o001), None)


def command_prefix() -> list[str] | None:
    """Returns what begins a command so that other users reach its Python; None if that is not possible.

    In a mount namespace of its own, the folder in which nobody may look is replaced by one that has nothing
    but Python.
    """
    base = Path(sys.base_prefix).resolve()
    closed = _closed_folder(base / "bin")
    if closed is None:
        return []
    prefix = ["unshare", "--mount", "sh", "-c", _OPENED, "sh", str(closed), str(base)]
    tried = subprocess.run([*prefix, "true"], capture_output=True)
    return prefix if tried.returncode == 0 else None


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yields a temporary folder that all users can pass through. Those of pytest are closed."""
    with tempfile.TemporaryDirectory(prefix="syncbn-tests-", dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)

"""A network of its own for one command (Linux): as it is on a machine without IPv4."""

from __future__ import annotations

import shutil
import subprocess

import pytest

IPV6_ALONE = (
    *("unshare", "--map-root-user", "--net", "sh", "-c"),
    'ip link set lo up && ip address del 127.0.0.1/8 dev lo && exec "$@"',
    "sh",
)
"""Before a command: there is no network but loopback, and that has ::1 alone."""


def _allowed() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*IPV6_ALONE, "true"], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not _allowed(), reason="a network namespace cannot be made here")

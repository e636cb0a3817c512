"""Runs code in a separate process that cannot import this project's packages."""

from __future__ import annotations

import subprocess
import sys

_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"training", "sync_bn", "service", "tests"}:
            raise ModuleNotFoundError(f"{name} is not there", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without_us(code: str) -> str:
    """Returns what `code` prints without this project; raises AssertionError with its stderr if it fails."""
    done = subprocess.run([sys.executable, "-I", "-c", _BLOCKER + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

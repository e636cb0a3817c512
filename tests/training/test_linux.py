"""What a process asks of Linux and of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from training.linux import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
counts = []
for _ in range(4):
    block = b"x" * (40 << 20)
    del block
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[0])
"""


def page_faults(mode: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", FAULTS, mode], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("kept") < page_faults("returned") / 10

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "docs" / "generate.py"


def test_the_pages_of_reference_say_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, GENERATE, "--check"], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stderr

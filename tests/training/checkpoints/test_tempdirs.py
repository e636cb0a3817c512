from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from training.checkpoints.tempdirs import TemporaryFolder

HOLDER = """
from training.checkpoints.tempdirs import TemporaryFolder

scratch = TemporaryFolder()
(scratch.path / "half of it").touch()
print(scratch.path, flush=True)
input()
"""


def holder(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process with a temporary folder; returns both."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_it_goes_when_it_is_removed_or_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    removed, forgotten = TemporaryFolder(), TemporaryFolder()
    assert len(list(tmp_path.iterdir())) == 2

    removed.remove()
    removed.remove()
    del forgotten

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = [tmp_path / "syncbn-another-machine-1-abc", tmp_path / "syncbn"]
    for folder in others:
        folder.mkdir()
    (killed, left), (alive, held) = holder(tmp_path), holder(tmp_path)
    with killed, alive:
        killed.kill()
        killed.wait()
        assert left.exists()

        own = TemporaryFolder()

        assert sorted(tmp_path.iterdir()) == sorted([*others, held, own.path])
        alive.communicate("\n", timeout=60)
        assert not held.exists()

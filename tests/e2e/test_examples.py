"""The documentation's project with a package of its own, as a job on this machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.e2e.stack import ENVIRONMENT, SYNCBN

MONAI = Path(__file__).parents[2] / "docs" / "examples" / "monai"


def test_a_project_of_monai_brings_its_package_and_learns(tmp_path: Path) -> None:
    ended = subprocess.run(
        [SYNCBN, "train", MONAI / "spec.yaml", "--code", MONAI, "--set", "training.max_epochs=2"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Successfully installed monai-1.5.2" in ended.stdout
    rows = [json.loads(line) for line in (tmp_path / "output/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_dice" in row] == [16, 32]
    losses = [row["train_loss"] for row in rows if "train_loss" in row]
    assert losses[-1] < losses[0] / 2

"""An experiment of the paper as its command runs it, on the stack that the tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e.stack import ENVIRONMENT, Stack

ROOT = Path(__file__).parents[2]


def test_a_quick_experiment_goes_through_the_queue_and_its_page_is_drawn_again_from_mlflow(
    stack: Stack, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.paper", "figure_1", "--quick", "--output", str(tmp_path)]
    smaller = ["--set", "training.max_steps=40", "--set", "trainer.val_check_interval=20"]

    def paper(*options: str) -> str:
        done = subprocess.run(
            [*command, *smaller, *options],
            cwd=ROOT,
            env=ENVIRONMENT | {"SYNCBN_URL": stack.url},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "figure_1.md").read_text()

    page = paper()
    (tmp_path / "figure_1-curves.png").unlink()
    again = paper("--page-only")

    assert page.count("**Holds**") + page.count("**Does not hold here**") == 4
    assert "Number of jobs: 2; " in page
    assert again == page
    assert (tmp_path / "figure_1-curves.png").exists()
    with stack.client() as client:
        assert [job.state for job in client.jobs(experiment="paper")] == ["succeeded"] * 2

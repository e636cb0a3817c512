from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.cli.report_text import html, markdown
from service.cli.sweep_report import Block, Code, Heading, Paragraph, Rows
from service.client import Client, Sweep
from service.jobs.job import State
from tests.service.cli.command_line import FAILURE, Syncbn
from tests.service.live_api import SPEC, Service
from training.protocol import Progress

LR = "optimizer.init_args.lr"
Trained = Callable[..., Sweep]


@pytest.fixture
def trained(service: Service, client: Client) -> Trained:
    """trained(plan) submits a sweep and plays all of its jobs; the last one fails. Returns the sweep.

    A learning rate ends in a validation loss of its own value, plus a hundredth for each seed.
    """

    def train(**plan: Any) -> Sweep:
        sweep = client.submit_sweep({"spec": SPEC, **plan})
        parent = service.results.ensure_run(job_id=sweep.id, name="", experiment="default")
        service.store.set_sweep_run(sweep.id, parent.experiment_id, parent.run_id)
        for point in sweep.points:
            run = service.start_job(point.job)
            loss = point.values.get(LR, 0.5) + point.values.get("training.seed", 0) / 100
            for step, value in enumerate((2 * loss, loss, 1.5 * loss), 1):
                service.results.log(run, "val_loss", step, value)
            if point is sweep.points[-1]:
                service.end_job(point.job, State.FAILED, FAILURE)
                continue
            service.results.log(run, "test_accuracy", 3, 1 - loss)
            service.report(run, Progress(step=3, total_steps=3, epoch=0, eta_seconds=0.0))
            service.end_job(point.job, State.SUCCEEDED)
        return client.sweep(sweep.id)

    return train


def test_a_report_says_what_was_asked_what_came_out_and_what_failed(
    syncbn: Syncbn, trained: Trained, service: Service, tmp_path: Path
) -> None:
    sweep = trained(grid={LR: [0.1, 0.01]}, repeat=2, name="rates")

    result = syncbn("report", sweep.id, "--output", str(tmp_path / "report"))

    assert result.exit_code == 0, result.stderr
    texts = {name: (tmp_path / "report" / name).read_text() for name in ("report.md", "report.html")}
    assert result.stdout.split() == [str(tmp_path / "report" / name) for name in texts]
    before, spec = texts["report.md"].split("## Spec of the first point\n\n")
    assert before.split("\n\n") == [
        "# Sweep rates",
        "4 jobs: 3 succeeded, 1 failed. The lowest val\\_loss: 0.01, with lr=0.01.",
        "## Question",
        "| key | values |\n| --- | --- |\n| optimizer.init\\_args.lr | 0.1, 0.01 |\n| training.seed | 0, 1 |",
        "## Results",
        "Last values; of metrics of validation also the best. The mean over the seeds ± the sample standard "
        "deviation.",
        "| # | lr | jobs | test_accuracy | val_loss | best val_loss |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| 1 | 0.1 | 2 | 0.895 ± 0.0071 | 0.1575 ± 0.011 | 0.105 ± 0.0071 |\n"
        "| 2 | 0.01 | 1 of 2 | 0.99 | 0.015 | 0.01 |",
        "## Without a result",
        "| point | lr | seed | state | why |\n| --- | --- | --- | --- | --- |\n"
        "| 4 | 0.01 | 1 | failed | ValueError: bad shape |",
        "",
    ]
    assert "lr: 0.1" in spec
    assert re.findall(r"<h2>(.*?)</h2>", texts["report.html"])[3:5] == [f"Metrics by {LR}", "Curves"]
    assert texts["report.html"].count('src="data:image/png;base64,') == 2
    assert "http" not in texts["report.html"]
    assert sweep.mlflow is not None
    assert service.results.artifacts[sweep.mlflow.run_id] == texts


def test_the_same_results_give_the_same_report(syncbn: Syncbn, trained: Trained, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"grid": {LR: [0.1, 0.01], "training.precision": ["32-true", "64-true"]}}
    texts = []
    for number in range(2):
        folder = tmp_path / str(number)
        assert syncbn("report", trained(**plan).id, "-o", str(folder)).exit_code == 0
        texts.append({file.name: file.read_bytes() for file in folder.iterdir()})

    assert texts[0] == texts[1]


def test_a_sweep_that_has_found_nothing_yet_has_a_report(
    syncbn: Syncbn, client: Client, tmp_path: Path
) -> None:
    sweep = client.submit_sweep({"spec": SPEC, "random": {"count": 2, "space": {LR: {"min": 1, "max": 9}}}})

    result = syncbn("report", sweep.id, "-o", str(tmp_path))

    assert result.exit_code == 0, result.stderr
    assert "has not ended" in result.stderr
    assert "not in MLflow: " in result.stderr
    assert (
        "| optimizer.init\\_args.lr | 2 draws (seed 0) from 1 to 9 |" in (tmp_path / "report.md").read_text()
    )
    assert syncbn("report", sweep.id, "-o", str(tmp_path / "report.md")).exit_code == 2
    assert syncbn("report", "s" + "0" * 20).exit_code == 4


def test_jobs_of_a_sweep_are_compared(syncbn: Syncbn, trained: Trained) -> None:
    sweep = trained(grid={LR: [0.1, 0.01, 0.001]})

    result = syncbn("compare", "--sweep", sweep.id, "--metric", "val_loss")

    assert result.exit_code == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()][1:4] == [
        [str(point.number), point.job, point.name, point.state] for point in sweep.points
    ]


def test_what_users_write_is_text_in_a_report() -> None:
    blocks: list[Block] = [
        Heading(text="<b>", level=1),
        Paragraph(text="a|b *c*"),
        Rows(columns=["k"], rows=[["<i>|"]]),
        Code(text="<pre>"),
        Heading(text="empty in Markdown"),
    ]

    assert markdown(blocks) == (
        "# \\<b\\>\n\na\\|b \\*c\\*\n\n| k |\n| --- |\n| \\<i\\>\\| |\n\n```yaml\n<pre>\n```\n"
    )
    text = html(blocks, "<t>")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<title>&lt;t&gt;</title>" in text

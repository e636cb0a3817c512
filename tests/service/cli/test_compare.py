from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service
from training.protocol import Progress

Trained = Callable[..., str]


@pytest.fixture
def trained(service: Service, client: Client) -> Trained:
    """trained(metric=[values], …) submits a job with these values, one a step, and returns its id."""

    def train(spec: dict[str, Any] | None = None, weights: str | None = None, **metrics: list[float]) -> str:
        job = client.submit({**SPEC, **(spec or {})})
        run = service.start_job(job.id)
        for name, values in metrics.items():
            for step, value in enumerate(values, 1):
                service.results.log(run, name, step, value)
        service.report(run, Progress(step=1, total_steps=1, epoch=0, eta_seconds=0.0))
        service.end_job(job.id, State.SUCCEEDED, weights_sha256=weights)
        return job.id

    return train


def test_compare_shows_the_parameters_that_differ_and_the_metrics(
    syncbn: Syncbn, trained: Trained, tmp_path: Path
) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    first = trained(val_loss=[3.0, 1.0, 2.0], val_accuracy=[0.1, 0.3, 0.2], learning_rate=[1.0])
    second = trained({"optimizer": optimizer}, val_loss=[3.0, math.nan])

    result = syncbn("compare", first, second[:18])

    assert [line.split() for line in result.stdout.splitlines()] == [
        ["#", "ID", "NAME", "STATE"],
        ["1", first, "digits", "succeeded"],
        ["2", second, "digits", "succeeded"],
        [],
        ["PARAMETER", "1", "2"],
        ["optimizer.class_path", "-", "torch.optim.SGD"],
        ["optimizer.init_args.lr", "-", "0.5"],
        [],
        ["val_accuracy", "(max", "is", "best)"],
        ["#", "LAST", "BEST", "STEP", "CURVE"],
        ["1", "0.2", "0.3", "2", "▁█▅"],
        ["2", "-", "-"],
        [],
        ["val_loss", "(min", "is", "best)"],
        ["#", "LAST", "BEST", "STEP", "CURVE"],
        ["1", "2", "1", "2", "█▁▅"],
        ["2", "not", "finite", "3", "1"],
    ]
    picture = tmp_path / "curves.svg"
    assert syncbn("compare", first, second, "-o", str(picture)).stdout == result.stdout
    assert "<svg" in picture.read_text()
    for refused in (tmp_path / "curves.doc", tmp_path / "nowhere" / "curves.png"):
        assert syncbn("compare", first, second, "-o", str(refused)).exit_code == 2
    one = syncbn("compare", first, second, "--metric", "learning_rate").stdout
    assert "val_loss" not in one
    assert "learning_rate" in one
    unknown = syncbn("compare", first, second, "--metric", "val_los")
    assert unknown.exit_code == 2
    assert "'val_los'" in unknown.stderr
    assert "val_accuracy" in unknown.stderr


def test_compare_says_which_jobs_have_the_same_weights(syncbn: Syncbn, trained: Trained) -> None:
    first, second = "0123456789abcdef" * 4, "0123456789ab" + "f" * 52
    digests = [None, first, first, second]
    ids = [trained({"training": {"seed": i}}, weights, val_loss=[1.0]) for i, weights in enumerate(digests)]

    text = syncbn("compare", *ids).stdout
    data = json.loads(syncbn("compare", *ids, "--json").stdout)

    assert [line.split()[3:] for line in text.splitlines()[:5]] == [
        ["STATE", "WEIGHTS"],
        ["succeeded", "-"],
        ["succeeded", "0123456789ab"],
        ["succeeded", "0123456789ab", "same", "weights"],
        ["succeeded", "0123456789ab", "other", "weights"],
    ]
    assert [job["weights_sha256"] for group in data["groups"] for job in group["jobs"]] == digests


def test_jobs_that_differ_in_their_seed_are_one_group(syncbn: Syncbn, trained: Trained) -> None:
    def seeds(*last: float, **spec: Any) -> list[str]:
        return [
            trained({"training": {"seed": seed}, "labels": {"seed": str(seed)}, **spec}, val_loss=[5.0, loss])
            for seed, loss in enumerate(last)
        ]

    ids = seeds(1.0, 2.0, 3.0) + seeds(4.0, name="slow", optimizer={"class_path": "torch.optim.Adam"})

    text = syncbn("compare", *ids).stdout
    data = json.loads(syncbn("compare", *ids, "--json").stdout)

    assert re.search(r"^1 +2 ± 1 \(3\) +2 ± 1 +2 ", text, re.MULTILINE)
    assert re.search(r"^training.seed +0, 1, 2 +0 *$", text, re.MULTILINE)
    assert [[job["id"] for job in group["jobs"]] for group in data["groups"]] == [ids[:3], ids[3:]]
    assert data["groups"][0]["metrics"]["val_loss"] == {
        "mode": "min",
        "last": {"mean": 2.0, "deviation": 1.0, "jobs": 3},
        "best": {"mean": 2.0, "deviation": 1.0, "jobs": 3},
    }
    assert data["groups"][1]["jobs"][0]["parameters"] == {
        "optimizer.class_path": "torch.optim.Adam",
        "training.seed": 0,
        "labels.seed": "0",
    }
    assert data["groups"][1]["jobs"][0]["metrics"]["val_loss"]["best"] == {"value": 4.0, "step": 2}


def test_jobs_are_chosen_by_name_label_experiment_state_and_age(
    syncbn: Syncbn, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, deep = (
        trained({"name": name, "labels": {"team": "a=b"}, "tracking": {"experiment": "new"}}, val_loss=[1.0])
        for name in ("wide", "deep")
    )
    other = trained(val_loss=[1.0])

    def ids(*arguments: str) -> set[str]:
        data = json.loads(syncbn("compare", *arguments, "--json").stdout)
        return {job["id"] for group in data["groups"] for job in group["jobs"]}

    assert ids("wide", "digits") == {wide, other}
    for chosen in (["--label", "team=a=b"], ["--label", "team:a=b"], ["--experiment", "new"]):
        assert ids(*chosen, "--state", "succeeded", "--since", "2h") == {wide, deep}
        assert ids("deep", wide, *chosen) == {wide, deep}

    monkeypatch.setattr("service.cli.compare._MOST", 2)
    assert ids("--since", "2h") == ids("wide", "deep", "digits") == {deep, other}
    assert "only the last" in syncbn("compare", "--since", "2h").stderr
    monkeypatch.undo()

    assert syncbn("compare", "deep", "nobody").exit_code == 4
    assert syncbn("compare", "j").exit_code == 2
    assert "may be any of" in syncbn("compare", "j").stderr
    assert syncbn("compare").exit_code == 2
    assert "3d" in syncbn("compare", "--since", "yesterday").stderr
    narrowed = syncbn("compare", wide, other, "--experiment", "new")
    assert narrowed.exit_code == 4
    assert "other options" in narrowed.stderr


def test_a_job_that_never_ran_is_left_out_in_a_sentence(
    syncbn: Syncbn, trained: Trained, client: Client
) -> None:
    ids = [trained(val_loss=[1.0]), trained({"training": {"max_epochs": 3}})]
    waiting = client.submit({**SPEC, "name": "late"})

    result = syncbn("compare", *ids, "late")
    alone = syncbn("compare", ids[0], waiting.id)

    assert f"job {waiting.id} (late) never ran: it is queued" in result.stderr
    assert waiting.id not in result.stdout
    assert alone.exit_code == 2
    assert "needs two jobs" in alone.stderr
    assert "never ran" in alone.stderr


def test_many_jobs_are_readable_in_80_columns(
    syncbn: Syncbn, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        trained({"name": f"job-{i}", "training": {"max_epochs": i + 1}}, val_loss=[i + 1.0] * 40)
    monkeypatch.setattr("service.cli.output._PIPE_WIDTH", 80)

    lines = syncbn("compare", "--state", "succeeded").stdout.splitlines()

    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    assert sum(line.startswith("training.max_epochs") for line in lines) == 2

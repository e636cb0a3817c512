from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.client import Client
from service.differences import short_keys
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service

LR = "optimizer.init_args.lr"


def submitted(syncbn: Syncbn, spec: str, *options: str) -> dict[str, Any]:
    result = syncbn("sweep", spec, *options, "--json")
    assert result.exit_code == 0, result.stderr
    sweep: dict[str, Any] = json.loads(result.stdout)
    return sweep


def test_a_sweep_is_queued_and_shown(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn("sweep", spec, "--grid", f"{LR}=1e-1,1e-2", "--repeat", "2", "--max-running", "2")

    (sweep,) = client.sweeps()
    assert result.exit_code == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["id", sweep.id],
        ["name", "digits"],
        ["state", "running"],
        ["jobs", "4:", "4", "queued"],
        ["at", "once", "at", "most", "2"],
        [],
        ["#", "lr", "seed", "ID", "STATE", "PROGRESS", "REASON"],
        *(
            [str(number), lr, seed, job.id, "queued", "not", "scheduled", "yet"]
            for number, (lr, seed, job) in enumerate(
                zip(
                    ("0.1", "0.1", "0.01", "0.01"),
                    "0101",
                    reversed(list(client.jobs(sweep=sweep.id))),
                    strict=True,
                ),
                1,
            )
        ),
        [],
        f"watch it: syncbn show {sweep.id}; afterwards: syncbn report {sweep.id}".split(),
    ]
    assert syncbn("show", sweep.id).stdout.splitlines() == result.stdout.splitlines()[:-2]
    assert json.loads(syncbn("show", sweep.id, "--json").stdout) == client.sweep(sweep.id).to_json()
    assert [line.split()[:5] for line in syncbn("sweeps").stdout.splitlines()] == [
        ["ID", "NAME", "STATE", "JOBS", "AGE"],
        [sweep.id, "digits", "running", "4:", "4"],
    ]
    assert len(json.loads(syncbn("list", "--sweep", sweep.id, "--json").stdout)) == 4


def test_options_add_to_the_section_of_the_file_and_win(syncbn: Syncbn, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    section = {
        "grid": {LR: [0.5], "training.max_epochs": [1]},
        "random": {"count": 9, "space": {"training.global_batch_size": [32]}},
        "max_running": 3,
    }
    path.write_text(yaml.safe_dump({**SPEC, "sweep": section}))

    sweep = submitted(
        syncbn,
        str(path),
        *("--grid", f"{LR}=0.1, 0.2", "--random", "2", "--space", "priority=1..100"),
        *("--space", "optimizer.init_args.momentum=1e-3..1e-1:log", "--seed", "4", "--repeat", "3,5"),
        *("--max-running", "1", "--name", "mine", "--set", "training.precision=64-true"),
    )

    assert sweep["name"] == "mine"
    assert sweep["plan"] == {
        "grid": {LR: [0.1, 0.2], "training.max_epochs": [1]},
        "random": {
            "count": 2,
            "seed": 4,
            "space": {
                "training.global_batch_size": [32],
                "priority": {"min": 1, "max": 100, "log": False},
                "optimizer.init_args.momentum": {"min": 1e-3, "max": 1e-1, "log": True},
            },
        },
        "repeat": [3, 5],
        "max_running": 1,
    }
    assert sweep["jobs"] == 8


def test_a_dry_run_shows_the_points_and_queues_nothing(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn(
        "sweep", spec, "--grid", "model.class_path=training.models.MLP", "--repeat", "2", "--dry-run"
    )

    assert [line.split() for line in result.stdout.splitlines()] == [
        ["#", "class_path", "seed", "NAME"],
        ["1", "training.models.MLP", "0", "digits-1"],
        ["2", "training.models.MLP", "1", "digits-2"],
        ["2", "jobs;", "nothing", "was", "queued"],
    ]
    assert list(client.sweeps()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give grid, random or repeat"),
        (("--grid", "training.seed"), "write KEY=VALUE,VALUE"),
        (("--grid", "training.seed="), "has no values"),
        (("--grid", "training.seed=[1"), "neither YAML nor JSON"),
        (("--space", "priority=1..2"), "say how many points to draw"),
        (("--random", "2"), "random.space"),
        (("--grid", "training.sed=1"), "did you mean seed?"),
        (("--repeat", "2", "--set", "sweep=3"), "should be a mapping with grid"),
        (("--grid", "training.seed=1,2", "--grid", "training.seed=3"), "is given twice"),
        (("--grid", "training.seed=1,2", "--repeat", "2"), "is given twice, by grid, random or repeat"),
        (("--grid", "optimizer.init_args.lr=0.1,.inf"), "inf is not a finite number"),
        (("--grid", "optimizer.init_args.lr=[0.1, .nan]"), "nan is not a finite number"),
        (("--grid", "optimizer.init_args.lr={a: [-.inf]}"), "-inf is not a finite number"),
        (("--random", "2", "--space", "optimizer.init_args.lr=-1e308..1e308"), "too large to draw from"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    syncbn: Syncbn, client: Client, spec: str, options: tuple[str, ...], message: str
) -> None:
    result = syncbn("sweep", spec, *options)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(client.sweeps()) == []


def test_arguments_of_a_script_are_swept_by_their_place(
    syncbn: Syncbn, client: Client, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys\n")

    result = syncbn("sweep", str(script), "--grid", 'script.args.1="0.1","2"', "--", "--lr", "0.5")

    assert result.exit_code == 0, result.stderr
    arguments = [job.spec["script"]["args"] for job in client.jobs()]
    assert arguments == [["--lr", "2"], ["--lr", "0.1"]]
    assert "training" in syncbn("sweep", str(script), "--repeat", "2").stderr


def test_a_single_job_does_not_take_a_sweep(syncbn: Syncbn, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "sweep": {"repeat": 2}}))

    result = syncbn("submit", str(path))

    assert result.exit_code == 2
    assert "`syncbn sweep` runs them" in result.stderr


def test_commands_take_sweeps_beside_jobs(syncbn: Syncbn, client: Client, spec: str) -> None:
    sweep, job = submitted(syncbn, spec, "--repeat", "2")["id"], client.submit(SPEC).id

    states = {
        command: [line.split()[1] for line in syncbn(command, sweep, job).stdout.splitlines()[1:]]
        for command in ("pause", "resume", "cancel")
    }

    assert states == {
        "pause": ["paused", "paused"],
        "resume": ["running", "queued"],
        "cancel": ["cancelled", "cancelled"],
    }
    assert syncbn("wait", sweep).exit_code == 3
    assert syncbn("resume", sweep).exit_code == 2
    assert syncbn("show", "s" + "0" * 20).exit_code == 4
    assert "syncbn list --sweep" in syncbn("logs", sweep).stderr


def test_a_followed_sweep_ends_with_the_code_of_its_end(
    service: Service, syncbn: Syncbn, client: Client, spec: str
) -> None:
    sweep = submitted(syncbn, spec, "--repeat", "2", "--key", "k")
    first, second = (point["job"] for point in sweep["points"])
    for job_id, state in ((first, State.SUCCEEDED), (second, State.FAILED)):
        service.start_job(job_id)
        service.end_job(job_id, state)

    result = syncbn("sweep", spec, "--repeat", "2", "--key", "k", "--follow")

    assert result.exit_code == 1
    assert "2: 1 succeeded, 1 failed" in result.stdout
    assert "1 failed of 2 jobs" in result.stdout
    assert syncbn("wait", sweep["id"]).exit_code == 1
    assert client.wait_for_sweep(sweep["id"]).state == "failed"


def test_short_keys_tell_keys_apart() -> None:
    keys = ["model.init_args.lr", "optimizer.init_args.lr", "lr", "training.seed"]

    assert list(short_keys(keys).values()) == ["model.init_args.lr", "optimizer.init_args.lr", "lr", "seed"]


def test_the_jobs_of_an_unknown_sweep_are_not_an_empty_list(syncbn: Syncbn) -> None:
    result = syncbn("list", "--sweep", "s1k0w1qk530wdg8e15q54")

    assert result.exit_code == 4
    assert "no sweep 's1k0w1qk530wdg8e15q54'" in result.stderr

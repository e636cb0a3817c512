"""Sweeps on a real Ray and a real MLflow: their limit, their parent run, and their end whatever is killed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from service.client import Sweep
from service.user_code.pack import pack
from tests.e2e.stack import Stack, digits, until
from training.protocol import JOB_TAG

LR = "optimizer.init_args.lr"
TINY = {
    "global_batch_size": 64,
    "max_steps": 12,
    "precision": "64-true",
    "checkpoint": {"every_steps": 4},
}


def tiny(**changes: Any) -> dict[str, Any]:
    """A job of a second or two, of which two run at once."""
    return digits(training=dict(TINY), resources={"workers": 1, "cpus_per_worker": 1}, **changes)


def children(stack: Stack, sweep: Sweep) -> list[dict[str, Any]]:
    """The runs below that of the sweep."""
    assert sweep.mlflow is not None
    where = f"tags.`mlflow.parentRunId` = '{sweep.mlflow.run_id}'"
    body = {"experiment_ids": [sweep.mlflow.experiment_id], "filter": where}
    runs: list[dict[str, Any]] = stack.mlflow_post("runs/search", **body).get("runs", [])
    return runs


def status(stack: Stack, sweep: Sweep) -> str:
    assert sweep.mlflow is not None
    return str(stack.mlflow_get("runs/get", run_id=sweep.mlflow.run_id)["run"]["info"]["status"])


def test_a_sweep_keeps_to_its_limit_and_is_cancelled_as_one(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    options = ["--grid", f"{LR}=0.1,0.01", "--repeat", "2", "--max-running", "1", "--json"]

    done = stack.cli("sweep", str(path), *options)
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)

    with stack.client() as client:
        for now in client.follow_sweep(submitted["id"], poll=0.2):
            assert sum(now.counts.get(state, 0) for state in ("starting", "running", "pausing")) <= 1
            if now.counts.get("succeeded"):
                break
        assert stack.cli("cancel", submitted["id"]).returncode == 0
        assert stack.cli("wait", submitted["id"]).returncode == 3
        sweep = client.sweep(submitted["id"])
        first = client.job(sweep.points[0].job)
    assert sweep.counts["succeeded"] >= 1
    assert sweep.counts["cancelled"] >= 1
    assert first.mlflow is not None
    assert first.mlflow.run_id in {run["info"]["run_id"] for run in children(stack, sweep)}
    until(lambda: status(stack, sweep) == "KILLED", "the sweep's run has not ended")
    assert "test_accuracy" in sweep.points[0].metrics


def test_whatever_is_killed_in_a_sweep_changes_no_bit_of_its_report(
    stack: Stack, code: Path, tmp_path: Path
) -> None:
    """A rank at its seventh step, and the API and the scheduler in the middle of six jobs."""
    marks = tmp_path / "marks"
    marks.mkdir()
    model = {"folder": str(marks), "strikes": {"7": "0"}, "pace": 0.05}
    spec = tiny(model={"class_path": "mine.nets.Struck", "init_args": model})
    spec["resources"] = {"workers": 2, "cpus_per_worker": 0.5}
    done = marks / "7-0"
    done.touch()  # as if the rank had been killed already
    with stack.client() as client:
        spec["code"] = client.upload_code(pack(code))
        plan = {"spec": spec, "grid": {LR: [0.1, 0.03, 0.01]}, "repeat": 2, "max_running": 2}
        undisturbed = client.wait_for_sweep(client.submit_sweep(plan).id, timeout=600)
        done.unlink()
        struck = client.submit_sweep(plan)
        for now in client.follow_sweep(struck.id, poll=0.1):
            assert not now.ended
            if now.counts.get("succeeded") and now.counts.get("running"):
                break
    stack.scheduler().kill()
    stack.kill()
    stack.start()

    with stack.client() as client:
        struck = client.wait_for_sweep(struck.id, timeout=600)
        logs = [client.logs(point.job) for point in struck.points]

    assert (undisturbed.state, struck.state) == ("succeeded", "succeeded")
    assert any("rank 0 was killed by SIGKILL at step 7 (infrastructure); starting" in log for log in logs)
    until(lambda: status(stack, struck) == "FINISHED", "the sweep's run has not ended")
    tags = [tag for run in children(stack, struck) for tag in run["data"]["tags"]]
    jobs = Counter(tag["value"] for tag in tags if tag["key"] == JOB_TAG)
    assert jobs == Counter(point.job for point in struck.points)
    reports = [report(stack, sweep, tmp_path) for sweep in (undisturbed, struck)]
    assert sorted(reports[0]) == ["report.html", "report.md"]
    assert reports[0] == reports[1]


def report(stack: Stack, sweep: Sweep, folder: Path) -> dict[str, bytes]:
    """The files of its report, by name."""
    done = stack.cli("report", sweep.id, "--output", str(folder / sweep.id))
    assert (done.returncode, done.stderr) == (0, "")
    assert sweep.mlflow is not None
    stored = stack.mlflow_get("artifacts/list", run_id=sweep.mlflow.run_id)["files"]
    assert {file["path"] for file in stored} == {"report.html", "report.md", "sweep.yaml"}
    return {file.name: file.read_bytes() for file in (folder / sweep.id).iterdir()}

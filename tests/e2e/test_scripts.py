"""The example of the documentation, under torchrun and as a job on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.stack import ENVIRONMENT, SYNCBN, Stack

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "digits.py"


def test_the_example_does_the_same_under_torchrun_and_as_a_job_whose_run_has_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri()}
    shutil.copy(EXAMPLE, tmp_path)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "digits.py")
    syncbn = (SYNCBN, "train", "digits.py", "--set", "resources.workers=2", "--")

    apart, job = (
        subprocess.run(
            [*command, "--epochs", "3"],
            cwd=tmp_path,
            env=ENVIRONMENT | store,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        for command in (torchrun, syncbn)
    )

    assert (apart.returncode, job.returncode) == (0, 0), apart.stderr + job.stdout + job.stderr
    losses = [line for line in job.stdout.splitlines() if line.startswith("epoch")]
    assert losses == [line for line in apart.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3
    assert (tmp_path / "output/run/script-checkpoints/digits.pt").exists()
    client = MlflowClient(tracking_uri=store["MLFLOW_TRACKING_URI"])
    assert len(client.search_runs(["0"])) == 1  # torchrun's, in MLflow's own experiment
    (run,) = client.search_runs([client.get_experiment_by_name("default").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits.py")
    assert "may depend on the number of workers" in run.data.tags["syncbn.script"]
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in history] == [0, 1, 2]


def test_a_script_is_paused_and_goes_on_in_the_same_run(stack: Stack, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    epochs = 40  # each takes a while, since it is logged in MLflow
    options = ("--json", "--set", "resources.workers=2")
    submitted = stack.cli("submit", str(tmp_path / "digits.py"), *options, "--", "--epochs", str(epochs))
    assert submitted.returncode == 0, submitted.stderr
    job_id = json.loads(submitted.stdout)["id"]

    with stack.client() as client:
        deadline = time.monotonic() + 300
        while client.job(job_id).state != "running" or "epoch 0" not in client.logs(job_id):
            assert time.monotonic() < deadline, client.job(job_id)
            time.sleep(0.1)
        client.pause(job_id)
        while (paused := client.job(job_id)).state == "pausing":
            time.sleep(0.1)
        client.resume(job_id)
        job = client.wait(job_id, timeout=300)

        assert (paused.state, paused.reason) == ("paused", "paused")
        assert (job.state, job.attempt, job.progress) == ("succeeded", 2, None)
        assert job.weights_sha256 is None
        said = [line for line in client.logs(job_id).splitlines() if line.startswith("epoch")]
        points = client.metrics(job_id, ["train_loss"])
    assert [line.partition(":")[0] for line in said] == [f"epoch {epoch}" for epoch in range(epochs)]
    assert [point.step for point in points] == list(range(epochs))

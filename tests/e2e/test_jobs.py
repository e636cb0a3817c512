"""Whole jobs through REST and the command line, on a real Ray and a real MLflow."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml

from service.embedded.processes import StackState, marked
from service.embedded.servers import RayHead
from tests.e2e.stack import Stack, digits, until

log = logging.getLogger(__name__)

RECIPE = Path("training/recipes/digits.yaml")


def test_the_example_learns_and_leaves_everything_in_mlflow(stack: Stack) -> None:
    done = stack.cli("submit", str(RECIPE), "--set", "norm.observe_every=20", "--follow", "--json")

    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "succeeded"
    assert job["metrics"]["test_accuracy"] >= 0.95
    assert job["progress"]["step"] == job["progress"]["total_steps"] == 300
    run_id = job["mlflow"]["run_id"]
    run = _finished_run(stack, run_id)
    assert run["info"]["status"] == "FINISHED"
    metrics = {metric["key"] for metric in run["data"]["metrics"]}
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss"} <= metrics
    assert {f"norm/features.{layer}/mean_noise" for layer in (1, 4)} <= metrics
    assert any(name.startswith("system/") for name in metrics)
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["training.global_batch_size"] == "64"
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert job["weights_sha256"] == tags["weights.sha256"]
    assert _files(stack, run_id) >= {"curves.png", "norm_noise.png", "logs"}
    with stack.client() as client:
        steps = Counter(point.step for point in client.metrics(job["id"], ["train_loss"]))
        assert steps == Counter(range(1, 301))
        assert "training" in client.logs(job["id"])
    assert _loads_without_this_project(stack, run_id)


def test_a_running_job_is_cancelled_and_frees_its_workers(stack: Stack, code: Path, tmp_path: Path) -> None:
    slow = {"folder": str(tmp_path), "strikes": {}, "pace": 0.2}
    model = {"class_path": "mine.nets.Struck", "init_args": slow}
    endless = digits(model=model, training={"global_batch_size": 64, "max_steps": 1_000_000})
    with stack.client() as client:
        job = stack.submit(endless, code)
        running = stack.until_step(job, 1)

        assert stack.cli("cancel", job.id).returncode == 0
        assert stack.cli("wait", job.id, "--timeout", "300").returncode == 3

        assert client.job(job.id).state == "cancelled"
        assert client.cluster().running == []
    assert running.mlflow is not None
    assert _finished_run(stack, running.mlflow.run_id)["info"]["status"] == "KILLED"


def test_a_job_that_is_too_large_says_so_and_lets_others_pass(stack: Stack) -> None:
    with stack.client() as client:
        large = client.submit(digits(resources={"workers": 8, "cpus_per_worker": 100}))
        deadline = time.monotonic() + 240
        while "whole cluster has" not in (client.job(large.id).reason or ""):
            assert time.monotonic() < deadline, client.job(large.id).reason
            time.sleep(0.2)

        assert client.job(large.id).state == "queued"
        assert "800 CPUs" in (client.job(large.id).reason or "")
        assert client.cancel(large.id).state == "cancelled"


def test_an_exception_in_uploaded_code_is_the_reason(stack: Stack, code: Path) -> None:
    spec = _written(code, digits(model={"class_path": "mine.nets.Net", "init_args": {"after": 3}}))

    done = stack.cli("submit", str(spec), "--code", str(code), "--follow", "--json")

    assert done.returncode == 1, done.stderr
    job = json.loads(done.stdout)
    assert job["error"]["type"] == "RuntimeError"
    assert job["error"]["rank"] in {0, 1}
    assert "the user's own mistake" in job["reason"]
    assert f"rank {job['error']['rank']} failed at step 3: RuntimeError" in job["reason"]
    assert "nets.py" in job["error"]["log_tail"]
    assert "failed twice at step 3" in job["reason"]
    assert job["attempt"] == 1


CONFIGURATION = """
seed_everything: true
trainer:
  max_epochs: 500
  devices: 2
  precision: 64
  gradient_clip_val: 1.0
  callbacks:
    - {class_path: EarlyStopping, init_args: {monitor: val_loss, patience: 5}}
    - {class_path: Decay, init_args: {by: 0.9}}
  logger:
    - {class_path: CSVLogger, init_args: {save_dir: csv}}
    - {class_path: MLFlowLogger, init_args: {experiment_name: lab}}
model: {lr: 0.05, metrics: {accuracy: {class_path: MulticlassAccuracy, init_args: {num_classes: 2}}}}
data: {class_path: Data, init_args: {batch_size: "${oc.env:BATCH_SIZE,4}"}}
"""


def test_a_configuration_of_lightning_cli_runs_as_it_is(stack: Stack, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "lab.py").write_text(Path("tests/training/cli_project.py").read_text())
    (project / "config.yaml").write_text(CONFIGURATION)
    command = [
        str(project / "config.yaml"),
        "--code",
        str(project),
        "--model",
        "Net",
        "--trainer.max_epochs=2",
    ]

    valid = stack.cli("validate", *command)
    done = stack.cli("submit", *command, "--follow", "--json")

    assert valid.returncode == 0, valid.stderr
    assert "a global batch is 2 batches of the data's own loader" in " ".join(valid.stdout.split())
    assert done.returncode == 0, done.stderr
    assert "note: a global batch is 2 batches" in done.stderr
    job = json.loads(done.stdout)
    assert (job["state"], job["workers"], job["progress"]["step"]) == ("succeeded", 2, 6)
    assert job["spec"]["tracking"]["experiment"] == "lab"
    assert "val_accuracy" in job["metrics"]


def test_a_users_lightning_module_trains_with_its_own_data(stack: Stack, code: Path) -> None:
    spec = {
        "model": {"class_path": "mine.nets.Regression"},
        "data": {"class_path": "mine.nets.Lines"},
        "training": {"global_batch_size": 16, "max_epochs": 5},
        "resources": {"workers": 2, "cpus_per_worker": 0.5},
        "tracking": {"experiment": "tests", "register_as": "lines"},
    }

    done = stack.cli("submit", str(_written(code, spec)), "--code", str(code), "--follow", "--json")

    assert done.returncode == 0, done.stdout
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["val_mse"] < 4
    assert {"train_mse", "train_loss"} <= metrics.keys()
    assert stack.mlflow_get("registered-models/get", name="lines")["registered_model"]["name"] == "lines"


def test_another_ray_beside_it_works_and_ends_without_a_trace(stack: Stack, tmp_path: Path) -> None:
    """As another `syncbn up` starts one: no port or file of the two is the same."""
    state = StackState.load(tmp_path)
    head = RayHead(state)
    head.start()
    try:
        until(head.is_ready, "it takes no calls")
        until(lambda: _has_a_node(head, state), "it has no node")
        with stack.client() as client:
            assert len(client.cluster().nodes) == 1
    finally:
        head.end()

    until(lambda: not head.is_alive(), "it is still there")
    assert list(marked(tmp_path)) == []
    assert stack.is_ready()


def _has_a_node(head: RayHead, state: StackState) -> bool:
    if not head.is_alive():  # as `up` does: on a busy machine Ray may give up while it starts
        log.warning("the head has ended, and starts again: %s", head.log.read_text()[-2000:])
        head.start()
    return _nodes(state) == 1


def _nodes(state: StackState) -> int:
    """How many a scheduler sees; Ray takes one token a process."""
    program = f"""
from service.backends.ray import RayCluster
cluster = RayCluster({state.ray_address!r}, token={state.token!r}, fence=1, queue="test")
print(len(cluster.nodes()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    log.warning("nodes: %s %s", done.stdout, done.stderr)
    return int(done.stdout) if done.returncode == 0 else 0


def test_a_spec_with_a_long_table_in_it_runs_and_is_kept_whole(stack: Stack, code: Path) -> None:
    """An argument or a variable of a process may have 131,072 bytes at most; a spec goes another way."""
    table = [float(1_000_000 + number) for number in range(14_000)]
    model = {"class_path": "mine.nets.Scaled", "init_args": {"table": table, "total": sum(table)}}
    spec = digits(model=model, training={"global_batch_size": 64, "max_steps": 4})
    assert len(json.dumps(spec)) > 140_000

    job = stack.ended(stack.submit(spec, code))

    assert job.state == "succeeded", job.reason
    assert job.spec["model"] == model
    assert job.mlflow is not None
    _finished_run(stack, job.mlflow.run_id)
    url = f"{stack.mlflow}/get-artifact"
    kept = httpx.get(url, params={"run_uuid": job.mlflow.run_id, "path": "spec.yaml"}, timeout=60)
    assert yaml.safe_load(kept.text)["model"] == model


def _written(code: Path, spec: dict[str, object]) -> Path:
    path = code.parent / "spec.json"
    path.write_text(json.dumps(spec))
    return path


def _finished_run(stack: Stack, run_id: str) -> dict[str, Any]:
    """The run, once the dispatcher has written its end and its log."""
    deadline = time.monotonic() + 240
    while True:
        run: dict[str, Any] = stack.mlflow_get("runs/get", run_id=run_id)["run"]
        if run["info"]["status"] != "RUNNING" and "logs" in _files(stack, run_id):
            return run
        assert time.monotonic() < deadline, run["info"]
        time.sleep(0.3)


def _files(stack: Stack, run_id: str) -> set[str]:
    return {file["path"] for file in stack.mlflow_get("artifacts/list", run_id=run_id).get("files", [])}


def _loads_without_this_project(stack: Stack, run_id: str) -> bool:
    script = """
import sys
class Nothing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"sync_bn", "training", "service"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import mlflow, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(f"runs:/{sys.argv[2]}/model")
assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
kinds = {type(module) for module in model.modules()}
assert torch.nn.BatchNorm2d in kinds, kinds
"""
    done = subprocess.run(
        [sys.executable, "-c", script, stack.mlflow, run_id],
        cwd=os.path.sep,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return True

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.mlflow_server import MlflowServer
from training.host.local import train_locally
from training.model.weights import weights_sha256
from training.spec import parse_spec

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow and what it stands on warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_run_in_mlflow_says_where_it_comes_from_what_went_in_and_what_came_out(
    server: MlflowServer, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.chdir(tmp_path)
    experiment_id = client.create_experiment("of somebody else")
    spec = parse_spec(
        {
            "model": {
                "class_path": "training.models.MLP",
                "init_args": {"in_features": 64, "num_classes": 10},
            },
            "data": {"class_path": "training.data.Digits"},
            "training": {"global_batch_size": 1000, "max_epochs": 2},
            "resources": {"workers": 2, "cpus_per_worker": 0.5},
            "tracking": {"experiment": "of somebody else"},
            "labels": {"team": "vision"},
            "source": {"user": "ada", "commit": "c0" * 20, "dirty": True},
        }
    )

    assert train_locally(spec, code=None, output=tmp_path / "output") == 0

    (run,) = client.search_runs([experiment_id])
    experiment = client.get_experiment(experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags.items() >= {
        ("mlflow.user", "ada"),
        ("mlflow.source.type", "LOCAL"),
        ("mlflow.source.name", "training.models.MLP"),
        ("mlflow.source.git.commit", "c0" * 20),
        ("mlflow.source.git.dirty", "true"),
    }
    delivered = torch.load(tmp_path / "output" / "model.pt", weights_only=False)
    assert run.data.tags["weights.sha256"] == weights_sha256(delivered.state_dict())
    empty = {key for key, value in run.data.params.items() if value == "{}"}
    assert not empty | {key for key in run.data.params if key.startswith(("labels", "source"))}
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "val_loss")}
    ((step, best),) = [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "best_val_loss")]
    assert best == losses[step] == min(losses.values())
    assert "best_val_accuracy" in run.data.metrics
    # One machine, so no worker's name; MLflow's section of system metrics has no further slash.
    system = {name for name in run.data.metrics if name.startswith("system/")}
    assert not {name for name in system if name.count("/") > 1 or "node" in name or "worker" in name}
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "training.data.Digits"
    (model,) = run.outputs.model_outputs
    found = {(metric.key, metric.step) for metric in client.get_logged_model(model.model_id).metrics}
    assert found >= {("val_loss", model.step), ("test_loss", model.step), ("test_accuracy", model.step)}
    assert not {name for name, _ in found if name.startswith("system/")}

from __future__ import annotations

from pathlib import Path

import pytest

from training.tracking.mlflow_run import DiscardedRun, LocalRun, MlflowRun, ServerRun

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["server", "local", "discarded"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> MlflowRun:
    runs: dict[str, MlflowRun] = {
        "server": ServerRun(f"sqlite:///{tmp_path / 'mlflow.db'}", "none"),
        "local": LocalRun(tmp_path, experiment="a", name="b", id_file=tmp_path / "id"),
        "discarded": DiscardedRun(),
    }
    return runs[request.param]


@pytest.mark.usefixtures("full_run")
def test_methods_of_other_trackers_lead_to_what_does_the_same(
    run: MlflowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in run.variables.items():
        monkeypatch.setenv(name, value)
    client = run.client()

    assert client.tracking_uri == run.uri
    with pytest.raises(AttributeError, match=r"no 'add_scalar': a job logs to MLflow, .*; use self\.log\("):
        client.add_scalar("a", 1.0)
    with pytest.raises(AttributeError, match=r"use self\.log\(name, value\) or self\.log_dict"):
        client.log({"a": 1.0})
    with pytest.raises(AttributeError, match=r"no 'plot': a job logs to MLflow, and this .* MlflowClient$"):
        client.plot()
    run.end("FINISHED")

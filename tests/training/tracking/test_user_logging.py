"""What user code logs through `self.logger` and through MLflow's functions lands in the job's run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import pytest

from tests.mlflow_server import MlflowServer
from tests.training.attempts import context, rank_run, spec_of
from tests.training.worlds import Worlds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = "tests.training.tracking.logging_module"
SPEC: dict[str, Any] = {
    "name": "a job",
    "model": {"class_path": f"{MODULE}.Module", "init_args": {"odd": {"a,b": "x" * 7000}}},
    "data": {"class_path": f"{MODULE}.Data"},
    "norm": {"kind": "keep"},
    "training": {"global_batch_size": 4, "max_epochs": 1},
    "tracking": {"experiment": "by users"},
}
SHOWN = ["by_function.png", "by_logger.json", "by_logger.png", "curves.png", "folder", "images"]


def _train(rank: int, folder: Path, uri: str | None, run_id: str | None) -> None:
    working = folder / f"code-{rank}"
    working.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(working)
    try:
        own = rank_run(rank, SPEC, folder / "output", keep_results=uri is None)
        own.order = replace(own.order, mlflow_uri=uri, run_id=run_id)
        own.train_in(context(own.assignment))
    finally:
        os.chdir(before)


def _metrics(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    names = ("by_logger", "at_this_step", "by_client", "by_function", "resumed", "after_the_end")
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


BY_HAND = {
    "by_client": [(3, 2.0)],
    "by_function": [(5, 1.0)],
    "resumed": [(0, 1.0)],
    "after_the_end": [(0, 1.0)],
}


def _children(client: MlflowClient, run: Run) -> list[str]:
    where = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return [child.info.run_name for child in client.search_runs([run.info.experiment_id], where)]


def test_all_of_it_is_in_the_job_s_run_which_the_service_alone_ends(
    server: MlflowServer, client: MlflowClient, run_id: str, worlds: Worlds, tmp_path: Path
) -> None:
    worlds.run(2, _train, tmp_path, server.url, run_id)

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.end_time is None
    assert _metrics(client, run) == BY_HAND | {
        "by_logger": [(0, 0.0), (1, 1.0)],
        "at_this_step": [(1, 0.0), (2, 1.0)],
    }
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == SHOWN
    assert len(client.list_artifacts(run_id, "images")) > 0
    assert run.data.tags["tag"] == "value"
    params = run.data.params
    assert params["known_early"] == "yes"
    assert params["within"] == run_id
    assert (params["name"], params["hparams.name"]) == ("a job", "mine")
    assert (params["lr"], params["fraction"]) == ("0.1", "0.5")
    assert params["odd/a_b"] == "x" * 6000
    assert _children(client, run) == ["part"]
    # Nothing from rank 1: neither on the server nor in a folder.
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "attributes.run_name = 'part'"
    )
    assert [each.data.tags["mlflow.parentRunId"] for each in runs] == [run_id]
    assert [list((tmp_path / f"code-{rank}").iterdir()) for rank in (0, 1)] == [[], []]
    assert not list(Path(gettempdir()).glob("syncbn-mlflow-*"))


def test_without_a_server_it_is_in_a_store_beside_the_results(
    environment: None,  # noqa: ARG001
    worlds: Worlds,
    tmp_path: Path,
) -> None:
    worlds.run(2, _train, tmp_path, None, None)

    from mlflow import MlflowClient

    output = tmp_path / "output"
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("by users")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert (run.info.run_name, run.info.status) == ("a job", "FINISHED")
    assert _metrics(client, run) == BY_HAND | {"by_logger": [], "at_this_step": []}
    assert (
        output / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts" / "by_logger.png"
    ).exists()
    assert _children(client, run) == ["part"]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["by_logger"], row["at_this_step"]) for row in rows] == [
        (1, 0.0, 0.0),
        (2, 1.0, 1.0),
    ]
    assert [list((tmp_path / f"code-{rank}").iterdir()) for rank in (0, 1)] == [[], []]
    assert not list(Path(gettempdir()).glob("syncbn-mlflow-*"))


def _train_without_logging(rank: int, folder: Path) -> None:
    own = rank_run(rank, spec_of(samples=14, max_epochs=1), folder)
    own.train_in(context(own.assignment))


def test_code_that_logs_nothing_there_makes_no_store(worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(1, _train_without_logging, tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert "metrics.jsonl" in names
    assert not names & {"mlflow.db", "mlruns"}

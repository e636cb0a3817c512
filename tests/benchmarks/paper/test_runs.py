from __future__ import annotations

import pytest
from mlflow import MlflowClient

from benchmarks.paper.points import DIGEST, EXPERIMENT, plan_of
from benchmarks.paper.runs import DIVERGED, Missing, read
from tests.mlflow_server import MlflowServer


def test_the_latest_ended_run_of_each_point_is_read_with_the_last_value_of_each_step(
    mlflow_server: MlflowServer,
) -> None:
    client = MlflowClient(tracking_uri=mlflow_server.url)
    first, second = plan_of("figure_1").points()[:2]

    with pytest.raises(Missing, match="has 0 of the 2 runs"):
        read(mlflow_server.url, [first, second], ["val_"])

    experiment = client.create_experiment(EXPERIMENT)

    def make(digest: str, status: str, begin: int, values: list[float], **tags: str) -> None:
        run = client.create_run(experiment, start_time=begin, tags={DIGEST: digest, **tags}).info.run_id
        for at, value in enumerate(values):
            client.log_metric(run, "val_accuracy", value, step=5, timestamp=at)
            client.log_metric(run, "train_loss", value, step=5, timestamp=at)
        client.set_terminated(run, status, end_time=begin + 3_000)

    make(first.digest, "FINISHED", 1_000, [0.1])
    make(first.digest, "FINISHED", 2_000, [0.2, 0.3])
    make(first.digest, "KILLED", 3_000, [0.9])
    make(second.digest, "FAILED", 1_000, [])
    with pytest.raises(Missing, match="has 1 of the 2 runs"):
        read(mlflow_server.url, [first, second], ["val_"])
    make(second.digest, "FAILED", 2_000, [], **{DIVERGED: "true"})

    one, other = read(mlflow_server.url, [first, second], ["val_"])

    assert one.curves == {"val_accuracy": [(5, 0.3)]}
    assert (one.seconds, one.diverged, one.seed) == (3.0, False, 0)
    assert other.diverged
    assert other.curves == {}

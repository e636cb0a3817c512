from __future__ import annotations

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from service.ports import free_port
from tests.mlflow_server import MlflowServer
from tests.training import tracked_run
from tests.training.isolation import run_without_us
from training.model.export import exportable
from training.models import ConvNet
from training.spec import flat, parse_spec
from training.tracking import mlflow_tracker
from training.tracking.dataset import Dataset
from training.tracking.mlflow_tracker import MlflowTracker, NotWritten

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow and what it stands on warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

NOWHERE = f"http://127.0.0.1:{free_port()}"
MakeTracker = Callable[..., MlflowTracker]


@pytest.fixture
def make_tracker(server: MlflowServer, run_id: str) -> MakeTracker:
    def make(**options: Any) -> MlflowTracker:
        return MlflowTracker(server.url, run_id, **{"params": {}, "tags": {}} | options)

    return make


def points(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    """What the server has, in the order in which it came."""
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_every_point_parameter_and_tag_arrives_once(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    spec = parse_spec({"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}})
    tracker = make_tracker(params=flat(spec) | {"long": "x" * 7000}, tags={"syncbn.norm": "sync_batch_norm"})
    losses = [(step, 1 / step) for step in range(1, 2501)]
    for step, loss in losses:
        tracker.log(step, 0, {"train_loss": loss, "learning_rate": 0.1})
    tracker.log(2500, 0, {"val_loss": math.nan, "odd name, by a user": 1.0, "val/ok": 2.0})
    tracker.close()

    assert points(client, run_id, "train_loss") == losses
    assert points(client, run_id, "learning_rate") == [(step, 0.1) for step, _ in losses]
    ((step, value),) = points(client, run_id, "val_loss")
    assert step == 2500
    assert math.isnan(value)
    assert points(client, run_id, "odd name_ by a user") == [(2500, 1.0)]
    assert points(client, run_id, "val/ok") == [(2500, 2.0)]
    data = client.get_run(run_id).data
    assert data.params == flat(spec) | {"long": "x" * 6000}
    assert data.tags["syncbn.norm"] == "sync_batch_norm"


def test_parameters_of_any_number_and_name_are_written_though_no_step_was(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    given = {f"model.init_args.layer_{number}": str(number) for number in range(250)}
    odd = {"labels.a,b": "1", "labels./c//d": "2", "..": "3", "x" * 300: "4"}

    make_tracker(params=given | odd).close()

    params = client.get_run(run_id).data.params
    assert params.items() >= given.items()
    assert {params["labels.a_b"], params["labels._c__d"], params["_."], params["x" * 250]} == {
        "1",
        "2",
        "3",
        "4",
    }


def test_a_second_attempt_of_a_run_writes_no_step_twice(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    first = make_tracker(params={"resources.workers": "2"})
    for step in range(1, 8):
        first.log(step, 0, {"train_loss": float(step)})
    first.log(4, 0, {"val_loss": 4.0})
    first.close()

    second = make_tracker(params={"resources.workers": "3", "new": "1"})
    for step in range(5, 11):  # its checkpoint was of step 4
        second.log(step, 1, {"train_loss": float(step)})
    second.log(8, 1, {"val_loss": 8.0})
    history, of_validation = second.history(), second.history(("val_", "test_"))
    second.close()

    assert points(client, run_id, "train_loss") == [(step, float(step)) for step in range(1, 11)]
    assert history == {
        "train_loss": [(step, float(step)) for step in range(1, 11)],
        "val_loss": [(4, 4.0), (8, 8.0)],
    }
    assert of_validation == {"val_loss": [(4, 4.0), (8, 8.0)]}
    assert client.get_run(run_id).data.params == {"resources.workers": "2", "new": "1"}


def test_model_and_figure_are_kept_and_the_model_loads_without_this_project(
    server: MlflowServer, client: MlflowClient, run_id: str, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    model, x = exportable(ConvNet(widths=(4, 8))), torch.randn(2, 1, 8, 8)
    (tmp_path / "curves.png").write_bytes(b"figure")
    torch.save((x, model(x).detach()), tmp_path / "expected")
    spec = parse_spec(
        {"model": {"class_path": "a.B"}, "data": {"class_path": "a.C", "init_args": {"size": 8}}}
    )
    tracker = make_tracker(register_as="digits", dataset=Dataset.of(spec))
    for step, loss in enumerate([3.0, 1.0, 2.0], 1):
        tracker.log(step, 0, {"val_loss": loss})

    tracker.artifact(tmp_path / "curves.png")
    tracker.best({"val_loss": (2, 1.0), "val/score": (1, 4.0)})
    tracker.model(model, x[:1], 3)
    tracker.close()
    make_tracker(dataset=Dataset.of(spec)).close()  # the next attempt

    assert points(client, run_id, "best_val_loss") == [(2, 1.0)]
    assert points(client, run_id, "best_val_score") == [(1, 4.0)]
    assert points(client, run_id, "val_loss") == [(1, 3.0), (2, 1.0), (3, 2.0)]
    run = client.get_run(run_id)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.source_type) == ("a.C", "code")
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert json.loads(given.dataset.source)["tags"] == {"class_path": "a.C", "init_args": '{"size": 8}'}
    (made,) = run.outputs.model_outputs
    assert made.step == 3
    logged = client.get_logged_model(made.model_id)
    assert [(metric.key, metric.step, metric.value) for metric in logged.metrics] == [("val_loss", 3, 2.0)]

    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["curves.png"]
    (version,) = client.search_model_versions("name='digits'")
    assert version.run_id == run_id
    output = run_without_us(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import mlflow, mlflow.pytorch, torch\n"
        f"mlflow.set_tracking_uri({server.url!r})\n"
        f"x, expected = torch.load({str(tmp_path / 'expected')!r})\n"
        f"model = mlflow.pytorch.load_model('runs:/{run_id}/model')\n"
        "torch.testing.assert_close(model(x), expected)\n"
        "info = mlflow.models.get_model_info('models:/digits/1')\n"
        "print(info.signature.inputs.inputs[0].shape)\n"
    )
    assert output.strip().endswith("(-1, 1, 8, 8)")


def test_a_server_that_goes_away_in_mid_run_costs_nothing(
    server: MlflowServer, client: MlflowClient, run_id: str, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    (tmp_path / "late.txt").write_text("late")
    tracker = make_tracker()
    for step in range(1, 101):
        tracker.log(step, 0, {"train_loss": float(step)})
    assert len(tracker.history()["train_loss"]) == 100

    server.stop()
    for step in range(101, 3001):
        tracker.log(step, 0, {"train_loss": float(step)})
    keeping = threading.Thread(target=tracker.artifact, args=[tmp_path / "late.txt"])
    keeping.start()
    server.begin_to_start()
    tracker.close()
    keeping.join()

    assert points(client, run_id, "train_loss") == [(step, float(step)) for step in range(1, 3001)]
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["late.txt"]


def test_tags_arrive_whatever_their_number_and_the_last_value_counts(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    tracker = make_tracker(tags={"syncbn.world_size": "2"})
    tracker.tags({f"tag {number}": "early" for number in range(50)})
    tracker.tags({f"tag {number}": str(number) for number in range(50)} | {"long": "x" * 9000, "a,b": "odd"})
    tracker.close()

    tags = client.get_run(run_id).data.tags
    assert tags.items() >= {f"tag {number}": str(number) for number in range(50)}.items()
    assert (tags["syncbn.world_size"], tags["long"], tags["a_b"]) == ("2", "x" * 8000, "odd")


def test_points_that_the_server_has_already_are_not_there_twice(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker, tmp_path: Path
) -> None:
    given = [(step, math.nan if step % 7 == 0 else 1 / step) for step in range(1, 1501)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_tracker, "_last_steps", lambda _run: {})  # only its own rule can help
        for number in (1, 2):
            tracker = make_tracker(spool=tmp_path / "spool")
            for step, loss in given:
                tracker.log(step, 0, {"train_loss": loss})
            tracker.close()
            assert len(points(client, run_id, "train_loss")) == 1500, number
            (tmp_path / "spool.sent").unlink()  # all of it is sent again

    assert str(sorted(points(client, run_id, "train_loss"))) == str(given)  # NaN equals nothing


def test_what_a_server_that_stays_away_has_not_taken_is_sent_by_the_next_attempt(
    client: MlflowClient,
    run_id: str,
    make_tracker: MakeTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(mlflow_tracker, "GIVE_UP_SECONDS", 1.5)
    monkeypatch.setattr(mlflow_tracker, "REPORT_SECONDS", 0.5)
    first = MlflowTracker(NOWHERE, run_id, params={}, tags={}, spool=tmp_path / "spool")
    for step in range(1, 1201):
        first.log(step, 0, {"train_loss": float(step)})
    before = time.time()
    with pytest.raises(
        NotWritten, match=rf"1200 metric values are kept in {tmp_path / 'spool'} and sent when"
    ):
        first.close()
    assert "1200 metric values are left" in caplog.text
    without_file = MlflowTracker(NOWHERE, run_id, params={}, tags={})
    without_file.log(1, 0, {"of_no_file": 1.0})
    with pytest.raises(NotWritten, match="1 metric values were in memory alone and are lost"):
        without_file.close()

    monkeypatch.undo()
    second = make_tracker(spool=tmp_path / "spool")
    for step in range(1101, 1301):
        second.log(step, 0, {"train_loss": -1.0 if step <= 1200 else float(step)})
    second.close()

    assert points(client, run_id, "train_loss") == [(step, float(step)) for step in range(1, 1301)]
    times = [point.timestamp for point in client.get_metric_history(run_id, "train_loss")]
    assert max(times[:1200]) <= before * 1000 < min(times[1200:])


@pytest.mark.usefixtures("environment")
def test_one_that_is_in_a_hurry_leaves_its_points_to_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "SHORT_GIVE_UP_SECONDS", 0.5)
    tracker = MlflowTracker(NOWHERE, "0" * 32, params={}, tags={}, spool=tmp_path / "spool")
    tracker.log(1, 0, {"train_loss": 1.0})

    with pytest.raises(NotWritten, match="has taken nothing for 0 s"):
        tracker.close(wait=False)

    assert (tmp_path / "spool").read_text().endswith(" 1 1.0 train_loss\n")


def test_a_run_that_somebody_has_deleted_is_not_waited_for(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    client.delete_run(run_id)
    tracker = make_tracker()
    tracker.log(1, 0, {"train_loss": 1.0})

    with pytest.raises(NotWritten, match="refuses metrics"):
        tracker.close()


def test_a_server_that_does_not_answer_for_long_costs_no_point(
    server: MlflowServer,
    client: MlflowClient,
    run_id: str,
    make_tracker: MakeTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands still while four requests are given up, and finds them all when it goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_tracker, "SEND_SECONDS", 0.2)
    tracker = make_tracker(spool=tmp_path / "spool")
    tracker.log(1, 0, {"train_loss": 1.0})
    tracker.history()
    server.signal(signal.SIGSTOP)
    steps = iter(range(2, 2002))
    for _ in range(4):
        error = tracker._last_error
        for step in islice(steps, 500):
            tracker.log(step, 0, {"train_loss": float(step)})
        while tracker._last_error is error:
            time.sleep(0.05)
    server.signal(signal.SIGCONT)
    monkeypatch.undo()
    tracker.close()

    assert points(client, run_id, "train_loss") == [(step, float(step)) for step in range(1, 2002)]


def test_kills_at_any_moment_cost_no_point_and_double_none(
    server: MlflowServer, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    """Every other time the server is killed, too."""
    chance = random.Random(run_id)  # another one each time
    moments = [chance.uniform(0, 1) for _ in range(5)]
    for number, moment in enumerate(moments):
        process, _ = tracked_run.begin(server.url, run_id, tmp_path, more=None)
        time.sleep(moment)
        if number % 2 == 1:
            server.stop()
            time.sleep(chance.uniform(0, 0.2))
            server.begin_to_start()
        process.kill()
        process.join()
    process, saved = tracked_run.begin(server.url, run_id, tmp_path, more=1000)
    process.join()

    assert process.exitcode == 0
    every = list(range(1, saved + 1001))
    for name, steps in {
        "train_loss": every,
        "learning_rate": every,
        "val_loss": [step for step in every if step % tracked_run.VALIDATE_EVERY == 0],
    }.items():
        there = points(client, run_id, name)
        assert sorted(step for step, _ in there) == steps, moments
    assert all(int(value) == step for step, value in points(client, run_id, "val_loss"))


def test_parameters_that_are_known_later_are_added(
    client: MlflowClient, run_id: str, make_tracker: Callable[..., MlflowTracker]
) -> None:
    tracker = make_tracker(params={"seed": "1"})
    tracker.log(1, 0, {"train_loss": 1.0})

    tracker.params({"seed": "2", "optimizer.class_path": "torch.optim.SGD"})
    tracker.close()

    assert client.get_run(run_id).data.params == {"seed": "1", "optimizer.class_path": "torch.optim.SGD"}


def test_a_parameter_that_user_code_has_logged_meanwhile_keeps_its_value(
    client: MlflowClient, run_id: str, make_tracker: MakeTracker
) -> None:
    tracker = make_tracker(params={"seed": "1"})
    tracker.history()
    client.log_param(run_id, "lr", "0.2")

    tracker.params({"lr": "0.1", "width": "8"})
    tracker.close()

    assert client.get_run(run_id).data.params == {"seed": "1", "lr": "0.2", "width": "8"}

"""What the service asks of a tracking server, of the one in memory and of a real one alike."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.backends import mlflow as mlflow_rest
from service.backends.memory_tracking import FakeResults
from service.backends.mlflow import MlflowRest
from service.backends.tracking import Results
from service.errors import Refused, Unavailable
from service.jobs.job import Run
from tests.mlflow_server import MlflowServer
from training.protocol import JOB_TAG, SWEEP_TAG

NOWHERE = Run(experiment_id="0", run_id="0" * 32)


class Subject:
    """The results under test, and what workers and people do to the server behind them."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def new_run(self, experiment: str = "contracts") -> Run:
        return self.results.ensure_run(job_id=f"j{secrets.token_hex(10)}", name="n", experiment=experiment)

    def log(self, run: Run, name: str, *values: float) -> None:
        """Values of steps 1, 2, 3..."""
        raise NotImplementedError

    def ending(self, run: Run) -> str:
        raise NotImplementedError

    def create_beside(self, run: Run, job_id: str) -> Run:
        """Creates another run of the same job, as two schedulers that create it at once do."""
        raise NotImplementedError

    def delete_experiment(self, run: Run) -> None:
        raise NotImplementedError

    def unreachable(self) -> Results:
        raise NotImplementedError


class InMemory(Subject):
    def __init__(self) -> None:
        self.fake = FakeResults()
        super().__init__(self.fake)

    def log(self, run: Run, name: str, *values: float) -> None:
        for step, value in enumerate(values, 1):
            self.fake.log(run, name, step, value)

    def ending(self, run: Run) -> str:
        return self.fake.endings.get(run.run_id, "RUNNING")

    def create_beside(self, run: Run, job_id: str) -> Run:
        (name,) = (name for name, id in self.fake._experiments.items() if id == run.experiment_id)
        return self.fake._new_run(job_id, name)

    def delete_experiment(self, run: Run) -> None:
        self.fake.deleted_experiments.add(run.experiment_id)

    def unreachable(self) -> Results:
        self.fake.unreachable = True
        return self.fake


class OverRest(Subject):
    def __init__(self, url: str) -> None:
        self.rest = MlflowRest(url)
        self.http = httpx.Client(base_url=f"{url}/api/2.0/mlflow/", timeout=30, trust_env=False)
        super().__init__(self.rest)

    def log(self, run: Run, name: str, *values: float) -> None:
        metrics = [
            {"key": name, "value": _as_json(value), "step": step, "timestamp": 1_700_000_000_000 + step}
            for step, value in enumerate(values, 1)
        ]
        for first in range(0, len(metrics), 1000):
            self._post("runs/log-batch", run_id=run.run_id, metrics=metrics[first : first + 1000])

    def ending(self, run: Run) -> str:
        answer = self.http.get("runs/get", params={"run_id": run.run_id})
        return str(answer.raise_for_status().json()["run"]["info"]["status"])

    def create_beside(self, run: Run, job_id: str) -> Run:
        body = {"experiment_id": run.experiment_id, "tags": [{"key": JOB_TAG, "value": job_id}]}
        answer = self.http.post("runs/create", json=body).raise_for_status().json()
        return Run(experiment_id=run.experiment_id, run_id=answer["run"]["info"]["run_id"])

    def delete_experiment(self, run: Run) -> None:
        self._post("experiments/delete", experiment_id=run.experiment_id)

    def delete_run(self, run: Run) -> None:
        self._post("runs/delete", run_id=run.run_id)

    def unreachable(self) -> Results:
        return MlflowRest("http://127.0.0.1:1")

    def _post(self, path: str, **body: object) -> None:
        self.http.post(path, json=body).raise_for_status()


def _as_json(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


@pytest.fixture
def rest(mlflow_server: MlflowServer) -> Iterator[OverRest]:
    subject = OverRest(mlflow_server.url)
    yield subject
    subject.rest.close()
    subject.http.close()


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.full)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return InMemory()
    over_rest: OverRest = request.getfixturevalue("rest")
    return over_rest


# Runs


def test_asking_twice_gives_the_same_run(subject: Subject) -> None:
    ensure = subject.results.ensure_run
    first = ensure(job_id="j1", name="a", experiment="one")

    assert ensure(job_id="j1", name="a", experiment="one") == first
    other = ensure(job_id="j2", name="a", experiment="one")
    assert other.run_id != first.run_id
    assert other.experiment_id == first.experiment_id
    assert ensure(job_id="j3", name="a", experiment="two").experiment_id != first.experiment_id
    sweep = ensure(job_id="s1", name="a", experiment="one", tag=SWEEP_TAG)
    assert ensure(job_id="s1", name="a", experiment="one", tag=SWEEP_TAG) == sweep
    assert sweep.run_id not in {first.run_id, other.run_id}


def test_the_runs_of_a_job_are_found_until_they_are_ended(subject: Subject) -> None:
    results = subject.results
    experiment_id = results.ensure_experiment("twice")
    assert results.open_runs("j7", experiment_id) == []

    run = results.ensure_run(job_id="j7", name="a", experiment="twice")
    results.ensure_run(job_id="j8", name="a", experiment="twice")
    second = subject.create_beside(run, "j7")

    assert run.experiment_id == experiment_id == results.ensure_experiment("twice")
    found = results.open_runs("j7", experiment_id)
    assert sorted(each.run_id for each in found) == sorted([run.run_id, second.run_id])
    assert {each.experiment_id for each in found} == {experiment_id}
    results.end(second, "KILLED")
    assert results.open_runs("j7", experiment_id) == [run]
    results.end(run, "FINISHED")
    assert results.open_runs("j7", experiment_id) == []


def test_the_runs_of_a_sweep_are_found_by_its_own_tag(subject: Subject) -> None:
    run = subject.results.ensure_run(job_id="s7", name="a", experiment="swept", tag=SWEEP_TAG)

    assert subject.results.open_runs("s7", run.experiment_id, SWEEP_TAG) == [run]


def test_names_are_free_text(subject: Subject) -> None:
    name = 'it\'s 100 % "ünï" `→` 🙂 a=b&c'

    run = subject.results.ensure_run(job_id="j4", name=name, experiment=name)

    assert subject.results.ensure_run(job_id="j4", name=name, experiment=name) == run


def test_an_experiment_that_others_have_created_opens_on_training_runs_too(rest: OverRest) -> None:
    for name, kind in (("of others", None), ("for judges", "genai_development")):
        tags = [{"key": "mlflow.experimentKind", "value": kind}] if kind else []
        rest._post("experiments/create", name=name, tags=tags)
        for _ in range(2):
            rest.new_run(name)

        answer = rest.http.get("experiments/get-by-name", params={"experiment_name": name})
        found = {tag["key"]: tag["value"] for tag in answer.json()["experiment"]["tags"]}
        assert found["mlflow.experimentKind"] == (kind or "custom_model_development")


def test_a_run_is_running_until_it_is_ended(subject: Subject) -> None:
    for status in ("FINISHED", "FAILED", "KILLED"):
        run = subject.new_run()
        assert subject.ending(run) == "RUNNING"
        subject.results.end(run, status)
        subject.results.end(run, status)
        assert subject.ending(run) == status


def test_a_run_whose_job_goes_on_is_running_again_and_takes_points_and_another_end(subject: Subject) -> None:
    run = subject.new_run()
    subject.log(run, "train_loss", 3.0)
    subject.results.end(run, "FAILED")

    for _ in range(2):
        subject.results.reopen(run)
        assert subject.ending(run) == "RUNNING"
    subject.log(run, "val_loss", 2.0)
    subject.results.end(run, "FINISHED")

    assert subject.ending(run) == "FINISHED"
    assert {point.name for point in subject.results.history(run)} == {"train_loss", "val_loss"}


def test_a_job_whose_run_has_another_id_in_its_tag_gets_a_new_one(subject: Subject) -> None:
    ensure = partial(subject.results.ensure_run, job_id="j9", name="a", experiment="again")
    first = ensure()
    subject.results.set_tag(first, "team", "a b; 'c' → ü")
    assert ensure() == first

    subject.results.set_tag(first, JOB_TAG, "j9, until attempt 1")
    second = ensure()

    assert second != first
    assert ensure() == second


def test_a_deleted_run_is_not_found_again(subject: Subject) -> None:
    ensure = partial(subject.results.ensure_run, job_id="j10", name="a", experiment="deleted runs")
    first, other = ensure(), subject.new_run("deleted runs")

    for _ in range(2):
        subject.results.delete(first)

    assert ensure() != first
    assert subject.ending(other) == "RUNNING"


def test_a_deleted_run_is_one_that_mlflow_can_restore(rest: OverRest) -> None:
    run = rest.new_run()
    rest.log(run, "train_loss", 1.0)

    rest.results.delete(run)
    info = rest.http.get("runs/get", params={"run_id": run.run_id}).json()["run"]["info"]
    rest._post("runs/restore", run_id=run.run_id)

    assert info["lifecycle_stage"] == "deleted"
    assert [point.value for point in rest.results.history(run)] == [1.0]


def test_a_run_has_an_address_for_browsers(subject: Subject) -> None:
    run = subject.new_run()

    assert subject.results.url(run).endswith(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}")


def test_the_address_for_browsers_may_be_another() -> None:
    results = MlflowRest("http://mlflow:5000", "https://example.org/mlflow/")

    url = results.url(Run(experiment_id="1", run_id="r"))

    assert url == "https://example.org/mlflow/#/experiments/1/runs/r"


def test_a_deleted_experiment_is_refused_by_name(subject: Subject) -> None:
    run = subject.new_run("to be deleted")
    subject.delete_experiment(run)

    with pytest.raises(Refused, match="experiment 'to be deleted' is deleted"):
        subject.new_run("to be deleted")


# What a run has learned


def test_history_comes_by_name_and_step(subject: Subject) -> None:
    run = subject.new_run()
    subject.log(run, "val_loss", 2.5)
    subject.log(run, "train_loss", 3.0, 2.0, 0.0)

    points = subject.results.history(run)

    assert [(point.name, point.step, point.value) for point in points] == [
        ("train_loss", 1, 3.0),
        ("train_loss", 2, 2.0),
        ("train_loss", 3, 0.0),
        ("val_loss", 1, 2.5),
    ]
    assert all(point.timestamp >= 1_700_000_000_000 for point in points)
    assert subject.results.history(run, ["val_loss"]) == points[3:]
    assert subject.results.history(run, ["val_loss", "train_loss"]) == points
    assert subject.results.history(run, ["no such"]) == []
    assert subject.results.history(run, []) == []


def test_history_without_points_is_empty(subject: Subject) -> None:
    run = subject.new_run()

    assert subject.results.history(run) == []
    assert subject.results.names(run) == []


def test_metrics_of_the_machine_and_of_single_layers_come_only_when_they_are_named(subject: Subject) -> None:
    run = subject.new_run()
    subject.log(run, "system/cpu_utilization_percentage", 50.0)
    subject.log(run, "norm/bn1/mean_noise", 0.5)
    subject.log(run, "train_loss", 1.0)

    assert {point.name for point in subject.results.history(run)} == {"train_loss"}
    assert subject.results.names(run) == [
        "norm/bn1/mean_noise",
        "system/cpu_utilization_percentage",
        "train_loss",
    ]
    named = subject.results.history(run, ["system/cpu_utilization_percentage"])
    assert [point.value for point in named] == [50.0]


def test_values_that_are_no_numbers_come_back(subject: Subject) -> None:
    run = subject.new_run()
    subject.log(run, "train_loss", math.nan, math.inf, -math.inf)

    values = [point.value for point in subject.results.history(run)]

    assert math.isnan(values[0])
    # MLflow keeps the largest double for infinity.
    assert values[1] >= 1.7e308
    assert values[2] <= -1.7e308


def test_a_long_history_comes_whole(rest: OverRest, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rest.new_run()
    rest.log(run, "train_loss", *(float(number) for number in range(25)))
    monkeypatch.setattr(mlflow_rest, "_PAGE", 10)

    points = rest.results.history(run)

    assert [(point.step, point.value) for point in points] == [(n + 1, float(n)) for n in range(25)]


# Artifacts


@pytest.mark.parametrize(
    "text",
    ["", "a line\n", "windows\r\nand\rold\n", "ünï → 🙂\0 \x1b[1m\n", "x" * 3_000_000],
    ids=["empty", "line", "returns", "odd", "large"],
)
def test_an_artifact_reads_back_as_it_was_written(subject: Subject, text: str) -> None:
    run = subject.new_run()

    subject.results.upload(run, "logs/attempt-1.log", text)

    assert subject.results.download(run, "logs/attempt-1.log") == text


def test_an_artifact_replaces_what_was_there_and_nothing_else(subject: Subject) -> None:
    run, other = subject.new_run(), subject.new_run()
    for text in ("old", "new"):
        subject.results.upload(run, "logs/ein Übel.log", text)
    subject.results.upload(run, "logs/attempt-2.log", "another")

    assert subject.results.download(run, "logs/ein Übel.log") == "new"
    assert subject.results.download(run, "logs/attempt-2.log") == "another"
    assert subject.results.download(other, "logs/attempt-2.log") is None


@pytest.mark.parametrize("text", ["", "epoch 1\nünï → 🙂\n", "x" * 3_000_000], ids=["empty", "odd", "large"])
def test_a_file_becomes_an_artifact(subject: Subject, tmp_path: Path, text: str) -> None:
    run, file = subject.new_run(), tmp_path / "rank-0.log"
    for content in ("old", text):
        file.write_text(content)
        subject.results.upload_file(run, "logs/attempt-1/rank-0.log", file)

    assert subject.results.download(run, "logs/attempt-1/rank-0.log") == text


def test_a_link_to_a_file_is_not_followed(subject: Subject, tmp_path: Path) -> None:
    run, link = subject.new_run(), tmp_path / "rank-0.log"
    link.symlink_to(__file__)

    with pytest.raises(OSError, match="rank-0"):
        subject.results.upload_file(run, "logs/attempt-1/rank-0.log", link)

    assert subject.results.download(run, "logs/attempt-1/rank-0.log") is None


def test_an_artifact_that_is_not_there_is_none(subject: Subject) -> None:
    assert subject.results.download(subject.new_run(), "logs/attempt-1.log") is None


def test_half_a_surrogate_pair_in_a_log_does_not_keep_it_from_being_stored(subject: Subject) -> None:
    run = subject.new_run()

    subject.results.upload(run, "log", "before \ud83d after")

    assert subject.results.download(run, "log") == "before ? after"


# Runs that are unknown, servers that are away

CALLS: dict[str, Callable[[Results, Run], object]] = {
    "history": lambda results, run: results.history(run),
    "names": lambda results, run: results.names(run),
    "history of one": lambda results, run: results.history(run, ["train_loss"]),
    "end": lambda results, run: results.end(run, "FINISHED"),
    "upload": lambda results, run: results.upload(run, "log", "text"),
    "upload of a file": lambda results, run: results.upload_file(run, "log", Path(__file__)),
    "download": lambda results, run: results.download(run, "log"),
    "reopen": lambda results, run: results.reopen(run),
    "set_tag": lambda results, run: results.set_tag(run, "key", "value"),
    "delete": lambda results, run: results.delete(run),
}


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"history of one"}))
def test_an_unknown_run_is_refused(subject: Subject, call: str) -> None:
    with pytest.raises(Refused):
        CALLS[call](subject.results, NOWHERE)


@pytest.mark.parametrize("call", ["end", "upload", "reopen", "set_tag"])
def test_a_deleted_run_takes_an_end_or_is_refused(rest: OverRest, call: str) -> None:
    run = rest.new_run()
    rest.delete_run(run)

    try:
        CALLS[call](rest.results, run)
    except Refused as error:
        assert run.run_id in str(error)  # noqa: PT017 (either is good)


def test_a_server_that_answers_is_well(subject: Subject) -> None:
    subject.results.check()


@pytest.mark.parametrize("call", [*CALLS, "check", "ensure_run"])
def test_a_server_that_is_away_is_unavailable(subject: Subject, call: str) -> None:
    run, away = subject.new_run(), subject.unreachable()
    calls: dict[str, Callable[[], object]] = {
        "check": away.check,
        "ensure_run": lambda: away.ensure_run(job_id="j5", name="n", experiment="e"),
    }

    with pytest.raises(Unavailable, match="MLflow is not reachable"):
        calls.get(call, lambda: CALLS[call](away, run))()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_answer_that_may_change_is_unavailable(status: int) -> None:
    results = MlflowRest("http://mlflow.invalid")
    results._http = httpx.Client(
        base_url="http://mlflow.invalid", transport=httpx.MockTransport(lambda _: httpx.Response(status))
    )

    with pytest.raises(Unavailable, match=f"answered {status}"):
        results.ensure_run(job_id="j6", name="n", experiment="e")

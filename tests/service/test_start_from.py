from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.dispatcher.orders import launch_of
from service.dispatcher.run_page import run_tags
from service.jobs.job import Job, State
from service.queue.store import Store
from service.settings import Settings
from service.start_from import resolved
from tests.service.examples import make_spec
from tests.service.saved import save_checkpoints
from training.spec import SpecError, StartFrom, parse_spec


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage=str(tmp_path / "runs"))


@pytest.fixture
def ended(sqlite_store: Store, settings: Settings) -> Job:
    """A job that was cancelled after step 45, the best one being that of step 20."""
    job, _ = sqlite_store.create_job(make_spec())
    sqlite_store.set_run(job.id, "7", "run-of-it")
    save_checkpoints(Path(settings.storage) / job.id, {20: 0.25, 30: 0.75, 40: 0.5, 45: 0.5})
    assert sqlite_store.move(sqlite_store.get(job.id), State.CANCELLED)
    return sqlite_store.get(job.id)


@pytest.mark.parametrize(
    ("given", "step"),
    [({}, 45), ({"checkpoint": "best"}, 20), ({"checkpoint": 40, "state": "all"}, 40)],
)
def test_a_spec_keeps_the_job_and_the_step_that_it_means(
    sqlite_store: Store, settings: Settings, ended: Job, given: dict[str, Any], step: int
) -> None:
    for source in ({"job": ended.id}, {"run": "run-of-it"}):
        found = resolved(make_spec(start_from={**source, **given}), sqlite_store, settings).start_from

        assert found == StartFrom.model_validate({"job": ended.id, **given, "checkpoint": step})


def test_its_launch_says_where_the_checkpoints_are_and_its_run_from_which_job(
    sqlite_store: Store, settings: Settings, ended: Job
) -> None:
    spec = resolved(make_spec(start_from={"job": ended.id}), sqlite_store, settings)
    job, _ = sqlite_store.create_job(spec)
    sqlite_store.set_run(job.id, "7", "its own")
    sqlite_store.move(sqlite_store.get(job.id), State.STARTING, attempt=1, start=1, workers=1)
    job = sqlite_store.get(job.id)

    assert launch_of(job, settings, sqlite_store).order.start_from == str(
        Path(settings.storage) / ended.id / "checkpoints"
    )
    in_bucket = settings.model_copy(update={"storage": "/elsewhere", "checkpoints": "s3://bucket/runs"})
    assert launch_of(job, in_bucket, sqlite_store).order.start_from == f"s3://bucket/runs/{ended.id}"
    assert run_tags(job)["syncbn.start_from"] == f"job {ended.id}, step 45: the weights"


def test_what_nothing_can_start_from_is_refused_by_key(
    sqlite_store: Store, settings: Settings, ended: Job
) -> None:
    waiting, _ = sqlite_store.create_job(make_spec())
    whole = {"job": ended.id, "state": "all"}

    for start_from, training, key, words in (
        ({"path": "/etc/passwd"}, {}, "start_from.path", "`syncbn train`"),
        ({"job": "j" + "0" * 20}, {}, "start_from.job", "no job"),
        ({"run": "unknown"}, {}, "start_from.run", "no job has the MLflow run 'unknown'"),
        ({"job": waiting.id}, {}, "start_from.job", "is queued, and its checkpoints still change"),
        ({"job": ended.id, "checkpoint": 30}, {}, "start_from.checkpoint", "those of the steps 20, 40, 45"),
        (whole, {"max_epochs": 4}, "training.max_epochs", "has trained 4 already; give more than 4"),
        (whole, {"max_steps": 45}, "training.max_steps", "has trained 45 already; give more than 45"),
    ):
        with pytest.raises(SpecError) as refusal:
            resolved(make_spec(start_from=start_from, training=training), sqlite_store, settings)
        (problem,) = refusal.value.problems
        assert (problem.key, words in problem.message) == (key, True), problem


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "one of job, run and path says what to start from; none is given"),
        ({"job": "a", "run": "b"}, "job and run are given"),
        ({"job": "a", "state": "all", "strict": False}, "state: all needs all of them"),
        ({"job": "a", "checkpoint": "newest"}, "best"),
    ],
)
def test_a_section_that_says_too_little_or_too_much_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make_spec(start_from=given)


def test_the_whole_state_refuses_another_optimizer(
    sqlite_store: Store, settings: Settings, ended: Job
) -> None:
    given: dict[str, Any] = {
        "start_from": {"job": ended.id, "state": "all"},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-6}},
    }

    with pytest.raises(SpecError, match="start with the weights alone") as caught:
        resolved(make_spec(**given), sqlite_store, settings)

    assert [problem.key for problem in caught.value.problems] == ["optimizer"]
    given["start_from"]["state"] = "weights"
    assert resolved(make_spec(**given), sqlite_store, settings).start_from


def test_a_script_has_no_checkpoints_to_start_from(sqlite_store: Store, settings: Settings) -> None:
    job, _ = sqlite_store.create_job(parse_spec({"script": {"path": "train.py"}}))
    sqlite_store.move(sqlite_store.get(job.id), State.CANCELLED)

    with pytest.raises(SpecError, match="runs a script, which saves files of its own"):
        resolved(make_spec(start_from={"job": job.id}), sqlite_store, settings)


@pytest.mark.parametrize(
    ("norm", "fits"),
    [
        ({"kind": "batch_renorm"}, True),
        ({"kind": "keep"}, True),
        ({"kind": "group_norm"}, False),
        ({"kind": "none"}, False),
    ],
)
def test_the_whole_state_refuses_layers_with_other_weights(
    sqlite_store: Store, settings: Settings, ended: Job, norm: dict[str, str], fits: bool
) -> None:
    start = {"job": ended.id, "state": "all"}
    spec = parse_spec({**ended.spec, "norm": norm, "start_from": start, "training": {"max_epochs": 9}})
    if fits:
        assert resolved(spec, sqlite_store, settings).start_from is not None
        return
    with pytest.raises(SpecError, match=r"norm\.kind: .*strict: false"):
        resolved(spec, sqlite_store, settings)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from service.dispatcher.run_page import run_tags, spec_text
from service.jobs.job import Job, new_job, utc_now
from tests.service.examples import make_spec
from training.spec import parse_spec


def make_job(**keys: Any) -> Job:
    return new_job(make_spec(**keys), created_at=utc_now())


def test_labels_are_tags_and_the_description_has_the_spec() -> None:
    job = make_job(labels={"team": "vision", "ticket": "7"})

    tags = run_tags(job)

    assert (tags["team"], tags["ticket"]) == ("vision", "7")
    assert f"syncbn show {job.id}" in tags["mlflow.note.content"]
    assert "class_path:" in tags["mlflow.note.content"]


def test_the_source_is_in_mlflows_own_tags_and_not_in_the_spec() -> None:
    source = {"user": "ada", "commit": "c0" * 20, "dirty": False, "url": "git@example.org:team/nets.git"}
    job = make_job(source=source)

    tags = run_tags(job)

    assert {key: tags[key] for key in tags if key.startswith("mlflow.") and key != "mlflow.note.content"} == {
        "mlflow.user": "ada",
        "mlflow.source.name": job.spec["model"]["class_path"],
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": "c0" * 20,
        "mlflow.source.git.dirty": "false",
        "mlflow.source.git.repoURL": "git@example.org:team/nets.git",
    }
    assert "ada" not in spec_text(job) + tags["mlflow.note.content"]
    assert not run_tags(make_job()).keys() & {"mlflow.user", "mlflow.source.git.commit"}


def test_the_user_of_the_api_key_is_the_runs_whatever_the_source_says() -> None:
    job = replace(make_job(source={"user": "somebody"}), user="ada")

    assert run_tags(job)["mlflow.user"] == "ada"


def test_keys_that_mlflow_refuses_or_takes_for_itself_are_others() -> None:
    tags = run_tags(make_job(labels={"a,b": "1", "mlflow.runName": "2", "syncbn.job": "3", "é": "4"}))

    assert (tags["a_b"], tags["label.mlflow.runName"], tags["label.syncbn.job"], tags["é"]) == (
        *("1", "2", "3"),
        "4",
    )


def test_a_long_spec_is_cut_in_the_description_alone() -> None:
    job = make_job(labels={f"key{index}": "x" * 100 for index in range(100)})

    assert len(run_tags(job)["mlflow.note.content"]) <= 5_000
    assert "the rest is in the artifact spec.yaml" in run_tags(job)["mlflow.note.content"]
    assert parse_spec(yaml.safe_load(spec_text(job))).labels == job.labels

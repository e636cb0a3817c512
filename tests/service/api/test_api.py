from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from service import readiness
from service.api.app import create_app
from service.backends.cluster import Node
from service.backends.memory_tracking import FakeResults
from service.jobs.job import Job, Run, State
from service.queue import lease
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data, make_spec
from tests.service.live_api import find_ray
from tests.service.serving import Stage
from tests.service.user_code.test_check import make_archive
from training.protocol import Progress

UNKNOWN = "j" + "0" * 20


NODE = Node(id="a", address="10.0.0.1", cpus=4, gpus=0)
AWAY = "Ray is not reachable: the head is gone"


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


@pytest.fixture
def api(stage: Stage, sqlite_store: Store, results: FakeResults) -> Iterator[httpx.Client]:
    """With a scheduler that sees one machine."""
    find_ray(sqlite_store, nodes=[NODE])
    settings = Settings(max_code_bytes=10_000)
    with stage.showing(create_app(settings, sqlite_store, results)) as client:
        yield client


@pytest.fixture
def lonely(stage: Stage, sqlite_store: Store, results: FakeResults) -> Iterator[httpx.Client]:
    """Without a scheduler."""
    with stage.showing(create_app(Settings(), sqlite_store, results)) as client:
        yield client


@pytest.fixture
def running(sqlite_store: Store, results: FakeResults) -> Job:
    return run(sqlite_store, results)


def run(store: Store, results: FakeResults, **changes: Any) -> Job:
    job, _ = store.create_job(make_spec(**changes))
    link = results.ensure_run(job_id=job.id, name=job.name, experiment="default")
    store.set_run(job.id, link.experiment_id, link.run_id)
    store.move(store.get(job.id), State.STARTING, attempt=1, workers=1)
    store.move(store.get(job.id), State.RUNNING)
    return store.get(job.id)


def run_of(job: Job) -> Run:
    assert job.run
    return job.run


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "errors"} <= set(document)
    assert document["status"] == status
    assert document["instance"] == response.request.url.path
    return document


def keys(document: dict[str, Any]) -> list[str]:
    return [error["key"] for error in document["errors"]]


# Submitting


def test_a_spec_becomes_a_job_with_all_its_fields(api: httpx.Client) -> None:
    response = api.post("/v1/jobs", json=make_data(name="mine", labels={"team": "a"}, priority=3))

    assert response.status_code == 201
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert api.get(response.headers["location"]).json() == job
    assert job.pop("created_at").endswith("Z")
    assert job.pop("spec")["training"]["max_epochs"] == 10
    assert job == {
        "id": job["id"],
        "name": "mine",
        "state": "queued",
        "reason": "not scheduled yet",
        "priority": 3,
        "labels": {"team": "a"},
        "started_at": None,
        "finished_at": None,
        "attempt": 0,
        "workers": None,
        "wanted_workers": None,
        "error": None,
        "progress": None,
        "metrics": {},
        "mlflow": None,
        "sweep": None,
        "failures": 0,
        "last_failure": None,
        "not_before": None,
        "expected_start": None,
        "ended_by": None,
        "last_command": None,
        "removed": [],
        "user": None,
        "weights_sha256": None,
    }


@pytest.mark.parametrize(
    "content_type",
    [
        "application/yaml; charset=utf-8",
        "application/x-yaml",
        "text/yaml",
        "text/x-yaml",
        "text/plain",
        None,
    ],
)
def test_yaml_and_json_are_read_alike(api: httpx.Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    data = make_data(optimizer={"init_args": {"lr": 1e-3}})

    for text in (json.dumps(data), yaml.safe_dump(data)):
        response = api.post("/v1/jobs", content=text, headers=headers)
        assert response.json()["spec"]["optimizer"]["init_args"] == {"lr": 0.001}


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_what_is_called_json_is_read_as_json(api: httpx.Client, content_type: str) -> None:
    data = make_data(labels={"pair": "\U0001f680", "escaped": "\t/"})
    for text in (
        json.dumps(data),
        json.dumps(data, ensure_ascii=False, indent="\t"),
        "\ufeff" + json.dumps(data),
    ):
        response = api.post("/v1/jobs", content=text, headers={"content-type": content_type})
        assert response.json()["spec"]["labels"] == data["labels"]


def lr(text: str) -> str:
    return f'{{"optimizer": {{"init_args": {{"lr": {text}}}}}}}'


JSON, YAML = "application/json", "application/yaml"
TWICE = "the key '{}' occurs twice in one mapping; keep one of them"
NO_TEXT = "contains characters that are not text (NUL or half a surrogate pair)"
DEEP = "has values more than 100 levels deep"
BIG = "is a number of more than 64 bits"


@pytest.mark.parametrize(
    ("kind", "body", "key", "said"),
    [
        (JSON, '{"model": {}, "data": {}, "model": {}}', "", TWICE.format("model")),
        (JSON, '{"labels": {"a": "1", "a": "1"}}', "", TWICE.format("a")),
        (JSON, r'{"\ud800": 1, "\ud800": 1}', "", TWICE.format(r"\ud800")),
        (YAML, "name: x\nlabels:\n  a: b\n  a: c", "", TWICE.format("a") + ' in "<unicode string>", line 4'),
        (JSON, lr("NaN"), "optimizer.init_args.lr", "nan is not a number that JSON can hold"),
        (JSON, lr("[0, -Infinity]"), "optimizer.init_args.lr.1", "-inf is not a number that JSON can hold"),
        (JSON, lr("1e999"), "optimizer.init_args.lr", "inf is not a number that JSON can hold"),
        (JSON, lr(str(2**63)), "optimizer.init_args.lr", BIG),
        (JSON, lr("-" + "9" * 5000), "optimizer.init_args.lr", BIG),
        (JSON, lr("[" * 99 + "]" * 99), "optimizer", DEEP),
        (YAML, lr("[" * 99 + "]" * 99), "optimizer", DEEP),
        (JSON, "[" * 500_000, "", DEEP),
        (JSON, '{"a":' * 100_000, "", DEEP),
        (JSON, r'{"labels": {"a": "\ud83d"}}', "labels.a", NO_TEXT),
        (JSON, r'{"labels": {"a": "\u0000"}}', "labels.a", NO_TEXT),
        (JSON, r'{"labels": {"\udc00": NaN}}', "labels", rf"the key '\udc00' {NO_TEXT}"),
        (YAML, 'labels: {"\\ud800": .nan}', "labels", rf"the key '\ud800' {NO_TEXT}"),
        (
            JSON,
            b'{"name": "\xe9"}',
            "",
            "not UTF-8 text: 'utf-8' codec can't decode byte 0xe9 in position 10",
        ),
        (JSON, b'{"name": "\xed\xa0\x80"}', "", "not UTF-8 text"),
        (JSON, '{"name": "x"}'.encode("utf-16"), "", "not UTF-8 text"),
        (JSON, "", "", "not valid JSON: Expecting value: line 1 column 1"),
        (JSON, '{"name":\n"x"', "", "not valid JSON: Expecting ',' delimiter: line 2 column 4"),
        (JSON, '{"name": "x"} {}', "", "not valid JSON: Extra data: line 1 column 15"),
        (JSON, '{"name": "a\nb"}', "", "not valid JSON: Invalid control character at: line 1 column 12"),
        (JSON, "model:\n  class_path: a.b", "", "send YAML as application/yaml"),
        (JSON, "null", "", "a spec is a mapping with model and data, not NoneType"),
    ],
)
def test_a_body_that_cannot_be_kept_is_refused_by_its_key_or_line(
    api: httpx.Client, sqlite_store: Store, kind: str, body: str | bytes, key: str, said: str
) -> None:
    for path in ("/v1/jobs", "/v1/jobs/validate"):
        document = problem(api.post(path, content=body, headers={"content-type": kind}), 422)

        (error,) = document["errors"]
        assert error["key"] == key
        assert said in error["message"]
    assert sqlite_store.list_jobs()[0] == []


@pytest.mark.parametrize("values", ['"nobody_knows_{}": 1', '"labels{}": NaN'])
def test_of_a_hundred_thousand_problems_the_first_are_told(api: httpx.Client, values: str) -> None:
    body = ", ".join(values.format(number) for number in range(40_000))

    document = problem(api.post("/v1/jobs", content=f"{{{body}}}", headers={"content-type": JSON}), 422)

    assert len(document["errors"]) == 50


def test_another_content_type_is_refused(api: httpx.Client) -> None:
    document = problem(api.post("/v1/jobs", content=b"x", headers={"content-type": "text/html"}), 415)

    assert "text/html" in document["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/validate"])
@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"[1]", ""),
        (b"a: &a [*a]", ""),
        (json.dumps(make_data(training={"global_batch_size": 0})).encode(), "training.global_batch_size"),
        (json.dumps(make_data(trainig={})).encode(), "trainig"),
        (json.dumps(make_data(model={"class_path": "training.models.Nope"})).encode(), "model.class_path"),
        (json.dumps(make_data(loss={"class_path": "nope.Loss"})).encode(), "loss.class_path"),
        (json.dumps(make_data(code="0" * 64)).encode(), "code"),
        (b"optimizer: {init_args: {lr: [0, !!binary aaaa]}}", "optimizer.init_args.lr.1"),
        (b"labels: {on: x}", ""),
        (f"retries: {2**64}".encode(), "retries"),
    ],
)
def test_a_bad_spec_is_refused_by_its_key_and_changes_nothing(
    api: httpx.Client, sqlite_store: Store, path: str, body: bytes, key: str
) -> None:
    document = problem(api.post(path, content=body), 422)

    assert document["type"] == "urn:syncbn:invalid-spec"
    assert key in keys(document) or (key == "" and document["errors"])
    assert sqlite_store.list_jobs()[0] == []


def test_yaml_whose_aliases_multiply_is_refused_at_once(api: httpx.Client, sqlite_store: Store) -> None:
    levels = [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(20)]

    document = problem(api.post("/v1/jobs", content="\n".join(["a: &a [1]", *levels])), 422)
    assert "aliases" in document["detail"]
    assert sqlite_store.list_jobs()[0] == []


def test_a_spec_that_is_too_large_is_refused(api: httpx.Client, sqlite_store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**16

    for content in (b" " * (2**20 + 1), chunks()):
        document = problem(api.post("/v1/jobs", content=content), 413)
        assert "at most 1048576 bytes" in document["detail"]
    assert sqlite_store.list_jobs()[0] == []


# Idempotency


def test_a_request_sent_twice_makes_one_job(api: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k"}

    first, second = (api.post("/v1/jobs", json=make_data(), headers=headers) for _ in range(2))

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]


def test_a_key_for_another_spec_is_refused(api: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k"}
    api.post("/v1/jobs", json=make_data(), headers=headers)

    document = problem(api.post("/v1/jobs", json=make_data(name="other"), headers=headers), 422)

    assert document["type"] == "urn:syncbn:idempotency-key-reused"


def test_a_key_that_is_too_long_is_refused(api: httpx.Client) -> None:
    document = problem(api.post("/v1/jobs", json=make_data(), headers={"Idempotency-Key": "k" * 256}), 422)

    assert [key.lower() for key in keys(document)] == ["idempotency-key"]


# Validating


def test_validating_says_what_would_run_and_changes_nothing(api: httpx.Client, sqlite_store: Store) -> None:
    spec = make_data(
        resources={"workers": {"min": 1, "max": 3}, "cpus_per_worker": 0.3333},
        training={"global_batch_size": 7},
    )
    document = api.post("/v1/jobs/validate", json=spec).json()

    assert document.pop("spec")["resources"]["workers"] == {"min": 1, "max": 3}
    assert document == {
        "valid": True,
        "resources": {"workers": 3, "cpus": 0.9999, "gpus": 0.0, "memory": None},
        "shares": [3, 2, 2],
        "fits_now": True,
        "fits_ever": True,
        "reason": "",
        "expected_start": None,
        "notes": [],
    }
    assert sqlite_store.list_jobs()[0] == []


def test_validating_says_what_becomes_of_arguments_of_lightning(api: httpx.Client) -> None:
    spec = make_data(trainer={"devices": 2, "max_epochs": 3})
    spec.pop("training", None)

    document = api.post("/v1/jobs/validate", json=spec).json()

    (note,) = document["notes"]
    assert note.startswith("a global batch is 2 batches of the data's own loader")
    assert document["shares"] is None


def test_validating_says_why_a_job_would_wait(api: httpx.Client) -> None:
    spec = make_data(resources={"workers": 8})

    document = api.post("/v1/jobs/validate", json=spec).json()

    assert (document["fits_now"], document["fits_ever"]) == (False, False)
    assert document["reason"].startswith("needs 8 CPUs (8 workers of 1 CPU); the whole cluster has 4")


def test_validating_works_without_ray(api: httpx.Client, sqlite_store: Store) -> None:
    find_ray(sqlite_store, AWAY)

    document = api.post("/v1/jobs/validate", json=make_data()).json()

    assert document["valid"] is True
    assert document["fits_now"] is document["fits_ever"] is None
    assert document["reason"] == AWAY


def test_validating_works_without_a_scheduler(lonely: httpx.Client) -> None:
    document = lonely.post("/v1/jobs/validate", json=make_data()).json()

    assert document["valid"] is True
    assert document["fits_now"] is document["fits_ever"] is None
    assert "no scheduler runs" in document["reason"]
    assert "`syncbn serve --role scheduler`" in document["reason"]


def test_absurd_numbers_are_answered_too(api: httpx.Client) -> None:
    largest = make_data(
        resources={"workers": 100_000, "cpus_per_worker": 1e5}, training={"global_batch_size": 2**31}
    )
    larger = make_data(
        resources={"workers": 2**62, "cpus_per_worker": 1e308}, training={"global_batch_size": 2**62}
    )

    answered = api.post("/v1/jobs/validate", json=largest).json()
    refused = api.post("/v1/jobs/validate", json=larger)

    assert answered["fits_ever"] is False
    assert answered["resources"]["cpus"] == 1e10
    assert refused.status_code == 422
    assert {error["key"] for error in refused.json()["errors"]} == {
        "resources.workers",
        "resources.cpus_per_worker",
        "training.global_batch_size",
    }


# Looking


def test_lists_are_paged_and_filtered(api: httpx.Client) -> None:
    for name in ("one", "two", "three"):
        api.post("/v1/jobs", json=make_data(name=name, labels={"team": "a:b", "name": name}))

    def names(**query: Any) -> list[str]:
        return [job["name"] for job in api.get("/v1/jobs", params=query).raise_for_status().json()["items"]]

    first = api.get("/v1/jobs", params={"limit": 2}).json()
    rest = api.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["name"] for job in first["items"] + rest["items"]] == ["three", "two", "one"]
    assert rest["next_cursor"] is None
    assert names(name="t*") == ["three", "two"]
    assert names(name="two") == names(label=["team:a:b", "name:two"]) == ["two"]
    assert names(experiment="other", id=first["items"][0]["id"][:9]) == []
    assert names(since=rest["items"][0]["created_at"], id="j") == ["three", "two", "one"]
    assert names(state=["running", "failed"]) == []
    assert len(names(state=["running", "queued"])) == 3
    assert names(order="name") == ["one", "three", "two"]
    assert names(order="longest") == []


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("state=lost", "state.0"),
        ("order=luck", "order"),
        ("cursor=x", "cursor"),
        ("label=x", "label.0"),
        ("label=%00:a", "label.0"),
        ("name=%00", "name"),
        ("since=2h", "since"),
        ("since=2026-01-31T08:00", "since"),
    ],
)
def test_a_bad_filter_is_refused_by_name(api: httpx.Client, query: str, key: str) -> None:
    assert keys(problem(api.get(f"/v1/jobs?{query}"), 422)) == [key]


def test_a_running_job_shows_progress_metrics_and_where_to_look(
    api: httpx.Client, running: Job, results: FakeResults, sqlite_store: Store
) -> None:
    metrics = {"train_loss": math.nan, "val_loss": 0.5, "test_loss": math.inf, "norm/bn1/mean_noise": 1.0}
    progress = Progress(step=3, total_steps=9, epoch=1, eta_seconds=2.5, metrics=metrics)
    sqlite_store.write_progress([(running, progress)])

    shown = api.get(f"/v1/jobs/{running.id}").json()

    assert shown["progress"] == {"step": 3, "total_steps": 9, "epoch": 1, "eta_seconds": 2.5}
    assert shown["metrics"] == {"train_loss": None, "val_loss": 0.5, "test_loss": None}
    assert shown["mlflow"]["run_id"] == run_of(running).run_id
    assert shown["mlflow"]["url"] == results.url(run_of(running))
    assert api.get("/v1/jobs").json()["items"] == [shown]


def test_what_users_poll_asks_the_database_alone(
    api: httpx.Client, running: Job, results: FakeResults, sqlite_store: Store
) -> None:
    progress = Progress(step=3, total_steps=9, epoch=1, eta_seconds=2.5, metrics={"train_loss": 0.5})
    sqlite_store.write_progress([(running, progress)])
    paths = [f"/v1/jobs/{running.id}", "/v1/jobs", "/v1/queue", "/v1/cluster"]
    before = [api.get(path).raise_for_status().json() for path in paths]

    results.unreachable = True

    assert [api.get(path).json() for path in paths] == before
    find_ray(sqlite_store, AWAY)
    assert [api.get(path).json() for path in paths[:-1]] == before[:-1]


def test_metrics_are_every_point_by_name_and_step(
    api: httpx.Client, running: Job, results: FakeResults
) -> None:
    for name, step, value in (("b", 1, 1.0), ("a", 2, math.inf), ("a", 1, 3.0), ("system/cpu", 1, 1.0)):
        results.log(run_of(running), name, step, value)

    page = api.get(f"/v1/jobs/{running.id}/metrics").json()
    some = api.get(f"/v1/jobs/{running.id}/metrics?name=b&name=system/cpu").json()

    points = [(point["name"], point["step"], point["value"]) for point in page["items"]]
    assert points == [("a", 1, 3.0), ("a", 2, None), ("b", 1, 1.0)]
    assert [point["name"] for point in some["items"]] == ["b", "system/cpu"]


def test_a_job_without_a_run_has_no_points(api: httpx.Client, sqlite_store: Store) -> None:
    job, _ = sqlite_store.create_job(make_spec())

    assert api.get(f"/v1/jobs/{job.id}/metrics").json() == {"items": []}


def test_the_queue_is_in_scheduling_order_with_needs_and_reasons(
    api: httpx.Client, sqlite_store: Store
) -> None:
    low = sqlite_store.create_job(make_spec(name="low", resources={"workers": {"min": 2, "max": 4}}))[0]
    sqlite_store.create_job(make_spec(name="high", priority=1, resources={"gpus_per_worker": 1}))
    sqlite_store.note(low, "waits behind 1 job")

    high_shown, low_shown = api.get("/v1/queue").json()["items"]

    assert (high_shown["position"], high_shown["name"]) == (1, "high")
    assert high_shown["needs"] == {"workers": 1, "cpus": 1, "gpus": 1, "memory": None}
    assert (low_shown["position"], low_shown["id"]) == (2, low.id)
    assert low_shown["needs"] == {"workers": 2, "cpus": 2, "gpus": 0, "memory": None}
    assert low_shown["reason"] == "waits behind 1 job"


def test_the_queue_is_shown_in_pages(api: httpx.Client, sqlite_store: Store) -> None:
    ids = [sqlite_store.create_job(make_spec(priority=priority))[0].id for priority in (0, 1, 0, 2)]

    first = api.get("/v1/queue", params={"limit": 3}).json()
    second = api.get("/v1/queue", params={"limit": 3, "cursor": first["next_cursor"]}).json()

    items = [*first["items"], *second["items"]]
    assert [item["id"] for item in items] == [ids[3], ids[1], ids[0], ids[2]]
    assert [item["position"] for item in items] == [1, 2, 3, 4]
    assert (first["total"], second["total"], second["next_cursor"]) == (4, 4, None)
    assert keys(problem(api.get("/v1/queue", params={"cursor": "x"}), 422)) == ["cursor"]


def test_the_cluster_shows_what_the_running_jobs_leave(api: httpx.Client, running: Job) -> None:
    document = api.get("/v1/cluster").json()

    total, free = {"cpus": 4, "gpus": 0, "memory": 0}, {"cpus": 3, "gpus": 0, "memory": 0}
    assert document == {
        "nodes": [{"id": "a", "address": "10.0.0.1", **total, "labels": {}, "free": free}],
        "total": total,
        "free": free,
        "running": [running.id],
    }


def test_a_cluster_that_no_scheduler_sees_is_not_there(lonely: httpx.Client) -> None:
    detail = problem(lonely.get("/v1/cluster"), 503)["detail"]

    assert "no scheduler runs" in detail
    assert "`syncbn serve --role scheduler`" in detail


# Cancelling


def test_cancelling_is_idempotent_and_too_late_is_a_conflict(
    api: httpx.Client, running: Job, sqlite_store: Store
) -> None:
    waiting = api.post("/v1/jobs", json=make_data()).json()["id"]

    for _ in range(2):
        response = api.post(f"/v1/jobs/{waiting}/cancel")
        assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert api.post(f"/v1/jobs/{running.id}/cancel").json()["state"] == "running"
    sqlite_store.move(running, State.SUCCEEDED)
    document = problem(api.post(f"/v1/jobs/{running.id}/cancel"), 409)
    assert "succeeded already" in document["detail"]


# Pausing and resizing


def test_a_job_is_paused_and_resumed_and_both_may_be_asked_twice(
    api: httpx.Client, running: Job, sqlite_store: Store
) -> None:
    for _ in range(2):
        response = api.post(f"/v1/jobs/{running.id}/pause")
        assert (response.status_code, response.json()["state"]) == (202, "pausing")
    document = problem(api.post(f"/v1/jobs/{running.id}/resume"), 409)
    assert "is still pausing" in document["detail"]
    assert "resume it again once it is paused" in document["detail"]

    sqlite_store.move(sqlite_store.get(running.id), State.PAUSED, reason="paused at step 7")
    shown = api.get(f"/v1/jobs/{running.id}").json()
    assert (shown["state"], shown["reason"], shown["workers"]) == ("paused", "paused at step 7", None)
    for _ in range(2):
        response = api.post(f"/v1/jobs/{running.id}/resume")
        assert (response.status_code, response.json()["state"]) == (202, "queued")


@pytest.mark.parametrize("end", [State.PAUSED, State.SUCCEEDED, State.FAILED])
def test_a_job_that_runs_no_more_keeps_its_progress(
    api: httpx.Client, running: Job, sqlite_store: Store, end: State
) -> None:
    progress = Progress(step=7, total_steps=9, epoch=1, eta_seconds=2.0, metrics={"test_loss": 0.1})
    sqlite_store.write_progress([(running, progress)])
    if end is State.PAUSED:
        sqlite_store.request_pause(running.id)
    assert sqlite_store.move(sqlite_store.get(running.id), end)

    (item,) = api.get(f"/v1/jobs?state={end}").json()["items"]

    assert item["progress"]["step"] == 7
    assert item["metrics"] == {"test_loss": 0.1}


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_what_has_ended_or_is_being_cancelled_cannot_be_paused_or_resumed(
    api: httpx.Client, running: Job, sqlite_store: Store, action: str
) -> None:
    api.post(f"/v1/jobs/{running.id}/cancel")
    document = problem(api.post(f"/v1/jobs/{running.id}/{action}"), 409)
    assert f"is being cancelled: there is nothing to {action}" in document["detail"]

    sqlite_store.move(sqlite_store.get(running.id), State.CANCELLED)
    document = problem(api.post(f"/v1/jobs/{running.id}/{action}"), 409)
    assert f"was cancelled already: there is nothing to {action}" in document["detail"]
    problem(api.post(f"/v1/jobs/{UNKNOWN}/{action}"), 404)


def test_an_elastic_job_is_resized_within_its_range(api: httpx.Client, sqlite_store: Store) -> None:
    elastic = make_data(resources={"workers": {"min": 2, "max": 6}}, norm={"group": 2})
    job_id = api.post("/v1/jobs", json=elastic).json()["id"]

    assert api.post(f"/v1/jobs/{job_id}/resize", json={"workers": 4}).status_code == 202
    assert sqlite_store.get(job_id).wanted_workers == 4

    for workers, said in ((1, "2 to 6"), (8, "2 to 6"), (3, "groups of 2")):
        document = problem(api.post(f"/v1/jobs/{job_id}/resize", json={"workers": workers}), 422)
        assert keys(document) == ["workers"]
        assert said in document["errors"][0]["message"]
    assert sqlite_store.get(job_id).wanted_workers == 4


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({}, "workers"),
        ({"workers": 0}, "workers"),
        ({"workers": "2"}, "workers"),
        ({"workers": 2, "more": 1}, "more"),
        ([], ""),
    ],
)
def test_a_bad_resize_is_refused_by_its_key(api: httpx.Client, running: Job, body: object, key: str) -> None:
    assert keys(problem(api.post(f"/v1/jobs/{running.id}/resize", json=body), 422)) == [key]


def test_only_a_job_that_is_elastic_and_goes_on_can_be_resized(
    api: httpx.Client, running: Job, sqlite_store: Store
) -> None:
    document = problem(api.post(f"/v1/jobs/{running.id}/resize", json={"workers": 1}), 422)
    assert "{min: ..., max: ...}" in document["errors"][0]["message"]

    elastic = make_data(resources={"workers": {"min": 1, "max": 4}})
    job_id = api.post("/v1/jobs", json=elastic).json()["id"]
    sqlite_store.request_cancel(job_id)
    document = problem(api.post(f"/v1/jobs/{job_id}/resize", json={"workers": 2}), 409)
    assert "was cancelled already" in document["detail"]


# Code


def test_uploaded_code_has_a_digest_that_a_spec_may_name(api: httpx.Client) -> None:
    archive = make_archive({"mine/nets.py": b"class Net: ..."})

    first = api.post("/v1/code", content=archive, headers={"content-type": "application/zip"})
    again = api.post("/v1/code", content=archive)

    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() == {"digest": first.json()["digest"], "size": len(archive)}
    spec = make_data(model={"class_path": "mine.nets.Net"}, code=first.json()["digest"])
    assert api.post("/v1/jobs", json=spec).status_code == 201
    spec["model"] = {"class_path": "mine.nets.Nett"}
    document = problem(api.post("/v1/jobs", json=spec), 422)
    assert document["errors"] == [
        {"key": "model.class_path", "message": "module mine.nets has no 'Nett'; did you mean Net?"}
    ]


def test_a_bad_archive_is_refused_by_its_entry(api: httpx.Client) -> None:
    document = problem(api.post("/v1/code", content=make_archive({"../x.py": b""})), 422)

    assert keys(document) == ["code:../x.py"]
    problem(api.post("/v1/code", content=b"x", headers={"content-type": "text/plain"}), 415)


def test_an_archive_that_is_too_large_is_refused_packed_or_unpacked(api: httpx.Client) -> None:
    problem(api.post("/v1/code", content=b"x" * 10_001), 413)
    document = problem(api.post("/v1/code", content=make_archive({"a": b"0" * 10_001})), 422)
    assert "larger than 10000 bytes when unpacked" in document["errors"][0]["message"]


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/nope", 404),
        ("GET", "/v1/jobs/", 404),
        ("GET", f"/v1/jobs/{UNKNOWN}", 404),
        ("GET", "/v1/jobs/%00", 404),
        ("POST", f"/v1/jobs/{UNKNOWN}/cancel", 404),
        ("GET", f"/v1/jobs/{UNKNOWN}/logs", 404),
        ("GET", f"/v1/jobs/{UNKNOWN}/logs?follow=true", 404),
        ("GET", f"/v1/jobs/{UNKNOWN}/metrics", 404),
        ("PATCH", f"/v1/jobs/{UNKNOWN}", 405),
    ],
)
def test_every_error_is_a_problem_document(api: httpx.Client, method: str, path: str, status: int) -> None:
    response = api.request(method, path)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"]


def test_a_wrong_method_is_answered_with_all_the_right_ones(api: httpx.Client) -> None:
    response = api.put("/v1/jobs")

    problem(response, 405)
    assert response.headers["allow"] == "GET, POST"


def test_a_bug_of_ours_is_a_problem_document_without_details(
    api: httpx.Client, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Job]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(sqlite_store, "active", broken)

    assert "secret" not in json.dumps(problem(api.get("/v1/cluster"), 500))


def test_a_server_that_is_away_is_named_with_when_to_try_again(
    api: httpx.Client, running: Job, sqlite_store: Store, results: FakeResults
) -> None:
    find_ray(sqlite_store, AWAY)
    results.unreachable = True

    for path, name in (("/v1/cluster", "Ray"), (f"/v1/jobs/{running.id}/metrics", "MLflow")):
        response = api.get(path)
        assert name in problem(response, 503)["detail"]
        assert int(response.headers["retry-after"]) > 0


def test_a_database_that_is_away_is_named(stage: Stage, results: FakeResults) -> None:
    store = Store("sqlite:////nowhere/at/all/jobs.db")
    with stage.showing(create_app(Settings(), store, results)) as api:
        assert "the database" in problem(api.get("/v1/jobs"), 503)["detail"]
        assert "the database" in problem(api.post("/v1/jobs", json=make_data()), 503)["detail"]
        assert api.get("/healthz").status_code == 200
        ready = problem(api.get("/readyz"), 503)
        assert ready["checks"]["database"]["state"] == "unavailable"
        assert ready["detail"].count("the database") == 1


# Health


def test_readiness_names_each_server_and_its_state(
    api: httpx.Client, sqlite_store: Store, results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "DEADLINE_SECONDS", 60.0)  # for a slow machine
    assert api.get("/readyz").json() == {
        "status": "ok",
        "checks": {
            name: {"state": "ok", "message": ""}
            for name in ("database", "scheduler", "ray", "mlflow", "storage")
        },
    }

    find_ray(sqlite_store, AWAY)
    results.unreachable = True

    checks = problem(api.get("/readyz"), 503)["checks"]
    assert {name: check["state"] for name, check in checks.items()} == {
        "database": "ok",
        "scheduler": "ok",
        "ray": "unavailable",
        "mlflow": "unavailable",
        "storage": "ok",
    }
    assert checks["ray"]["message"] == AWAY
    assert api.get("/healthz").json() == {"status": "ok"}


def test_readiness_says_for_how_long_the_scheduler_has_not_been_heard_of(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_SECONDS", -1)

    document = problem(api.get("/readyz"), 503)

    for name in ("scheduler", "ray"):
        assert document["checks"][name]["state"] == "unavailable"
    said = document["checks"]["scheduler"]["message"]
    assert re.search(r"no scheduler runs, the last one has not been heard from for \d+ s", said)
    assert document["detail"] == said


# The document of the interface


def test_the_openapi_document_describes_specs_and_problems(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()

    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/yaml"}
    assert body["application/yaml"]["schema"] == {"$ref": "#/components/schemas/Spec"}
    schemas = document["components"]["schemas"]
    assert "global_batch_size" in schemas["Training"]["properties"]
    assert "HTTPValidationError" not in schemas
    references = {part.partition('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            assert not path.startswith("/v1") or {"401", "403", "422"} <= statuses
    assert api.get("/docs").status_code == 200


def test_the_example_in_the_document_is_a_valid_spec(api: httpx.Client) -> None:
    content = api.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]

    response = api.post("/v1/jobs/validate", json=content["application/json"]["example"])

    assert response.json()["valid"] is True

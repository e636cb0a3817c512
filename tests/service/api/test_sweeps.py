"""Routes under /v1/sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.jobs.job import State
from service.queue.store import Store
from service.settings import Settings
from tests.service.api.test_api import problem
from tests.service.examples import make_data
from tests.service.serving import Stage
from training.protocol import Progress

LR = "optimizer.init_args.lr"


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


@pytest.fixture
def api(stage: Stage, sqlite_store: Store, results: FakeResults) -> Iterator[httpx.Client]:
    with stage.showing(create_app(Settings(), sqlite_store, results)) as client:
        yield client


def body(spec: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"spec": make_data(**(spec or {})), "grid": {LR: [0.1, 0.01]}, "max_running": 1, **changes}


def create(api: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = api.post("/v1/sweeps", json=body(**changes))
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


def test_a_sweep_is_a_job_for_each_point(api: httpx.Client) -> None:
    response = api.post("/v1/sweeps", json=body(repeat=2, name="mine"))

    sweep = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/sweeps/{sweep['id']}"
    assert api.get(response.headers["location"]).json() == sweep
    summary = {
        key: sweep[key] for key in ("name", "state", "reason", "jobs", "counts", "max_running", "keys")
    }
    assert summary == {
        "name": "mine",
        "state": "running",
        "reason": "",
        "jobs": 4,
        "counts": {"queued": 4},
        "max_running": 1,
        "keys": [LR, "training.seed"],
    }
    assert sweep["plan"] == {"grid": {LR: [0.1, 0.01]}, "random": None, "repeat": 2, "max_running": 1}
    last = sweep["points"][3]
    assert last["values"] == {LR: 0.01, "training.seed": 1}
    job = api.get(f"/v1/jobs/{last['job']}").json()
    assert (job["sweep"], job["name"], last["name"]) == (sweep["id"], "mine-4", "mine-4")
    assert job["spec"]["optimizer"]["init_args"] == {"lr": 0.01}
    jobs = api.get("/v1/jobs", params={"sweep": sweep["id"]}).json()["items"]
    assert [each["id"] for each in jobs] == [point["job"] for point in reversed(sweep["points"])]
    alone = api.post("/v1/jobs", json=make_data()).json()
    assert alone["sweep"] is None
    listed = api.get("/v1/sweeps").json()
    assert listed == {
        "items": [{key: sweep[key] for key in listed["items"][0]}],
        "next_cursor": None,
    }


def test_a_sweep_may_be_yaml(api: httpx.Client) -> None:
    text = """
spec: {model: {class_path: training.models.MLP}, data: {class_path: training.data.Digits}}
random: {count: 3, seed: 1, space: {optimizer.init_args.lr: {min: 1e-4, max: 1e-1, log: true}}}
"""
    sweep = api.post("/v1/sweeps", content=text, headers={"Content-Type": "application/yaml"}).json()

    assert sweep["name"] == "MLP"
    assert all(1e-4 <= point["values"][LR] <= 1e-1 for point in sweep["points"])
    assert sweep["plan"]["random"]["space"] == {LR: {"min": 1e-4, "max": 1e-1, "log": True}}


def test_a_repeated_key_gives_the_sweep_of_the_first_request(api: httpx.Client) -> None:
    first = api.post("/v1/sweeps", json=body(), headers={"Idempotency-Key": "k"})
    again = api.post("/v1/sweeps", json=body(), headers={"Idempotency-Key": "k"})

    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.get("/v1/jobs").json()["items"]) == 2
    other = api.post("/v1/sweeps", json=body(repeat=2), headers={"Idempotency-Key": "k"})
    assert "another one" in problem(other, 422)["detail"]


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        (
            {"grid": {"training.max_epochs": [1, -2]}},
            "training.max_epochs",
            "(point 2: training.max_epochs=-2)",
        ),
        (
            {"grid": {"model.class_path": ["training.models.MLP", "training.models.Nothing"]}},
            "model.class_path",
            "(point 2: model.class_path=training.models.Nothing)",
        ),
        (
            {"spec": {"environment": {"secrets": ["TOKEN"]}}},
            "environment.secrets",
            "syncbn secrets set TOKEN",
        ),
        ({"spec": {"start_from": {"job": "j" + "0" * 20}}}, "start_from.job", "no job"),
        ({"grids": {}}, "grids", "did you mean grid?"),
        ({"grid": {}}, "", "give grid, random or repeat"),
        ({"grid": {"a": []}}, "grid.a", "at least 1 item"),
        ({"random": {"count": 2, "space": {"a": {"min": 0}}}}, "random.space.a.max", "is required"),
        ({"grid": {"a": list(range(1001))}}, "grid.a", "at most 1000 items"),
        ({"grid": {"a": list(range(501)), "b": [1, 2]}}, "", "at most 1,000"),
        ({"spec": {"code": "0" * 64}}, "code", "upload it first"),
        ({"spec": {"sweep": {}}}, "sweep", "syncbn sweep"),
        ({"name": "x" * 191}, "name", "at most 190 characters"),
    ],
)
def test_what_cannot_run_is_refused_and_stores_nothing(
    api: httpx.Client, changes: dict[str, Any], key: str, message: str
) -> None:
    answers = [api.post(path, json=body(**changes)) for path in ("/v1/sweeps", "/v1/sweeps/validate")]

    for answer in answers:
        (error,) = problem(answer, 422)["errors"]
        assert error["key"] == key
        assert message in error["message"]
    assert api.get("/v1/jobs").json()["items"] == api.get("/v1/sweeps").json()["items"] == []


def test_a_valid_sweep_shows_its_points_and_queues_nothing(api: httpx.Client) -> None:
    answer = api.post("/v1/sweeps/validate", json=body()).json()

    assert answer["points"][1] == {"number": 2, "values": {LR: 0.01}, "name": "ConvNet-2"}
    assert answer["notes"] == []
    assert api.get("/v1/jobs").json()["items"] == []


def test_points_show_what_their_jobs_have_reached(
    api: httpx.Client, sqlite_store: Store, results: FakeResults
) -> None:
    sweep = create(api, repeat=2)
    results.unreachable = True  # nothing of this needs MLflow
    first, second, *_ = (sqlite_store.get(point["job"]) for point in sweep["points"])
    metrics = {"val_loss": 0.5, "train_loss": float("nan"), "learning_rate": 0.1, "norm/a": 1.0}
    for job, to in ((first, State.FAILED), (second, State.SUCCEEDED)):
        sqlite_store.move(job, State.STARTING, attempt=1, workers=1)
        progress = Progress(step=7, total_steps=9, epoch=1, eta_seconds=2.0, metrics=metrics)
        sqlite_store.move(sqlite_store.get(job.id), State.RUNNING, progress=progress)
        sqlite_store.move(sqlite_store.get(job.id), to, reason="because")

    found = api.get(f"/v1/sweeps/{sweep['id']}").json()

    assert found["counts"] == {"queued": 2, "succeeded": 1, "failed": 1}
    assert found["reason"] == "1 failed of 4 jobs"
    assert (found["state"], found["finished_at"]) == ("running", None)
    point = found["points"][0]
    assert (point["state"], point["reason"]) == ("failed", "because")
    assert point["progress"] == {"step": 7, "total_steps": 9, "epoch": 1, "eta_seconds": 2.0}
    assert point["metrics"] == {"val_loss": 0.5, "train_loss": None}


def test_a_sweep_is_paused_resumed_and_cancelled_as_one(api: httpx.Client) -> None:
    path = f"/v1/sweeps/{create(api)['id']}"

    assert api.post(f"{path}/pause").json()["state"] == "paused"
    assert api.post(f"{path}/resume").json()["state"] == "running"
    cancelled = api.post(f"{path}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json()["state"] == "cancelled"
    assert cancelled.json()["finished_at"] is not None
    assert "was cancelled already" in problem(api.post(f"{path}/pause"), 409)["detail"]
    unknown = problem(api.post(f"/v1/sweeps/s{'0' * 20}/cancel"), 404)
    assert "no sweep" in unknown["detail"]


def test_a_report_is_stored_with_the_run_of_the_sweep(
    api: httpx.Client, sqlite_store: Store, results: FakeResults
) -> None:
    sweep = create(api)
    path = f"/v1/sweeps/{sweep['id']}/report/report.html"
    text = {"Content-Type": "text/html"}
    assert "has no run" in problem(api.put(path, content="<p>ä", headers=text), 409)["detail"]
    run = results.ensure_run(job_id=sweep["id"], name="mine", experiment="default")
    sqlite_store.set_sweep_run(sweep["id"], run.experiment_id, run.run_id)

    assert api.put(path, content="<p>ä", headers=text).status_code == 204

    assert results.artifacts[run.run_id] == {"report.html": "<p>ä"}
    assert api.get(f"/v1/sweeps/{sweep['id']}").json()["mlflow"]["run_id"] == run.run_id
    problem(api.put(path.replace("report.html", "other"), content="", headers=text), 422)
    problem(api.put(path, content=b"\xff", headers=text), 422)


def test_a_list_of_the_jobs_of_an_unknown_sweep_names_a_similar_one(api: httpx.Client) -> None:
    sweep = create(api)["id"]
    wrong = f"{sweep[:-1]}{'0' if sweep[-1] != '0' else '1'}"

    unknown = problem(api.get("/v1/jobs", params={"sweep": wrong}), 404)
    shortened = problem(api.get("/v1/jobs", params={"sweep": "s1"}), 404)
    none = api.get("/v1/jobs", params={"sweep": sweep, "state": "succeeded"})

    assert unknown["detail"] == f"no sweep {wrong!r}; did you mean {sweep}?"
    assert "ids look like" in shortened["detail"]
    assert (none.status_code, none.json()["items"]) == (200, [])

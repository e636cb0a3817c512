"""Routes that retry, reprioritise, delete and clean up; and the names of those who ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
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
from training.protocol import Failure, log_file

FAILURE = Failure(kind="signal", type="SIGKILL", code=None, step=3)


@pytest.fixture
def api(stage: Stage, sqlite_store: Store, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = Settings(storage=str(tmp_path / "runs"), retention_logs_days=0, retention_code_days=0)
    with stage.showing(create_app(settings, sqlite_store, FakeResults())) as client:
        yield client


def submit(api: httpx.Client, **changes: Any) -> str:
    response = api.post("/v1/jobs", json=make_data(**changes))
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def failed(store: Store, job_id: str) -> str:
    assert store.move(store.get(job_id), State.STARTING, attempt=1, workers=1)
    changes: Any = {"last_failure": FAILURE, "failures": 2, "failures_in_row": 2, "ended_by": "scheduler"}
    assert store.move(store.get(job_id), State.FAILED, error={"kind": "infrastructure"}, **changes)
    assert store.mark_archived(store.get(job_id))
    return job_id


def test_a_job_says_of_which_class_its_failures_are_and_who_ended_it(
    api: httpx.Client, sqlite_store: Store
) -> None:
    job_id = failed(sqlite_store, submit(api))

    job = api.get(f"/v1/jobs/{job_id}").json()

    assert job["last_failure"] == {"kind": "infrastructure", "type": "SIGKILL", "step": 3, "in_row": 2}
    assert (job["ended_by"], job["failures"], job["error"]) == ("scheduler", 2, {"kind": "infrastructure"})
    assert (job["last_command"], job["not_before"], job["removed"]) == (None, None, [])


def test_a_command_carries_the_name_of_who_gives_it(api: httpx.Client) -> None:
    job_id = submit(api)

    job = api.post(f"/v1/jobs/{job_id}/cancel", headers={"Syncbn-User": "ad%C3%A9"}).json()

    assert (job["ended_by"], job["last_command"]["command"], job["last_command"]["by"]) == (
        "adé",
        "cancel",
        "adé",
    )
    other = api.post(f"/v1/jobs/{submit(api)}/pause", headers={"Syncbn-User": "a%00b"}).json()
    assert (other["ended_by"], other["last_command"]["by"]) == (None, "")


@pytest.mark.parametrize("name", ["job", "scheduler", "time%20limit"])
def test_no_user_passes_for_what_ends_jobs_by_itself(api: httpx.Client, name: str) -> None:
    ended = api.post(f"/v1/jobs/{submit(api)}/cancel", headers={"Syncbn-User": name}).json()

    assert (ended["ended_by"], ended["state"]) == ("", "cancelled")


def test_a_failed_job_is_retried(api: httpx.Client, sqlite_store: Store) -> None:
    job_id = failed(sqlite_store, submit(api))

    bodies: list[dict[str, Any]] = [{}, {"json": {}}, {"json": {"from_scratch": False}}]
    for body in bodies:
        response = api.post(f"/v1/jobs/{job_id}/retry", **body)
        assert (response.status_code, response.json()["state"]) == (202, "queued")
    assert sqlite_store.get(job_id).from_scratch is False


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("retry", {"from_scratch": "yes"}, "from_scratch"),
        ("retry", {"scratch": True}, "scratch"),
        ("priority", {}, "priority"),
        ("priority", {"priority": 1001}, "priority"),
        ("priority", {"priority": "1"}, "priority"),
    ],
)
def test_a_body_that_is_not_valid_names_the_key(
    api: httpx.Client, path: str, body: dict[str, Any], key: str
) -> None:
    refused = problem(api.post(f"/v1/jobs/{submit(api)}/{path}", json=body), 422)

    assert [error["key"] for error in refused["errors"]] == [key]


def test_the_priority_of_a_job_is_changed(api: httpx.Client) -> None:
    first, second = submit(api), submit(api)

    response = api.post(f"/v1/jobs/{second}/priority", json={"priority": 5})

    assert (response.status_code, response.json()["priority"]) == (202, 5)
    assert [job["id"] for job in api.get("/v1/queue").json()["items"]] == [second, first]


def test_an_ended_job_is_deleted_and_another_is_not(api: httpx.Client, sqlite_store: Store) -> None:
    waiting, ended = submit(api), failed(sqlite_store, submit(api))

    refused = problem(api.delete(f"/v1/jobs/{waiting}"), 409)
    assert "syncbn cancel" in refused["detail"]
    assert api.delete(f"/v1/jobs/{ended}", params={"with_run": True}).status_code == 204
    assert api.delete(f"/v1/jobs/{ended}").status_code == 204
    problem(api.get(f"/v1/jobs/{ended}"), 404)
    problem(api.get(f"/v1/jobs/{ended}/logs"), 404)
    problem(api.post(f"/v1/jobs/{ended}/retry"), 404)
    assert [job["id"] for job in api.get("/v1/jobs").json()["items"]] == [waiting]
    problem(api.delete("/v1/jobs/nothing"), 404)


def test_a_sweep_shows_its_deleted_jobs_as_deleted(api: httpx.Client, sqlite_store: Store) -> None:
    body = {"spec": make_data(), "grid": {"training.seed": [1, 2]}, "name": "seeds"}
    sweep = api.post("/v1/sweeps", json=body).json()
    first = sweep["points"][0]["job"]
    failed(sqlite_store, first)

    api.delete(f"/v1/jobs/{first}")

    for _ in range(2):
        now = api.get(f"/v1/sweeps/{sweep['id']}").json()
        assert (now["jobs"], now["counts"]) == (2, {"queued": 1, "deleted": 1})
        assert [(point["state"], point["values"]) for point in now["points"]] == [
            ("deleted", {"training.seed": 1}),
            ("queued", {"training.seed": 2}),
        ]
        assert (now["reason"], now["points"][0]["job"]) == ("1 deleted of 2 jobs", "")
        sqlite_store.remove_job(first)


def test_a_cleanup_lists_what_would_go_and_then_removes_it(
    api: httpx.Client, sqlite_store: Store, tmp_path: Path
) -> None:
    sqlite_store.put_code(b"old")
    jobs = [failed(sqlite_store, submit(api)) for _ in range(25)]
    for job_id in jobs:
        log = log_file(tmp_path / "runs" / job_id, 1, 0)
        log.parent.mkdir(parents=True)
        log.write_text("hello\n")

    for method in ("GET", "POST", "GET"):
        page, items, freed = api.request(method, "/v1/cleanup").json(), list[Any](), 0
        while True:
            items, freed = items + page["items"], freed + page["bytes"]
            if page["next_cursor"] is None:
                break
            page = api.request(method, "/v1/cleanup", params={"cursor": page["next_cursor"]}).json()
        gone = [(item["what"], item["job"], item["bytes"]) for item in items]
        if method == "GET" and not log.exists():
            assert gone == []
        else:
            assert gone == [*(("logs", job_id, 6) for job_id in jobs), ("code", None, 3)]
            assert freed == 25 * 6 + 3
    assert page["policy"] == {
        "other_checkpoints": None,
        "checkpoints": None,
        "logs": 0,
        "spools": None,
        "code": 0,
    }
    assert api.get(f"/v1/jobs/{jobs[0]}").json()["removed"] == ["logs"]
    assert "a copy among its artifacts" in problem(api.get(f"/v1/jobs/{jobs[0]}/logs"), 404)["detail"]


@pytest.mark.parametrize("cursor", ["", "x", "MA", "OTk", "M3x4fHk", "NHwyMDI2LTAxLTAxfGp4"])
def test_a_cursor_of_a_cleanup_that_is_none_is_refused(api: httpx.Client, cursor: str) -> None:
    refused = problem(api.get("/v1/cleanup", params={"cursor": cursor}), 422)

    assert [error["key"] for error in refused["errors"]] == ["cursor"]

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update

from service.client import Client
from service.jobs.job import State
from service.queue import database
from service.queue.tables import job_events, jobs
from tests.service.cli.command_line import FAILURE, Syncbn
from tests.service.live_api import SPEC, Service


def test_list_shows_the_newest_jobs_and_says_when_there_are_more(syncbn: Syncbn, client: Client) -> None:
    ids = [client.submit({**SPEC, "name": f"job [{i}]"}).id for i in range(3)]

    shown = syncbn("list", "--limit", "2").stdout
    assert [ids[2] in shown, ids[1] in shown, ids[0] in shown] == [True, True, False]
    assert "job [2]" in shown
    assert "list more with --all" in shown
    assert ids[0] in syncbn("list", "--all").stdout


def test_list_json_is_an_array_chosen_by_the_options(syncbn: Syncbn, client: Client) -> None:
    client.submit(SPEC)
    labelled = client.submit({**SPEC, "labels": {"team": "vision"}})

    result = syncbn("list", "--label", "team=vision", "--state", "queued", "--state", "running", "--json")

    assert [job["id"] for job in json.loads(result.stdout)] == [labelled.id]


def test_list_begins_with_what_took_longest(syncbn: Syncbn, service: Service, client: Client) -> None:
    lengths = {"short": 1, "longest": 7200, "long": 61}
    for name, seconds in lengths.items():
        job = client.submit({**SPEC, "name": name})
        service.start_job(job.id)
        started = service.store.get(job.id).started_at
        assert started is not None
        end = started + timedelta(seconds=seconds)
        assert service.store.move(service.store.get(job.id), State.SUCCEEDED, finished_at=end)
    client.submit({**SPEC, "name": "waits"})

    listed = json.loads(syncbn("list", "--order", "longest", "--json").stdout)
    unknown = syncbn("list", "--order", "slowest")

    assert [job["name"] for job in listed] == ["longest", "long", "short"]
    assert "only the first 2" in syncbn("list", "--order", "longest", "--limit", "2").stdout
    assert (unknown.exit_code, "'longest'" in unknown.stderr) == (2, True)


def test_an_empty_list_says_so(syncbn: Syncbn) -> None:
    assert syncbn("list").stdout == "no jobs\n"
    assert json.loads(syncbn("list", "--json").stdout) == []


def test_list_refuses_an_unknown_state_and_a_label_without_value(syncbn: Syncbn) -> None:
    unknown, label = syncbn("list", "--state", "sleeping"), syncbn("list", "--label", "team")

    assert (unknown.exit_code, label.exit_code) == (2, 2)
    assert "queued" in unknown.stderr
    assert "KEY=VALUE" in label.stderr


def test_a_name_cannot_steer_the_terminal(syncbn: Syncbn, client: Client) -> None:
    client.submit({**SPEC, "name": "evil\x1b[2Jname"})

    assert "\x1b" not in syncbn("list").stdout


def test_show_tells_all_about_a_running_job(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit({**SPEC, "labels": {"team": "vision"}})
    service.train(service.start_job(job.id), 3)

    shown = syncbn("show", job.id).stdout

    for text in (job.id, "running", "step 3/4", "1 s left", "val_accuracy 0.75", "team=vision", "runs/run-1"):
        assert text in shown
    assert json.loads(syncbn("show", job.id, "--json").stdout)["progress"]["step"] == 3


def test_show_has_all_that_wait_prints_and_start_up_apart_from_training(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    run = service.start_job(job.id)
    service.train(run, 4)
    service.end_job(job.id, State.SUCCEEDED)
    begin = job.created_at
    for state, seconds in (("queued", 0), ("starting", 185), ("running", 187), ("succeeded", 7_687)):
        at = begin + timedelta(seconds=seconds)
        change = (
            update(job_events).where(job_events.c.job_id == job.id, job_events.c.state == state).values(at=at)
        )
        with database.writing(service.store._engine) as connection:
            connection.execute(change)
            if state == "succeeded":
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(finished_at=at))

    shown, waited = syncbn("show", job.id).stdout, syncbn("wait", job.id).stdout

    assert "waited 3m5s, start-up 2s, training 2h5m" in shown
    assert f'mlflow.pytorch.load_model("runs:/{run.run_id}/model")' in shown
    facts = [word for line in waited.splitlines()[1:] for word in line.split()]
    assert [word for word in facts if word not in shown] == []
    assert "start-up" not in syncbn("show", client.submit(SPEC).id).stdout


def test_show_has_the_whole_sha256_of_the_weights_in_one_line(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job, digest = client.submit(SPEC), "0123456789abcdef" * 4
    service.start_job(job.id)
    assert "weights" not in syncbn("show", job.id).stdout

    service.end_job(job.id, State.SUCCEEDED, weights_sha256=digest)

    assert ["weights", digest] in [line.split() for line in syncbn("show", job.id).stdout.splitlines()]
    assert client.job(job.id).weights_sha256 == digest


def test_show_has_the_whole_reason(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    long = "needs a node with the label zone=a, " * 50
    service.store.note_all([(service.store.get(job.id), f"{long}\nand another\x1b[2J line")])

    shown = syncbn("show", job.id).stdout

    assert long.strip() in shown
    assert "and another" in shown
    assert "\x1b" not in shown


def test_show_tells_why_a_job_failed(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.end_job(job.id, State.FAILED, FAILURE)

    shown = syncbn("show", job.id).stdout

    assert "ValueError: bad shape (rank 1)" in shown
    assert "│ Traceback" in shown


def test_show_says_why_a_job_is_not_retried_and_passes_no_escape_sequence_on(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    message = "\x1b]0;mine\x07bad \x1b[31mshape\x1b[0m\u202e"
    why = "It failed twice at step 4: no retry."
    reason = f"rank 1 failed at step 4: ValueError: {message}\n{why}\n\nlast lines of the log:\nhere"
    failure = FAILURE | {"message": message}
    assert service.store.move(service.store.get(job.id), State.FAILED, error=failure, reason=reason)

    shown = syncbn("show", job.id).stdout

    assert "ValueError: bad shape  (rank 1)" in shown
    assert f"  {why}\n" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "[31m" not in shown


def test_wait_exits_as_the_job_ended(syncbn: Syncbn, client: Client, playing: Callable[..., None]) -> None:
    ended = {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 3}
    jobs = {state: client.submit(SPEC).id for state in ended}
    for state, job_id in jobs.items():
        playing(job_id, state, FAILURE if state is State.FAILED else None)

    results = {state: syncbn("wait", job_id) for state, job_id in jobs.items()}

    assert {state: result.exit_code for state, result in results.items()} == ended
    assert "test_accuracy  0.97" in results[State.SUCCEEDED].stdout
    assert "ValueError: bad shape (rank 1)" in results[State.FAILED].stdout
    assert json.loads(syncbn("wait", jobs[State.FAILED], "--json").stdout)["state"] == "failed"


def test_wait_that_runs_out_of_time_exits_124(syncbn: Syncbn, client: Client) -> None:
    result = syncbn("wait", client.submit(SPEC).id, "--timeout", "0.1")

    assert (result.exit_code, result.stdout) == (124, "")
    assert "still queued after 0.1 s" in result.stderr

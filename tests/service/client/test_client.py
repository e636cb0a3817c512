from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from service.client import (
    Client,
    Job,
    NotFound,
    RequestError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
    pages,
)
from service.client.sse import Event, events
from service.jobs.job import State
from service.user_code.pack import pack
from tests.service.live_api import SPEC, FaultyApp, Later, LiveServer, Service, live_service

# Submitting


def test_a_submitted_job_comes_back_queued_with_its_spec(client: Client) -> None:
    job = client.submit({**SPEC, "priority": 7, "labels": {"team": "vision"}})

    assert (job.name, job.state, job.ended, job.priority) == ("digits", "queued", False, 7)
    assert job.labels == {"team": "vision"}
    assert job.spec["training"]["max_epochs"] == 10
    assert job.seconds is None
    assert client.job(job.id) == job


def test_a_spec_may_be_yaml_text(client: Client) -> None:
    text = "model: {class_path: training.models.MLP}\ndata: {class_path: training.data.Digits}\n"

    assert client.submit(text).name == "MLP"


def test_text_beyond_the_basic_plane_survives_the_way(client: Client) -> None:
    assert client.submit({**SPEC, "name": "größe 🚀"}).name == "größe 🚀"


def test_a_submission_whose_answer_is_lost_is_retried_and_queued_once(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.transport._RETRY_SECONDS", 60.0)
    service.faults.lose_answers = 2

    job = client.submit(SPEC)

    assert [other.id for other in client.jobs()] == [job.id]
    posts = [headers["idempotency-key"] for method, _, headers in service.requests if method == "POST"]
    assert len(posts) == 3
    assert len(set(posts)) == 1


def test_two_submissions_are_two_jobs_unless_the_caller_gives_one_key(client: Client) -> None:
    first, second = client.submit(SPEC), client.submit(SPEC)
    again = [client.submit(SPEC, idempotency_key="mine").id for _ in range(2)]

    assert first.id != second.id
    assert again[0] == again[1]


def test_a_proxy_without_its_server_is_asked_again(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.transport._RETRY_SECONDS", 60.0)
    service.faults.refuse_with = [502, 503]

    assert client.submit(SPEC).state == "queued"


def test_a_refused_spec_names_each_offending_key(client: Client) -> None:
    with pytest.raises(RequestError) as refused:
        client.submit({**SPEC, "trainin": {}, "priority": "high"})

    assert refused.value.status == 422
    keys = {error.key: error.message for error in refused.value.errors}
    assert set(keys) == {"trainin", "priority"}
    assert "did you mean training" in keys["trainin"]
    assert "trainin" in str(refused.value)


def test_validate_says_what_would_run_and_queues_nothing(client: Client) -> None:
    spec = {**SPEC, "training": {"global_batch_size": 7}, "resources": {"workers": 3}}

    answer = client.validate(spec)

    assert answer.valid
    assert answer.shares == [3, 2, 2]
    assert answer.fits_now
    assert list(client.jobs()) == []


def test_uploaded_code_is_known_by_its_digest(client: Client, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "my_models.py").write_text("class Net: ...\n")

    digest = client.upload_code(pack(code))

    assert client.upload_code(pack(code)) == digest
    spec = {**SPEC, "model": {"class_path": "my_models.Net"}, "code": digest}
    assert client.submit(spec).spec["code"] == digest


# Reading


def test_jobs_come_newest_first_over_all_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.pages._SIZE", 2)
    ids = [client.submit(SPEC).id for _ in range(5)]

    assert [job.id for job in client.jobs()] == ids[::-1]
    assert [job.id for job in client.jobs(limit=3)] == ids[:1:-1]


def test_jobs_can_be_chosen_by_state_name_and_label(client: Client) -> None:
    plain = client.submit(SPEC)
    named = client.submit({**SPEC, "name": "other", "labels": {"team": "vision"}})
    client.cancel(plain.id)

    assert [job.id for job in client.jobs(states=["cancelled"])] == [plain.id]
    assert [job.id for job in client.jobs(states=["queued", "running"])] == [named.id]
    assert [job.id for job in client.jobs(name="other")] == [named.id]
    assert [job.id for job in client.jobs(labels={"team": "vision"})] == [named.id]


def test_a_running_job_tells_progress_and_latest_metrics(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.train(service.start_job(job.id), 3)

    job = client.job(job.id)

    assert job.progress is not None
    assert (job.progress.step, job.progress.total_steps, job.progress.eta_seconds) == (3, 4, 1.0)
    assert job.metrics == pytest.approx({"train_loss": 1 / 3, "val_accuracy": 0.75})
    assert job.workers == 2
    assert job.mlflow is not None
    assert "runs/" in str(job.mlflow.url)
    assert job.seconds is not None


def test_metrics_are_points_by_name_and_step(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.train(service.start_job(job.id), 3)

    assert {point.name for point in client.metrics(job.id)} == {"train_loss", "val_accuracy"}
    points = client.metrics(job.id, ["val_accuracy"])
    assert [(point.step, point.value) for point in points] == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_the_log_is_text_and_its_tail_the_last_lines(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "one\ntwo\nthree\n")

    assert client.logs(job.id) == "one\ntwo\nthree\n"
    assert client.logs(job.id, tail=2) == "two\nthree\n"


def test_queue_and_cluster_are_shown(client: Client) -> None:
    job = client.submit({**SPEC, "resources": {"workers": 3}})

    waiting, cluster = list(client.queue()), client.cluster()

    assert [(item.position, item.id, item.needs.workers) for item in waiting] == [(1, job.id, 3)]
    assert [node.id for node in cluster.nodes] == ["node-1"]
    assert (cluster.total.cpus, cluster.free.cpus) == (4, 4)


def test_the_queue_is_fetched_in_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SIZE", 2)
    ids = [client.submit(SPEC).id for _ in range(5)]

    assert [job.id for job in client.queue()] == ids
    assert [job.position for job in client.queue(limit=3)] == [1, 2, 3]
    assert client.queue_length() == 5


def test_an_unknown_job_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="no job 'j-unknown'"):
        client.job("j-unknown")
    with pytest.raises(NotFound):
        next(client.follow_logs("j-unknown"))


def test_an_id_cannot_reach_another_path(client: Client) -> None:
    with pytest.raises(RequestError):
        client.job("../queue")


def test_fields_of_a_newer_server_are_kept() -> None:
    job = Job.model_validate(
        {
            "id": "j",
            "name": "n",
            "state": "preempting",
            "created_at": "2030-01-01T00:00:00Z",
            "tenant": "blue",
        }
    )

    assert job.to_json()["tenant"] == "blue"
    assert not job.ended


# Waiting and following


def test_wait_returns_the_job_once_it_has_ended(service: Service, client: Client, later: Later) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    later(0.2, service.end_job, job.id, State.SUCCEEDED)

    assert client.wait(job.id).state == "succeeded"


def test_wait_gives_up_after_its_timeout(client: Client) -> None:
    job = client.submit(SPEC)

    with pytest.raises(WaitTimeout, match="still queued after"):
        client.wait(job.id, timeout=0.1)
    assert client.wait(client.cancel(job.id).id, timeout=0).state == "cancelled"


def test_follow_yields_each_change_until_the_end(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    seen = []
    for now in client.follow(job.id):
        seen.append(now.state)
        if now.state == "queued":
            service.start_job(job.id)
        elif now.state == "running":
            service.end_job(job.id, State.SUCCEEDED)

    assert seen == ["queued", "running", "succeeded"]


def test_follow_outlasts_a_restart_of_the_server(service: Service, client: Client, later: Later) -> None:
    job = client.submit(SPEC)
    following = client.follow(job.id)
    next(following)

    service.server.stop()
    service.store.request_cancel(job.id)
    later(0.5, service.server.start)

    assert next(following).state == "cancelled"


def test_follow_gives_up_on_a_server_that_stays_away(service: Service) -> None:
    with Client(service.url, retry_seconds=0.3) as client:
        following = client.follow(client.submit(SPEC).id)
        next(following)
        service.server.stop()

        with pytest.raises(ServerUnreachable):
            next(following)


# Following the log


def test_followed_log_is_all_that_was_printed(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "epoch 0\n")
    following = client.follow_logs(job.id)

    assert next(following) == "epoch 0"
    service.print(job.id, "epoch 1\n  é\f\u2028 end")
    assert next(following) == "epoch 1"
    service.end_job(job.id, State.SUCCEEDED)
    assert list(following) == ["  é\f\u2028 end"]


def test_followed_log_goes_on_where_a_connection_broke(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "before\n")
    following = client.follow_logs(job.id)
    service.faults.cut_after = 1

    lines = [next(following)]
    service.print(job.id, "after\n")
    service.end_job(job.id, State.SUCCEEDED)

    assert [*lines, *following] == ["before", "after"]
    streams = [headers for _, path, headers in service.requests if path.endswith("/logs")]
    assert len(streams) == 2
    assert "last-event-id" in streams[1]


def test_events_are_read_whatever_way_the_bytes_arrive() -> None:
    stream = ": heartbeat\n\nid: 5\nevent: log\ndata: a\ndata:b\r\n\r\nevent: end\ndata: {}\n\ndata: cut of"
    expected = [Event(name="log", id="5", data="a\nb"), Event(name="end", id="", data="{}")]

    assert list(events([stream])) == expected
    assert list(events(stream)) == expected


# Servers that are not there, or are something else


def test_a_server_that_is_not_there_is_named_with_what_to_do(service: Service) -> None:
    service.server.stop()
    with Client(service.url) as client, pytest.raises(ServerUnreachable) as unreachable:
        client.submit(SPEC)

    assert service.url in str(unreachable.value)
    assert "SYNCBN_URL" in str(unreachable.value)
    assert "syncbn up" in str(unreachable.value)
    assert not unreachable.value.may_have_arrived


def test_a_lost_answer_leaves_open_whether_the_request_arrived(service: Service, client: Client) -> None:
    service.faults.lose_answers = 100

    with pytest.raises(ServerUnreachable) as unreachable:
        client.submit(SPEC)

    assert unreachable.value.may_have_arrived


def test_ready_tells_whether_the_server_can_take_jobs(service: Service, client: Client) -> None:
    assert client.ready()
    service.find_ray("Ray is not reachable: the head is gone")
    assert not client.ready()


def test_a_server_of_another_kind_is_recognised() -> None:
    async def some_web_page(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>hello</html>"})

    with (
        LiveServer(some_web_page) as server,
        Client(server.url) as client,
        pytest.raises(UnexpectedAnswer, match="right address"),
    ):
        list(client.jobs())


def test_the_key_opens_a_server_that_asks_for_one(live_server: LiveServer[FaultyApp], tmp_path: Path) -> None:
    with live_service(live_server, tmp_path, api_key="secret") as service:
        with Client(service.url, "secret\n") as client:
            assert client.submit(SPEC).state == "queued"
        with Client(service.url) as stranger, pytest.raises(RequestError) as refused:
            stranger.submit(SPEC)

    assert refused.value.status == 401


# Pausing and resizing


def test_a_job_is_paused_resumed_and_resized(service: Service, client: Client) -> None:
    job = client.submit({**SPEC, "resources": {"workers": {"min": 1, "max": 4}}})

    assert client.pause(job.id).state == "paused"
    assert client.pause(job.id).state == "paused"
    assert client.resume(job.id).state == "queued"
    assert client.resume(job.id).state == "queued"
    client.resize(job.id, 2)

    assert service.store.get(job.id).wanted_workers == 2


def test_a_resume_whose_answer_is_lost_is_asked_again(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    client.pause(job.id)
    service.faults.lose_answers = 1

    assert client.resume(job.id).state == "queued"

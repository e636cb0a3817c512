"""A job's log through the client, over connections that break."""

from __future__ import annotations

from service.client import Client, LogLine
from service.client.sse import Event, events
from service.jobs.job import State
from tests.service.live_api import SPEC, Service
from training.protocol import log_file


def start_job(service: Service, client: Client) -> str:
    job_id = client.submit(SPEC).id
    service.start_job(job_id)
    return job_id


def test_a_log_can_be_of_one_rank_or_one_attempt(service: Service, client: Client) -> None:
    job_id = start_job(service, client)
    service.print(job_id, "zero\n")
    log_file(service.storage / job_id, 1, 1).write_text("one\n")
    service.end_job(job_id, State.SUCCEEDED)
    lines = ["==> attempt 1, rank 0 <==", "zero", "==> attempt 1, rank 1 <==", "one"]

    assert client.logs(job_id, attempt=1).splitlines() == lines
    assert list(client.follow_logs(job_id, attempt=1)) == lines
    assert client.logs(job_id, rank=1) == "one\n"
    assert list(client.follow_logs(job_id, rank=1)) == ["one"]


def test_each_line_is_told_with_the_rank_that_printed_it(service: Service, client: Client) -> None:
    job_id = start_job(service, client)
    service.print(job_id, "zero\n")
    log_file(service.storage / job_id, 1, 1).write_text("one\n")
    service.end_job(job_id, State.SUCCEEDED)

    assert list(client.follow_log_lines(job_id)) == [
        LogLine(line="zero", attempt=1, rank=0),
        LogLine(line="one", attempt=1, rank=1),
    ]


def test_a_rank_is_known_when_the_connection_breaks_between_its_name_and_its_line(
    service: Service, client: Client
) -> None:
    job_id = start_job(service, client)
    service.print(job_id, "a\n")
    following = client.follow_log_lines(job_id)
    service.faults.cut_after = 1

    found = [next(following)]
    service.print(job_id, "b\n")
    service.end_job(job_id, State.SUCCEEDED)

    assert [*found, *following] == [LogLine(line=line, attempt=1, rank=0) for line in "ab"]


def test_an_event_that_is_only_a_place_is_read() -> None:
    stream = "id: 5\n\nevent: log\ndata: a\n\n: comment\n\n"

    assert list(events([stream])) == [
        Event(name="message", id="5", data=""),
        Event(name="log", id="", data="a"),
    ]

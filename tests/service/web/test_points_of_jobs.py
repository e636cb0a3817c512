"""The routes that give points: by position, by kind, from another spool, from the tracking server."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread

import httpx
import pytest

from service import job_points
from service.client.local_token import token_file
from service.jobs.job import Run, State
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.spools import BEGAN, log_points
from training.protocol import Point
from training.run_dir import RunFolder

ABC = [("a b", 1, 0.5), ("norm/bn/mean_noise", 1, 0.25), ("c", 2, float("nan"))]


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    token = token_file(service.server.port).read_text()
    with httpx.Client(
        base_url=service.url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as client:
        yield client


def started(service: Service) -> tuple[str, Run]:
    job, _ = service.store.create_job(make_spec())
    return job.id, service.start_job(job.id)


def read(
    client: httpx.Client, job_id: str, after: str = "", kind: str = "curves"
) -> tuple[list[str], httpx.Headers]:
    answer = client.get(f"/data/jobs/{job_id}/points", params={"after": after, "kind": kind})
    assert answer.status_code == 200
    return answer.text.splitlines(), answer.headers


def test_lines_come_by_kind_and_from_where_the_reader_is(service: Service, client: httpx.Client) -> None:
    job_id, _ = started(service)
    log_points(service, job_id, ABC)

    lines, headers = read(client, job_id)
    assert lines == [f"{BEGAN + 1000} 1 0.5 a b", f"{BEGAN + 2000} 2 nan c"]
    assert (headers["points-more"], headers["points-earlier"]) == ("no", "no")
    assert read(client, job_id, kind="norm")[0] == [f"{BEGAN + 1000} 1 0.25 norm/bn/mean_noise"]
    assert read(client, job_id, headers["points-position"])[0] == []

    log_points(service, job_id, [("a b", 3, 1.0)])
    assert read(client, job_id, headers["points-position"])[0] == [f"{BEGAN + 3000} 3 1.0 a b"]


def test_portions_are_bounded_and_end_with_a_line(
    service: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_points.JobPoints.read, "__defaults__", (100,))
    job_id, _ = started(service)
    log_points(service, job_id, [("loss", step, 1.0) for step in range(1, 50)])

    found, position, more = [], "", "yes"
    while more == "yes":
        lines, headers = read(client, job_id, position)
        assert len("\n".join(lines)) <= 100
        found += lines
        position, more = headers["points-position"], headers["points-more"]

    assert [int(line.split()[1]) for line in found] == list(range(1, 50))


def test_another_spool_and_an_emptied_one_are_told(service: Service, client: httpx.Client) -> None:
    job_id, _ = started(service)
    log_points(service, job_id, ABC)
    position = read(client, job_id)[1]["points-position"]
    spool = RunFolder(path=service.storage / job_id).spool

    RunFolder.truncated_mark(spool).touch()
    spool.write_bytes(b"")
    log_points(service, job_id, [("a b", 9, 1.0)])

    lines, headers = read(client, job_id, position)
    assert lines == [f"{BEGAN + 9000} 9 1.0 a b"]
    assert (headers["points-restarted"], headers["points-earlier"]) == ("yes", "yes")
    assert read(client, job_id, "what is no position")[0] == lines


def test_a_link_in_place_of_the_spool_is_not_followed(service: Service, client: httpx.Client) -> None:
    job_id, _ = started(service)
    spool = RunFolder(path=service.storage / job_id).spool
    spool.parent.mkdir(parents=True)
    (spool.parent / "secret").write_text("1 1 1.0 secret\n")
    spool.symlink_to(spool.parent / "secret")

    assert read(client, job_id)[0] == []


def test_a_history_is_fetched_once_for_all_and_again_when_it_may_have_grown(
    service: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, run = started(service)
    service.results.log(run, "loss", 1, 1.0)
    service.results.log(run, "norm/bn/dead", 1, 3.0)
    service.results.log(run, "system/cpu", 0, 1.7976931348623157e308)
    begun, go_on, calls = Event(), Event(), []
    history = service.results.history

    def slowly(*args: object) -> list[Point]:
        calls.append(args)
        begun.set()
        assert go_on.wait(60)
        return history(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(service.results, "history", slowly)
    path, answers = f"/data/jobs/{job_id}/history", []
    threads = [Thread(target=lambda: answers.append(client.get(path).text)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join()

    assert answers == ["1700000000000 1 1.0 loss\n"] * 3
    assert len(calls) == 1
    assert client.get(path, params={"kind": "norm"}).text.endswith(" 1 3.0 norm/bn/dead\n")
    assert client.get(path, params={"kind": "system"}).text.endswith(" 0 inf system/cpu\n")
    assert client.get(path, params={"kind": "other"}).status_code == 404
    service.results.log(run, "loss", 2, 0.5)
    service.end_job(job_id, State.SUCCEEDED)
    assert client.get(path).text.count("\n") == 2


def test_without_mlflow_a_history_is_a_problem_and_then_not_remembered(
    service: Service, client: httpx.Client
) -> None:
    job_id, run = started(service)
    service.results.log(run, "loss", 1, 1.0)
    service.results.unreachable = True
    answer = client.get(f"/data/jobs/{job_id}/history")
    assert (answer.status_code, "MLflow" in answer.json()["detail"]) == (503, True)

    service.results.unreachable = False
    assert client.get(f"/data/jobs/{job_id}/history").status_code == 200

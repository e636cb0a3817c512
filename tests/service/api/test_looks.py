"""What streams are told of, and when: changes of what they show, steps alone one look later."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from service.api import sse
from service.api.job_watcher import JobWatcher
from service.api.lately import Lately
from service.api.looks import MOMENT, Looks, job_topic, jobs_topic, log_topic, points_topic
from service.backends.memory_tracking import FakeResults
from service.job_logs import JobLogs
from service.job_points import JobPoints
from service.jobs.job import Job
from service.queue.store import Store
from tests.service.api.test_events import finish, launch, report
from tests.service.examples import make_spec
from training.protocol import Point, log_file
from training.run_dir import RunFolder
from training.tracking.spool import Spool


@pytest.fixture
def looks(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    monkeypatch.setattr(sse, "POLL_S", 0.0)
    storage, watcher = str(tmp_path), JobWatcher(sqlite_store, lambda job: job.name)
    logs, points = JobLogs(storage, FakeResults()), JobPoints(storage)
    return Looks(sqlite_store, watcher, logs, points, sqlite_store.event_horizon(), Lately())


def running(store: Store) -> Job:
    job = store.create_job(make_spec())[0]
    launch(store, job)
    return job


def test_a_step_is_told_one_look_later_and_an_event_at_once(looks: Looks, sqlite_store: Store) -> None:
    job = running(sqlite_store)
    topics = [job_topic(job.id), jobs_topic([job.id]), jobs_topic([job.id], and_others=True), MOMENT]
    first = looks(topics)

    report(sqlite_store, job)
    assert looks(topics) == first
    second = looks(topics)
    assert all(second[topic] != first[topic] for topic in topics)
    assert looks(topics) == second

    finish(sqlite_store, job)
    third = looks(topics)
    assert all(third[topic] != second[topic] for topic in topics)


def test_a_step_is_told_together_with_the_points_of_that_moment(
    looks: Looks, sqlite_store: Store, tmp_path: Path
) -> None:
    job = running(sqlite_store)
    topic = points_topic([job.id])
    first = looks([topic])
    report(sqlite_store, job)
    assert looks([topic]) == first
    spool = Spool(RunFolder(path=tmp_path / job.id).spool)

    spool.append(Point("train_loss", 0.5, 1_700_000_000_000, 3))
    spool.close()

    second = looks([topic])
    assert second != first
    assert looks([topic]) == second


def test_a_log_that_grows_is_told_at_once_and_then_in_every_second_look(
    looks: Looks, sqlite_store: Store, tmp_path: Path
) -> None:
    job = running(sqlite_store)
    path = log_file(tmp_path / job.id, 1, 0)
    path.parent.mkdir(parents=True)
    path.write_text("a line\n")
    topic = log_topic(job.id)
    seen = [looks([topic])]

    for number in range(5):
        with path.open("a") as log:
            log.write(f"line {number}\n")
        seen.append(looks([topic]))
    seen += [looks([topic]), looks([topic])]

    told = [now != before for before, now in pairwise(seen)]
    assert told == [False, True, False, True, False, True, False]

    with path.open("a") as log:
        log.write("a line after a pause\n")
    assert looks([topic]) != seen[-1]
    finish(sqlite_store, job)
    assert looks([topic])[topic] != seen[-1][topic]


def test_a_list_is_told_of_its_own_jobs_and_one_of_the_newest_of_all_events(
    looks: Looks, sqlite_store: Store
) -> None:
    job, other = running(sqlite_store), running(sqlite_store)
    alone, newest = jobs_topic([job.id]), jobs_topic([job.id], and_others=True)
    first = looks([alone, newest])

    finish(sqlite_store, other)

    second = looks([alone, newest])
    assert second[alone] == first[alone]
    assert second[newest] != first[newest]

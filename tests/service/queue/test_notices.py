"""Who changes the queue wakes who listens, over both databases, in other processes too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from service.jobs.job import State
from service.queue import notices
from service.queue.notices import Listener
from service.queue.store import Store
from testing.postgres import Postgres
from tests.service.examples import make_spec
from tests.service.queue.test_lease import take_over


@contextmanager
def listening(store: Store) -> Iterator[tuple[threading.Event, Listener]]:
    """Enters once it listens, which itself counts as heard."""
    heard = threading.Event()
    listener = store.listener(heard.set)
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        assert heard.wait(60)
        heard.clear()
        yield heard, listener
    finally:
        listener.stop()
        thread.join()
    assert not listener.listens


def test_each_change_by_others_is_heard(store: Store, database_url: str) -> None:
    other = Store(database_url)
    with listening(store) as (heard, listener):
        assert listener.listens
        job, _ = other.create_job(make_spec())
        assert heard.wait(60)
        for command in (other.request_pause, other.request_resume, other.request_cancel):
            heard.clear()
            command(job.id)
            assert heard.wait(60)
    other.close()


def test_another_process_is_heard(store: Store, database_url: str) -> None:
    job, _ = store.create_job(make_spec())
    program = (
        "import sys, time\nfrom service.queue.store import Store\n"
        "Store(sys.argv[1]).request_cancel(sys.argv[2])\ntime.sleep(1)\n"
    )
    with listening(store) as (heard, _):
        subprocess.run([sys.executable, "-c", program, database_url, job.id], check=True)
        assert heard.wait(60)


def test_a_scheduler_does_not_wake_itself(store: Store) -> None:
    job, _ = store.create_job(make_spec())
    mine = store.as_scheduler(take_over(store))
    with listening(store) as (heard, _):
        assert mine.move(job, State.STARTING, attempt=1, workers=1)
        assert not heard.wait(0.2)


def test_nobody_needs_to_listen(sqlite_store: Store) -> None:
    sqlite_store.create_job(make_spec())
    with listening(sqlite_store):
        pass
    for _ in range(3):
        sqlite_store.create_job(make_spec())
    assert len(sqlite_store.list_jobs()[0]) == 4


def test_a_full_pipe_delays_no_writer(sqlite_store: Store) -> None:
    path = f"{sqlite_store._engine.url.database}-wake"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"\0" * 4096)

    sqlite_store.create_job(make_spec())
    os.close(pipe)


@pytest.mark.full
def test_after_a_lost_connection_it_listens_again(
    postgres_url: str, migrated_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_FIRST_PAUSE", 0.01)
    store, other = Store(postgres_url), Store(postgres_url)
    with listening(store) as (heard, _):
        migrated_postgres.disconnect("migrated")
        assert heard.wait(60)  # something may have been missed
        heard.clear()
        other.create_job(make_spec())
        assert heard.wait(60)
    for each in (store, other):
        each.close()

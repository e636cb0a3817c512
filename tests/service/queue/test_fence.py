"""A scheduler's writes, each of which carries its number, over both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Table, Update, update

from service.errors import Unavailable
from service.jobs.job import Job, State
from service.jobs.sweep import Sweep
from service.queue import database
from service.queue.store import Store
from tests.service.examples import make_spec
from tests.service.queue.test_lease import row_of, take_over
from tests.service.queue.test_sweeps import create
from training.protocol import Progress, Superseded

PROGRESS = Progress(step=1, total_steps=10, epoch=0, eta_seconds=None)

WRITES: dict[str, Callable[[Store, Job, Sweep], object]] = {
    "move": lambda store, job, _: store.move(job, State.CANCELLED, reason="by the scheduler"),
    "restart": lambda store, job, _: store.restart(
        job,
        reason="again",
        failures=1,
        failures_in_row=1,
        last_failure=None,
        restarts=("one",),
        ran_seconds=1.0,
    ),
    "write_progress": lambda store, job, _: store.write_progress([(job, PROGRESS)]),
    "note": lambda store, job, _: store.note(job, "waits for something"),
    "set_run": lambda store, job, _: store.set_run(job.id, "1", "run"),
    "mark_archived": lambda store, job, _: store.mark_archived(job),
    "set_sweep_run": lambda store, _, sweep: store.set_sweep_run(sweep.id, "1", "run"),
    "mark_sweep_archived": lambda store, _, sweep: store.mark_sweep_archived(sweep.id),
}


def in_office(store: Store) -> tuple[Store, Job, Sweep]:
    """A scheduler's store, a job that runs, and a sweep."""
    mine = store.as_scheduler(take_over(store))
    sweep = create(store)
    job = store.create_job(make_spec())[0]
    assert mine.move(job, State.STARTING, attempt=1, workers=1)
    return mine, store.get(job.id), sweep


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_counts_only_while_its_scheduler_holds_the_lease(
    store: Store, write: Callable[[Store, Job, Sweep], object]
) -> None:
    mine, job, sweep = in_office(store)
    take_over(store, "another")

    with pytest.raises(Superseded, match="number 1 does not hold the lease any more"):
        write(mine, job, sweep)

    assert (store.get(job.id), store.get_sweep(sweep.id)) == (job, sweep)
    write(store.as_scheduler(2), job, sweep)
    assert (store.get(job.id), store.get_sweep(sweep.id)) != (job, sweep)


def test_who_has_stepped_down_writes_no_more_and_commands_need_no_scheduler(store: Store) -> None:
    mine, job, _ = in_office(store)
    store.step_down(1)

    with pytest.raises(Superseded):
        mine.note(job, "late")

    assert store.request_cancel(job.id).reason == "cancelled, stops soon"


def test_nobody_takes_over_before_a_write_that_was_let_through_is_over(store: Store) -> None:
    """Or it would be written after the successor had read the row."""
    mine, _, _ = in_office(store)
    seen, order = row_of(store), list[str]()

    def follow() -> None:
        assert store.take_over(seen, "another") == 2
        order.append("taken over")

    follower = threading.Thread(target=follow)
    with mine._writing():
        follower.start()
        time.sleep(0.1)  # a follower that does not wait is through by now
        order.append("written")
    follower.join()

    assert order == ["written", "taken over"]


@pytest.mark.full
def test_who_is_suspended_in_a_transaction_loses_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Store(postgres_url)
    _, job, _ = in_office(follower)
    # Of the connection that the suspended one will make: those before may be held up for longer than this.
    monkeypatch.setattr(database, "_IDLE_TRANSACTION_MS", 1_000)
    suspended = Store(postgres_url)

    def later(table: Table) -> Update:
        assert follower.take_over(row_of(follower), "another") == 2
        return update(table)

    monkeypatch.setattr("service.queue.store.update", later)
    with pytest.raises(Unavailable, match="idle-in-transaction"):
        suspended.as_scheduler(1).mark_archived(job)
    monkeypatch.undo()

    assert row_of(follower).number == 2
    assert follower.get(job.id) == job
    for store in (suspended, follower):
        store.close()

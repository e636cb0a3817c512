"""Events: one for each change of a job, in the order of the changes, and none missed by who reads them."""

from __future__ import annotations

from service.jobs.job import Job, State, new_job, utc_now
from service.queue import database
from service.queue.rows import insert_jobs
from service.queue.store import Store
from tests.service.examples import make_spec
from tests.service.queue.test_store import run, start
from training.protocol import Progress


def create(store: Store, **changes: object) -> Job:
    return store.create_job(make_spec(**changes))[0]


def test_each_change_of_a_job_is_one_event(store: Store) -> None:
    job = create(store, resources={"workers": {"min": 1, "max": 4}}, retries=3)
    store.note(job, "waits for room")
    job = run(store, job)
    assert store.restart(
        job,
        reason="again",
        failures=1,
        failures_in_row=1,
        last_failure=None,
        restarts=("rank 1 died",),
        ran_seconds=1.0,
    )
    store.request_resize(job.id, 3)
    progress = Progress(step=1, total_steps=2, epoch=0, eta_seconds=None, metrics={})
    store.write_progress([(store.get(job.id), progress)])
    store.request_cancel(job.id)
    store.request_cancel(job.id)
    assert store.move(store.get(job.id), State.CANCELLED, reason="cancelled")
    store.mark_archived(store.get(job.id))

    found = store.events_of_job(job.id, after=0, limit=100)

    assert [(event.type, event.state, event.start, event.wanted_workers) for event in found] == [
        ("state", State.QUEUED, 0, None),
        ("state", State.STARTING, 1, None),
        ("state", State.RUNNING, 1, None),
        ("restart", State.RUNNING, 2, None),
        ("resize", State.RUNNING, 2, 3),
        ("cancel_requested", State.RUNNING, 2, 3),
        ("state", State.CANCELLED, 2, 3),
    ]
    assert found[3].reason == "again"
    assert [event.id for event in found] == sorted({event.id for event in found})
    assert abs((utc_now() - found[0].at).total_seconds()) < 3600
    assert store.events_of_job(job.id, after=found[2].id, limit=2) == found[3:5]
    assert store.last_events([job.id, "other"]) == {job.id: found[-1].id}


def test_a_change_that_is_undone_leaves_no_event(store: Store) -> None:
    job = create(store)
    try:
        with database.writing(store._engine) as connection:
            insert_jobs(connection, [new_job(make_spec(), created_at=utc_now())])
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass

    horizon = store.event_horizon().wait()

    assert [event.job_id for event, _ in store.events(after=0, up_to=horizon, limit=9)] == [job.id]


def test_events_of_all_jobs_are_those_of_the_jobs_that_match(store: Store) -> None:
    first, second = create(store, name="a", labels={"team": "x"}), create(store, name="b")
    start(store, second)
    start(store, first)
    last = store.event_horizon().wait()

    found = store.events(after=0, up_to=last, limit=9)
    assert [(name, event.state) for event, name in found] == [
        *(("a", State.QUEUED), ("b", State.QUEUED)),
        *(("b", State.STARTING), ("a", State.STARTING)),
    ]
    assert store.events(after=0, up_to=last, limit=9, labels=[("team", "x")]) == [found[0], found[3]]
    assert store.events(after=found[1][0].id, up_to=found[2][0].id, limit=9) == [found[2]]


def test_an_event_that_is_committed_late_is_not_passed(store: Store) -> None:
    horizon = store.event_horizon()
    before = horizon.wait()
    if store._engine.dialect.name == "sqlite":  # one writer at a time: there is no such event
        create(store)
        assert horizon.now() == before + 1
        return
    late = new_job(make_spec(), created_at=utc_now())
    with database.writing(store._engine) as connection:
        insert_jobs(connection, [late])
        early = create(store)
        for _ in range(3):
            assert horizon.now() == before
            assert store.event_horizon().now() is None

    assert horizon.now() == before + 2
    found = store.events(after=before, up_to=before + 2, limit=9)
    assert [event.job_id for event, _ in found] == [late.id, early.id]


def test_an_id_that_never_comes_is_waited_for_no_longer_than_its_transaction(store: Store) -> None:
    horizon = store.event_horizon()
    before = horizon.wait()
    with database.writing(store._engine) as connection:
        insert_jobs(connection, [new_job(make_spec(), created_at=utc_now())])
        connection.rollback()
    create(store)
    last = store.event_horizon().wait()

    assert last > before
    assert horizon.wait() == before or horizon.wait() == last
    assert horizon.now() == last


def test_a_jobs_events_go_with_it(store: Store) -> None:
    job = create(store)
    with database.writing(store._engine) as connection:
        connection.exec_driver_sql("DELETE FROM jobs")

    assert store.events_of_job(job.id, after=0, limit=9) == []
    again = create(store)
    assert store.last_events([again.id])[again.id] > 1

"""Sweeps on both databases: all or nothing, and commands that race with the scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, KeyReused, NotFound, Refused
from service.jobs.job import Job, State, utc_now
from service.jobs.sweep import Sweep, SweepLimits, SweepState, new_sweep
from service.queue import cursors
from service.queue.store import Store
from tests.service.examples import make_data
from tests.service.queue.test_store import at_once, run, start
from training.spec.sweep import SweepPlan, SweepPoint, expanded

UNKNOWN = "s" + "0" * 20


def planned(points: int = 3, max_running: int | None = None, **spec: Any) -> tuple[Sweep, list[SweepPoint]]:
    document, plan = make_data(**spec), SweepPlan(repeat=points, max_running=max_running)
    expansion, _ = expanded(document, plan)
    return new_sweep("mine", document, plan, expansion, created_at=utc_now()), expansion


def create(store: Store, points: int = 3, **more: Any) -> Sweep:
    return store.create_sweep(*planned(points, **more))[0]


def jobs(store: Store, sweep: Sweep) -> list[Job]:
    return [store.get(job.id) for job in store.jobs_of_sweep(sweep.id)]


def states(store: Store, sweep: Sweep) -> list[State]:
    return [job.state for job in jobs(store, sweep)]


def state(store: Store, sweep: Sweep) -> SweepState:
    return store.get_sweep(sweep.id).state(store.states_of_sweeps([sweep.id])[sweep.id])


def end(store: Store, job: Job, to: State) -> None:
    assert store.move(run(store, job), to)


def test_a_sweep_reads_back_with_its_jobs_in_order(store: Store) -> None:
    sweep = create(store, 12, max_running=2, labels={"team": "a"}, source={"user": "ada"})

    assert store.get_sweep(sweep.id) == sweep
    members = jobs(store, sweep)
    assert [(job.sweep_id, job.point) for job in members] == [(sweep.id, number) for number in range(1, 13)]
    assert [job.spec["training"]["seed"] for job in members] == list(range(12))
    assert sweep.points[11] == {"training.seed": 11}
    assert [job.id for job in store.queue()] == [job.id for job in members]
    assert store.get(members[0].id) == members[0]
    alone, _ = store.create_job(expanded(make_data(), SweepPlan(repeat=1))[0][0].spec)
    assert alone.sweep_id is None
    assert [job.id for job in store.list_jobs(sweep=sweep.id, limit=2)[0]] == [
        members[11].id,
        members[10].id,
    ]
    assert len(store.list_jobs(sweep=sweep.id, labels=[("team", "a")])[0]) == 12
    assert store.sweep_limits([*members, alone]) == {sweep.id: SweepLimits(max_running=2)}
    with pytest.raises(NotFound):
        store.get_sweep(UNKNOWN)
    with pytest.raises(NotFound, match="ids look like s1k0"):
        store.get_sweep(alone.id)


def test_a_sweep_that_cannot_be_stored_as_a_whole_is_not_stored(store: Store) -> None:
    sweep, points = planned()
    nameless = replace(points[2], spec=points[2].spec.model_copy(update={"name": None}))

    with pytest.raises(IntegrityError):
        store.create_sweep(sweep, [*points[:2], nameless])
    with pytest.raises(NotFound):
        store.get_sweep(sweep.id)
    assert store.queue() == []


def test_one_key_makes_one_sweep_however_many_ask_at_once(store: Store) -> None:
    requests = [planned(source={"user": str(number)}) for number in range(4)]

    made = at_once(4, lambda number: store.create_sweep(*requests[number], idempotency_key="k"))

    assert len({sweep.id for sweep, _ in made}) == 1
    assert sorted(created for _, created in made) == [False, False, False, True]
    assert len(store.queue()) == 3
    with pytest.raises(KeyReused):
        store.create_sweep(*planned(4), idempotency_key="k")


def test_pages_of_sweeps_follow_one_another(store: Store) -> None:
    sweeps = [create(store, 1) for _ in range(3)]

    first, cursor = store.list_sweeps(limit=2)
    rest, last = store.list_sweeps(limit=2, cursor=cursor)

    assert [sweep.id for sweep in [*first, *rest]] == [sweep.id for sweep in reversed(sweeps)]
    assert last is None
    with pytest.raises(Refused):
        store.list_jobs(cursor=cursor)


def test_the_state_of_a_sweep_follows_from_its_jobs(store: Store) -> None:
    sweep = create(store)
    first, second, third = jobs(store, sweep)
    assert state(store, sweep) is SweepState.RUNNING
    end(store, first, State.SUCCEEDED)
    end(store, second, State.SUCCEEDED)
    assert state(store, sweep) is SweepState.RUNNING
    assert store.unarchived_sweeps() == []
    end(store, third, State.FAILED)

    assert state(store, sweep) is SweepState.FAILED
    ((found, how),) = store.unarchived_sweeps()
    assert (found.id, how) == (sweep.id, SweepState.FAILED)
    store.mark_sweep_archived(sweep.id)
    assert store.unarchived_sweeps() == []
    for command in (store.cancel_sweep, store.pause_sweep, store.resume_sweep):
        with pytest.raises(Conflict, match="has failed already"):
            command(sweep.id)


def test_a_cancelled_sweep_stops_all_jobs_that_have_not_ended(store: Store) -> None:
    sweep = create(store, 4)
    done, running, paused, queued = jobs(store, sweep)
    end(store, done, State.SUCCEEDED)
    running = run(store, running)
    store.request_pause(paused.id)

    store.cancel_sweep(sweep.id)

    assert states(store, sweep) == [State.SUCCEEDED, State.RUNNING, State.CANCELLED, State.CANCELLED]
    assert store.get(running.id).cancel_requested_at is not None
    assert store.get(queued.id).reason == "its sweep was cancelled"
    assert state(store, sweep) is SweepState.RUNNING
    for command in (store.pause_sweep, store.resume_sweep):
        with pytest.raises(Conflict, match="is being cancelled"):
            command(sweep.id)
    assert store.move(store.get(running.id), State.CANCELLED)
    assert state(store, sweep) is SweepState.CANCELLED
    assert store.cancel_sweep(sweep.id).id == sweep.id


def test_a_sweep_is_paused_and_resumed_as_one(store: Store) -> None:
    sweep = create(store)
    running, *waiting = jobs(store, sweep)
    running = run(store, running)

    store.pause_sweep(sweep.id)

    assert states(store, sweep) == [State.PAUSING, State.PAUSED, State.PAUSED]
    assert {store.get(job.id).reason for job in waiting} == {f"sweep {sweep.id} is paused"}
    assert state(store, sweep) is SweepState.PAUSED
    assert store.sweep_limits(waiting) == {sweep.id: SweepLimits(paused=True)}
    with pytest.raises(Conflict, match="still pausing"):
        store.resume_sweep(sweep.id)
    assert store.get_sweep(sweep.id).paused_at is not None
    assert store.move(store.get(running.id), State.PAUSED)
    assert store.pause_sweep(sweep.id).paused_at is not None
    assert store.resume_sweep(sweep.id).paused_at is None
    assert states(store, sweep) == [State.QUEUED] * 3
    store.request_pause(waiting[0].id)
    store.resume_sweep(sweep.id)  # it is not paused, and one of its jobs stays so
    assert states(store, sweep) == [State.QUEUED, State.PAUSED, State.QUEUED]


def test_commands_and_starts_at_once_lose_nothing(store: Store) -> None:
    """Whichever comes first, no job runs on that nobody has asked to stop."""
    sweep = create(store, 4)
    members = jobs(store, sweep)

    def act(number: int) -> None:
        if number == 4:
            store.cancel_sweep(sweep.id)
        elif store.move(members[number], State.STARTING, attempt=1, workers=1):
            store.note_all([(job, "a note") for job in reversed(members)])

    at_once(5, act)

    for job in jobs(store, sweep):
        assert job.state is State.CANCELLED or job.cancel_requested_at is not None


def test_a_sweep_keeps_its_first_run(store: Store) -> None:
    sweep = create(store, 1)

    store.set_sweep_run(sweep.id, "1", "first")
    store.set_sweep_run(sweep.id, "1", "second")

    run_of = store.get_sweep(sweep.id).run
    assert run_of is not None
    assert run_of.run_id == "first"
    assert start(store, jobs(store, sweep)[0]).run is None


def test_sweeps_are_found_by_the_beginning_of_their_id_and_by_name(store: Store) -> None:
    first, second = create(store), create(store)

    def ids(**filters: Any) -> list[str]:
        return [sweep.id for sweep in store.list_sweeps(**filters)[0]]

    assert ids(id_prefix=first.id[:-3]) == [first.id]
    assert ids(name="mine") == ids(name="m?n*") == ids(id_prefix="s") == [second.id, first.id]
    assert ids(name="other") == ids(id_prefix="%") == []
    assert ids(name="mine", limit=1, cursor=cursors.encode(second.id)) == [first.id]

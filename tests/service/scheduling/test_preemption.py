from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.scheduling import capacity
from service.scheduling.capacity import Amount, Demand
from service.scheduling.preemption import GROWS_EVERY, Preempt
from service.scheduling.scheduler import Start, Wait, schedule
from tests.service.examples import make_job

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLOCK = 1000.0
MACHINE = [Node(id="a", address="", cpus=8, gpus=0)]


def elastic(
    granted: int, least: int = 1, most: int = 8, *, priority: int = 0, group: int | str = "world"
) -> Job:
    """One that has run for a while."""
    workers = {"min": least, "max": most}
    job = make_job(workers, priority=priority, state=State.RUNNING, granted=granted, group=group)
    return replace(job, grows_after=CLOCK)


def fixed(workers: int, *, priority: int = 0) -> Job:
    return make_job(workers, priority=priority, state=State.RUNNING, granted=workers)


def preempts(
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node] = MACHINE,
    seconds_left: dict[str, float] | None = None,
) -> dict[str, str]:
    """Who is preempted, and why."""
    decisions = schedule(queue, active, nodes, now=CLOCK, seconds_left=seconds_left or {})
    return {d.job_id: d.reason for d in decisions if isinstance(d, Preempt)}


def starts(queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node] = MACHINE) -> dict[str, int]:
    decisions = schedule(queue, active, nodes, now=CLOCK)
    return {d.job_id: d.workers for d in decisions if isinstance(d, Start)}


# Making room


def test_an_elastic_job_shrinks_for_the_head_of_the_queue() -> None:
    running, head = elastic(8), make_job(2)

    assert preempts([head], [running]) == {running.id: f"makes room for job {head.id}"}


def test_jobs_of_higher_priority_of_fixed_size_or_at_their_least_are_left_alone() -> None:
    assert preempts([make_job(2)], [elastic(8, priority=1)]) == {}
    assert preempts([make_job(2, priority=9)], [fixed(8)]) == {}
    assert preempts([make_job(2, priority=9)], [elastic(8, least=8)]) == {}


@pytest.mark.parametrize("state", [State.STARTING, State.PAUSING, State.PREEMPTING])
def test_only_jobs_that_run_are_stopped(state: State) -> None:
    assert preempts([make_job(2)], [replace(elastic(8), state=state)]) == {}
    assert preempts([make_job(2)], [replace(elastic(8), cancel_requested_at=NOW)]) == {}


def test_nobody_shrinks_where_that_would_not_help() -> None:
    assert preempts([make_job(6)], [elastic(4), fixed(4)]) == {}


def test_nobody_shrinks_who_would_not_get_its_least_back() -> None:
    """Its GPUs are on two machines, and the CPUs of one of them are taken by then."""
    nodes = [Node(id="a", address="", cpus=1, gpus=1), Node(id="b", address="", cpus=2, gpus=1)]
    workers = {"min": 3, "max": 4}
    running = make_job(workers, cpus=0.5, gpus=0.5, priority=-1, state=State.RUNNING, granted=4)
    small = [make_job(1, cpus=0.5, state=State.RUNNING, granted=1) for _ in range(2)]

    assert preempts([make_job(1, cpus=0.5)], [replace(running, grows_after=CLOCK), *small], nodes) == {}


def test_nobody_shrinks_for_a_job_that_is_not_the_head() -> None:
    assert preempts([make_job(8), make_job(2)], [elastic(4), fixed(4)]) == {}


def test_the_fewest_shrink() -> None:
    small, large, smaller = elastic(2), elastic(4), elastic(2)

    assert list(preempts([make_job(3)], [small, large, smaller])) == [large.id]


def test_of_equals_the_lowest_priority_then_the_youngest_shrinks() -> None:
    low, old, young = elastic(2, priority=-1), elastic(3), elastic(3)

    assert list(preempts([make_job(1)], [low, old, young])) == [low.id]
    assert list(preempts([make_job(2)], [low, old, young])) == [young.id]


def test_two_shrink_where_one_is_not_enough() -> None:
    old, middle, young = elastic(3), elastic(2), elastic(3)

    assert set(preempts([make_job(4)], [old, middle, young])) == {old.id, young.id}


def test_a_job_that_is_nearly_done_is_left_alone() -> None:
    running = elastic(8)

    assert preempts([make_job(2)], [running], seconds_left={running.id: 119}) == {}
    assert preempts([make_job(2)], [running], seconds_left={running.id: 120}) != {}


def test_while_enough_of_them_stop_no_more_are_stopped() -> None:
    leaving = [
        replace(elastic(4), state=State.PREEMPTING, preempted_at=NOW),
        replace(fixed(4), state=State.PAUSING),
        replace(fixed(4), cancel_requested_at=NOW),
    ]
    for job in leaving:
        assert preempts([make_job(2)], [job, elastic(4)]) == {}
        (decision,) = schedule([make_job(2)], [job, elastic(4)], MACHINE, now=CLOCK)
        assert isinstance(decision, Wait)
        assert decision.reason.endswith("others are making room for it")


def test_what_is_free_is_kept_for_one_that_others_make_room_for() -> None:
    """The first of two that make room is back; the second still stops."""
    head = make_job(5, priority=1)
    back = replace(make_job({"min": 1, "max": 8}), preempted_at=NOW)
    stopping = replace(elastic(4), state=State.PREEMPTING, preempted_at=NOW)

    assert starts([head, back], [stopping]) == {back.id: 1}
    assert starts([head, back], []) == {head.id: 5, back.id: 3}


def test_a_job_that_made_room_keeps_its_least_whoever_came_meanwhile() -> None:
    back = replace(make_job({"min": 2, "max": 8}), preempted_at=NOW)
    head, later = make_job(3, priority=5), make_job(4, priority=5)

    assert starts([back, head, later], []) == {back.id: 5, head.id: 3}


def test_a_job_that_made_room_and_fits_no_more_waits_in_its_place() -> None:
    back = replace(make_job({"min": 6, "max": 8}), preempted_at=NOW)
    head = make_job(2, priority=1)

    assert starts([back, head], [fixed(4)]) == {head.id: 2}


def test_elastic_jobs_start_with_their_least_where_others_wait() -> None:
    first, second, third = make_job({"min": 1, "max": 8}), make_job(4), make_job({"min": 2, "max": 3})

    assert starts([first, second, third], []) == {first.id: 2, second.id: 4, third.id: 2}
    assert starts([first, make_job(8)], []) == {first.id: 8}


# Growing


def test_an_elastic_job_grows_into_what_nobody_waits_for() -> None:
    running = elastic(1)

    assert preempts([], [running, fixed(4)]) == {running.id: "grows from 1 to 4 workers"}


def test_a_job_that_could_never_start_keeps_nobody_from_growing() -> None:
    running = elastic(1)

    assert list(preempts([make_job(9)], [running])) == [running.id]


@pytest.mark.parametrize(
    "job",
    [
        replace(elastic(1), grows_after=CLOCK + 1),
        replace(elastic(1), state=State.STARTING),
        replace(elastic(1), cancel_requested_at=NOW),
        replace(elastic(1), wanted_workers=1),
        elastic(4, most=4),
        elastic(7),
        elastic(2, least=2, most=3, group=2),
        fixed(1),
    ],
    ids=["too soon", "starts", "cancelled", "asked to be", "at its most", "no gain", "no group", "fixed"],
)
def test_who_would_not_gain_does_not_grow(job: Job) -> None:
    assert preempts([], [job]) == {}


def test_a_job_that_is_nearly_done_does_not_grow() -> None:
    running = elastic(1)

    assert preempts([], [running], seconds_left={running.id: 60}) == {}


def test_one_grows_at_a_time_the_first_in_order() -> None:
    old, young = elastic(2), elastic(2)

    assert preempts([], [young, old]) == {old.id: "grows from 2 to 6 workers"}
    stopping = replace(old, state=State.PREEMPTING, preempted_at=NOW)
    assert preempts([], [young, stopping]) == {}


# Resizing


def test_a_job_is_resized_as_far_as_there_is_room() -> None:
    asked = replace(elastic(4), wanted_workers=5)
    down = replace(elastic(4), wanted_workers=2)

    assert preempts([], [asked]) == {asked.id: "grows from 4 to 5 workers"}
    assert preempts([], [asked, fixed(4)]) == {}
    assert preempts([], [down]) == {down.id: "resizes from 4 to 2 workers"}
    assert preempts([make_job(8)], [down]) == {down.id: "resizes from 4 to 2 workers"}


def test_a_resized_job_starts_with_what_was_asked_for_if_it_fits() -> None:
    asked = replace(make_job({"min": 1, "max": 8}), wanted_workers=3)

    assert starts([asked], []) == {asked.id: 3}
    assert starts([asked], [fixed(6)]) == {asked.id: 2}


# Any cluster, any jobs, any order of events


class Simulation:
    """Jobs on machines, round by round; what stops is back in the queue when `stop` says so."""

    def __init__(self, jobs: Sequence[Job], nodes: Sequence[Node]) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.nodes, self.now = nodes, CLOCK
        self.preempted = 0

    @property
    def queue(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is State.QUEUED]

    @property
    def active(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state not in {State.QUEUED, State.SUCCEEDED}]

    def possible(self, job: Job) -> bool:
        demand = Demand.of(job)
        return bool(demand.granted(capacity.room(capacity.empty(self.nodes), demand.worker)))

    def round(self) -> bool:
        """Whether anything has happened."""
        happened = False
        for decision in schedule(self.queue, self.active, self.nodes, now=self.now):
            job = self.jobs[decision.job_id]
            if isinstance(decision, Start):
                happened = True
                grows = self.now + GROWS_EVERY
                self.change(
                    job,
                    state=State.RUNNING,
                    workers=decision.workers,
                    attempt=job.attempt + 1,
                    preempted_at=None,
                    grows_after=grows,
                )
            elif isinstance(decision, Preempt):
                happened = True
                self.preempted += 1
                assert job.elastic
                assert job.state is State.RUNNING
                self.change(job, state=State.PREEMPTING, preempted_at=NOW)
        self.check_capacity()
        return happened

    def stop_one(self, choose: int) -> bool:
        """One of those that stop has stopped."""
        stopping = [job for job in self.active if job.state is State.PREEMPTING]
        if stopping:
            self.change(stopping[choose % len(stopping)], state=State.QUEUED, workers=None)
        return bool(stopping)

    def change(self, job: Job, **changes: object) -> None:
        self.jobs[job.id] = replace(job, **changes)  # type: ignore[arg-type]

    def end_oldest(self) -> None:
        running = [job for job in self.active if job.state is State.RUNNING]
        if running:
            self.change(min(running, key=lambda job: job.id), state=State.SUCCEEDED, workers=None)

    def settle(self, choices: Sequence[int]) -> None:
        """Until nothing happens any more. That has to come, whatever the order in which jobs stop."""
        for number in range(400):
            happened = self.round()
            happened |= self.stop_one(choices[number % len(choices)])
            if not happened:
                return
        raise AssertionError("jobs are stopped and started again without end")

    def check_capacity(self) -> None:
        total = capacity.total(Amount.of(node.cpus, node.gpus) for node in self.nodes)
        used = capacity.total(Demand.of(job).each * (job.workers or 0) for job in self.active)
        assert used.cpus <= total.cpus
        assert used.gpus <= total.gpus
        for job in self.active:
            assert job.resources.min_workers <= (job.workers or 0) <= job.resources.max_workers


jobs = st.lists(
    st.builds(
        make_job,
        st.integers(1, 5)
        | st.tuples(st.integers(1, 3), st.integers(1, 6)).map(
            lambda pair: {"min": pair[0], "max": pair[0] + pair[1]}
        ),
        cpus=st.sampled_from([0.5, 1, 1.5, 2]),
        gpus=st.sampled_from([0, 0, 0, 0.5, 1]),
        priority=st.integers(-1, 1),
    ),
    min_size=1,
    max_size=7,
)
clusters = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([0, 0, 1, 2, 4])), min_size=1, max_size=4
).map(lambda sizes: [Node(id=f"n{i}", address="", cpus=c, gpus=g) for i, (c, g) in enumerate(sizes)])
choices_of_stops = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(jobs, jobs, clusters, choices_of_stops)
def test_whatever_comes_no_machine_is_overcommitted_and_all_comes_to_rest(
    first: list[Job], second: list[Job], nodes: list[Node], choices: list[int]
) -> None:
    world = Simulation(first, nodes)
    world.settle(choices)
    world.jobs |= {job.id: job for job in second}
    world.settle(choices)
    world.now += 2 * GROWS_EVERY
    world.settle(choices)


@given(jobs, jobs, clusters, choices_of_stops)
def test_the_head_of_the_queue_starves_only_behind_those_that_may_not_shrink(
    first: list[Job], second: list[Job], nodes: list[Node], choices: list[int]
) -> None:
    """At rest, no head waits that could start if all that may shrink for it had their least."""
    world = Simulation(first, nodes)
    world.settle(choices)
    world.jobs |= {job.id: job for job in second}
    world.settle(choices)
    waiting = [job for job in world.queue if world.possible(job)]
    if not waiting or len(nodes) > 1:  # several machines: what fits depends on who is where
        return
    head = min(waiting, key=lambda job: (-job.priority, job.id))

    shrunk = [
        replace(job, workers=job.resources.min_workers if job.priority <= head.priority else job.workers)
        for job in world.active
    ]
    room = capacity.room(capacity.occupied(nodes, shrunk), Demand.of(head).worker)
    assert room < head.resources.min_workers


@given(jobs, clusters, choices_of_stops)
def test_every_job_that_can_run_does_so_in_the_end(
    queue: list[Job], nodes: list[Node], choices: list[int]
) -> None:
    world = Simulation(queue, nodes)
    for _ in range(len(queue) + 1):
        world.settle(choices)
        world.end_oldest()
        world.now += GROWS_EVERY

    left = [job for job in world.jobs.values() if job.state is not State.SUCCEEDED]
    assert not [job for job in left if world.possible(job)]


@given(jobs, clusters, choices_of_stops)
def test_a_job_never_loses_its_least_share_to_one_that_came_later(
    queue: list[Job], nodes: list[Node], choices: list[int]
) -> None:
    """Jobs come one by one. Whoever has started is at work once all has come to rest."""
    world = Simulation([], nodes)
    for job in queue:
        world.jobs[job.id] = job
        world.settle(choices)
        assert not [job for job in world.queue if job.attempt]

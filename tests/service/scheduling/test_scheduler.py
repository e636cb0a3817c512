from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.scheduling import capacity
from service.scheduling.capacity import Amount, Demand
from service.scheduling.scheduler import Decision, Start, Wait, forecast, schedule
from tests.service.examples import make_job, make_spec

GIB = 2**30


def node(cpus: float = 4, gpus: float = 0, id: str = "a", gib: int = 0, **labels: str) -> Node:
    return Node(id=id, address="10.0.0.1", cpus=cpus, gpus=gpus, memory=gib * GIB, labels=labels)


def active(workers: int, *, cpus: float = 1, gpus: float = 0, **resources: Any) -> Job:
    return make_job(workers, cpus=cpus, gpus=gpus, state=State.RUNNING, granted=workers, **resources)


def decide(queue: Sequence[Job], running: Sequence[Job], nodes: Sequence[Node]) -> list[Decision]:
    return schedule(queue, running, nodes, now=0.0)


def reasons(queue: Sequence[Job], running: Sequence[Job], nodes: Sequence[Node]) -> list[str]:
    """Why each job waits, in scheduling order; "" for one that starts."""
    return [d.reason if isinstance(d, Wait) else "" for d in decide(queue, running, nodes)]


# Who starts


def test_a_job_that_fits_starts_with_all_its_workers() -> None:
    job = make_job(4)

    assert decide([job], [], [node(cpus=4)]) == [Start(job_id=job.id, workers=4)]


def test_a_range_gets_as_many_workers_as_fit() -> None:
    job = make_job({"min": 1, "max": 8})

    assert decide([job], [active(1)], [node(cpus=4)]) == [Start(job_id=job.id, workers=3)]


def test_a_range_gets_whole_groups_of_normalisation() -> None:
    job = make_job({"min": 2, "max": 8}, group=2)

    assert decide([job], [], [node(cpus=5)]) == [Start(job_id=job.id, workers=4)]


def test_jobs_start_by_priority_then_by_age() -> None:
    old, urgent = make_job(3), make_job(3, priority=1)

    assert decide([old, urgent], [], [node(cpus=4)]) == [
        Start(job_id=urgent.id, workers=3),
        Wait(job_id=old.id, reason="needs 3 workers of 1 CPU; 1 CPU free"),
    ]


def test_a_gang_is_spread_over_machines_but_a_worker_is_not() -> None:
    nodes = [node(cpus=3, id="a"), node(cpus=3, id="b")]

    assert reasons([make_job(2, cpus=3)], [], nodes) == [""]
    assert reasons([make_job(3, cpus=2)], [], nodes) != [""]


def test_thirds_of_a_gpu_fill_it() -> None:
    assert reasons([make_job(3, gpus=0.3333)], [], [node(gpus=1)]) == [""]
    assert reasons([make_job(10, cpus=0.1)], [], [node(cpus=1)]) == [""]
    assert reasons([make_job(11, cpus=0.1)], [], [node(cpus=1)]) != [""]


def test_jobs_without_gpus_leave_the_machines_with_gpus_to_the_others() -> None:
    nodes = [node(cpus=2, gpus=1, id="a"), node(cpus=2, id="b")]

    assert reasons([make_job(2), make_job(1, cpus=2, gpus=1)], [], nodes) == ["", ""]


def test_a_job_behind_one_that_waits_does_not_overtake_it() -> None:
    large, small = make_job(4), make_job(1)

    assert reasons([large, small], [active(1)], [node(cpus=4)]) == [
        "needs 4 workers of 1 CPU; 3 CPUs free",
        "waits behind 1 job",
    ]


def test_a_job_that_can_never_fit_holds_up_nobody() -> None:
    hopeless, small = make_job(5), make_job(1)

    decisions = decide([hopeless, small], [], [node(cpus=4)])

    assert decisions[0] == Wait(
        job_id=hopeless.id,
        reason="needs 5 CPUs (5 workers of 1 CPU); the whole cluster has 4: "
        "ask for fewer workers, or add machines",
        never=True,
    )
    assert decisions[1] == Start(job_id=small.id, workers=1)


def test_memory_is_scheduled_as_cpus_are() -> None:
    running = [active(1, memory_per_worker=5 * GIB)]
    large, small = make_job(2, memory_per_worker="3GiB"), make_job(1, memory_per_worker="3GiB")
    huge = make_job(1, memory_per_worker="9GiB")

    assert reasons([small], running, [node(gib=8)]) == [""]
    assert reasons([large, huge], running, [node(gib=8)]) == [
        "needs 2 workers of 3 GiB of memory; 3 GiB of memory free",
        "needs 9 GiB of memory (1 worker of 9 GiB of memory); the whole cluster has 8 GiB: "
        "ask for less, or add machines",
    ]


def test_only_machines_with_a_job_s_labels_run_its_workers() -> None:
    nodes = [node(cpus=4, id="a", zone="north"), node(cpus=2, id="b", zone="south", disk="ssd")]

    def in_zone(zone: str, workers: int = 2) -> Job:
        return make_job(workers, node_labels={"zone": zone})

    assert reasons([in_zone("south"), make_job(4)], [], nodes) == ["", ""]
    assert reasons([in_zone("south")], [active(1, node_labels={"disk": "ssd"})], nodes) == [
        "needs 2 workers of 1 CPU; 1 CPU free on machines with the label zone=south"
    ]
    assert reasons([in_zone("south", 3)], [], nodes) == [
        "needs 3 CPUs (3 workers of 1 CPU); the machines with the label zone=south have 2: "
        "ask for fewer workers, or add machines"
    ]
    assert reasons([in_zone("west")], [], nodes) == [
        "needs machines with the label zone=west; in this cluster zone is north or south"
    ]
    assert reasons([make_job(1, accelerator_type="H100")], [], nodes) == [
        "needs machines with the label ray.io/accelerator-type=H100; no machine has a label "
        "ray.io/accelerator-type; labels are given with `ray start --labels ray.io/accelerator-type=…`"
    ]
    assert reasons([make_job(1, node_labels={"zone": "north", "disk": "ssd"})], [], nodes) == [
        "needs machines with the label disk=ssd and the label zone=north; no machine has all of them"
    ]


def test_jobs_without_labels_are_taken_to_leave_the_machines_with_labels_to_the_others() -> None:
    nodes = [node(cpus=2, id="a", zone="north"), node(cpus=2, id="b")]
    running = [active(2), active(2, node_labels={"zone": "north"})]

    machines = capacity.occupied(nodes, running)

    assert capacity.total(machine.free for machine in machines) == Amount()


def test_workers_of_a_lost_machine_take_what_is_left_of_the_others() -> None:
    assert reasons([make_job(1)], [active(2, cpus=3)], [node(cpus=4)]) == [
        "needs 1 worker of 1 CPU; 0 CPUs free"
    ]


def test_workers_that_the_estimate_finds_no_place_for_are_booked_in_full() -> None:
    nodes = [node(cpus=3, id="a"), node(cpus=3, id="b")]
    running = [active(1, cpus=2), active(1, cpus=2), active(1, cpus=2)]

    machines = capacity.occupied(nodes, running)

    assert capacity.total(machine.free for machine in machines) == Amount()


def test_a_long_queue_on_many_machines_looks_at_each_machine_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, holds = [0], Amount.holds

    def counted(free: Amount, each: Amount) -> int:
        looks[0] += 1
        return holds(free, each)

    nodes = [node(cpus=2, id=f"n{number}") for number in range(50)]
    running, queue = [active(2) for _ in nodes], [make_job(1 + number % 2) for number in range(200)]
    monkeypatch.setattr(Amount, "holds", counted)

    decisions = decide(queue, running, nodes)

    assert all(isinstance(decision, Wait) for decision in decisions)
    assert looks[0] < 50 * len(nodes)


def test_absurd_demands_are_only_too_large() -> None:
    absurd = make_job(4096, cpus=1e5, gpus=5e-324)

    assert isinstance(decide([absurd], [], [node(gpus=1)])[0], Wait)


# Why the others wait


@pytest.mark.parametrize(
    ("job", "nodes", "reason"),
    [
        (make_job(1), [], "no machine in the cluster yet"),
        (
            make_job(8),
            [node(cpus=2)],
            "needs 8 CPUs (8 workers of 1 CPU); the whole cluster has 2: "
            "ask for fewer workers, or add machines",
        ),
        (
            make_job(1, cpus=8),
            [node(cpus=2)],
            "needs 8 CPUs (1 worker of 8 CPUs); the whole cluster has 2: ask for less, or add machines",
        ),
        (
            make_job(1, gpus=0.5),
            [node(cpus=2)],
            "needs 0.5 GPUs (1 worker of 0.5 GPUs); the whole cluster has none: "
            "ask for less, or add machines",
        ),
        (
            make_job({"min": 3, "max": 5}),
            [node(cpus=2)],
            "needs 3 CPUs (at least 3 workers of 1 CPU); the whole cluster has 2: "
            "ask for fewer workers, or add machines",
        ),
        (
            make_job(1, cpus=4),
            [node(cpus=2, id="a"), node(cpus=2, id="b")],
            "needs 1 worker of 4 CPUs; no machine is large enough for one: ask for less, or add machines",
        ),
        (
            make_job(3, cpus=2),
            [node(cpus=3, id="a"), node(cpus=3, id="b")],
            "needs 3 workers of 2 CPUs; the machines have room for 2: ask for less, or add machines",
        ),
        (
            make_job(1, gpus=1),
            [node(cpus=1, id="a"), node(cpus=0, gpus=1, id="b")],
            "needs 1 worker of 1 GPU and 1 CPU; no machine is large enough for one: "
            "ask for less, or add machines",
        ),
    ],
)
def test_a_job_that_can_never_start_says_what_is_missing(job: Job, nodes: list[Node], reason: str) -> None:
    assert reasons([job], [], nodes) == [reason]


def test_a_job_that_waits_says_what_it_needs_what_is_free_and_who_is_ahead() -> None:
    ahead = [make_job(4, gpus=1), make_job(4, gpus=1)]
    nodes = [node(cpus=8, gpus=4)]

    assert reasons([*ahead, make_job(4, gpus=1)], [active(1, gpus=1)], nodes) == [
        "needs 4 workers of 1 GPU; 3 GPUs free",
        "needs 4 workers of 1 GPU; 3 GPUs free; 1 job ahead",
        "needs 4 workers of 1 GPU; 3 GPUs free; 2 jobs ahead",
    ]


def test_enough_in_sum_but_in_pieces_too_small_says_so() -> None:
    nodes = [node(cpus=3, id="a"), node(cpus=3, id="b")]
    running = [active(1, cpus=2), active(1, cpus=2)]

    assert reasons([make_job(1, cpus=2)], running, nodes) == [
        "needs 1 worker of 2 CPUs; 2 CPUs free, with room for 0 workers"
    ]


def test_the_outlook_of_a_spec_is_what_the_scheduler_would_say() -> None:
    spec = make_spec(resources={"workers": {"min": 2, "max": 4}})

    now = forecast(spec, [], [active(1)], [node(cpus=4)], now=0.0)
    later = forecast(spec, [], [active(3)], [node(cpus=4)], now=0.0)
    never = forecast(spec, [], [], [node(cpus=1)], now=0.0)

    assert (now.fits_now, now.fits_ever, now.workers, now.reason) == (True, True, 3, "")
    assert (later.fits_now, later.fits_ever, later.workers) == (False, True, 2)
    assert later.reason == "needs at least 2 workers of 1 CPU; 1 CPU free"
    assert (never.fits_now, never.fits_ever) == (False, False)


# Promises


amounts = st.sampled_from([0.1, 0.25, 0.3333, 0.5, 1, 1.5, 2, 3])
nodes_strategy = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 4, 8]), st.sampled_from([0, 1, 2, 4])), max_size=4
).map(lambda sizes: [node(cpus, gpus, id=f"n{i}") for i, (cpus, gpus) in enumerate(sizes)])
workers_strategy = st.integers(1, 6) | st.tuples(st.integers(1, 4), st.integers(0, 4)).map(
    lambda pair: {"min": pair[0], "max": pair[0] + pair[1]}
)
queue_strategy = st.lists(
    st.builds(
        make_job,
        workers_strategy,
        cpus=amounts,
        gpus=amounts | st.just(0),
        priority=st.integers(-1, 1),
    ),
    max_size=6,
)


def started(queue: Sequence[Job], decisions: Sequence[Decision]) -> Iterator[tuple[Job, int]]:
    by_id = {job.id: job for job in queue}
    return ((by_id[d.job_id], d.workers) for d in decisions if isinstance(d, Start))


def as_active(job: Job, workers: int) -> Job:
    return make_job(
        workers,
        cpus=job.resources.cpus_per_worker,
        gpus=job.resources.gpus_per_worker,
        state=State.RUNNING,
        granted=workers,
    )


@given(queue_strategy, nodes_strategy)
def test_no_machine_is_ever_given_more_than_it_has(queue: list[Job], nodes: list[Node]) -> None:
    machines = capacity.empty(nodes)
    for job, workers in started(queue, decide(queue, [], nodes)):
        machines, unplaced = capacity.place(machines, Demand.of(job).worker, workers)
        assert unplaced == 0

    assert all(m.free.cpus >= 0 and m.free.gpus >= 0 for m in machines)
    for machine, there in zip(machines, sorted(nodes, key=lambda n: n.id), strict=True):
        assert machine.total == Amount.of(there.cpus, there.gpus)


@given(queue_strategy, nodes_strategy)
def test_gangs_lie_as_if_each_had_been_placed_by_itself(running: list[Job], nodes: list[Node]) -> None:
    held = [as_active(job, Demand.of(job).least) for job in running]
    held.sort(key=lambda job: (-job.resources.gpus_per_worker, -job.resources.cpus_per_worker, job.id))
    machines = capacity.empty(nodes)
    for job in held:
        machines, unplaced = capacity.place(machines, Demand.of(job).worker, job.workers or 0)
        machines = capacity._take_in_pieces(machines, Demand.of(job).worker, unplaced)

    assert capacity.occupied(nodes, held) == tuple(sorted(machines, key=lambda machine: machine.id))


@given(queue_strategy, queue_strategy, nodes_strategy)
def test_what_runs_already_and_what_starts_fit_together(
    before: list[Job], queue: list[Job], nodes: list[Node]
) -> None:
    running = [as_active(*pair) for pair in started(before, decide(before, [], nodes))]
    decisions = decide(queue, running, nodes)

    total = capacity.total(Amount.of(n.cpus, n.gpus) for n in nodes)
    used = [Demand.of(job).each * workers for job, workers in started(queue, decisions)]
    used += [Demand.of(job).each * (job.workers or 0) for job in running]
    taken = capacity.total(used)
    assert taken.cpus <= total.cpus
    assert taken.gpus <= total.gpus


@given(queue_strategy, nodes_strategy)
def test_a_gang_starts_whole_or_not_at_all(queue: list[Job], nodes: list[Node]) -> None:
    for job, workers in started(queue, decide(queue, [], nodes)):
        assert job.resources.min_workers <= workers <= job.resources.max_workers


@given(queue_strategy, nodes_strategy)
def test_nobody_overtakes_a_job_that_could_start_some_day(queue: list[Job], nodes: list[Node]) -> None:
    decisions = decide(queue, [], nodes)

    possible = [isinstance(d, Start) for d in decisions if not (isinstance(d, Wait) and d.never)]
    assert possible == sorted(possible, reverse=True)
    by_id = {job.id: job for job in queue}
    order = [by_id[d.job_id] for d in decisions]
    assert len(order) == len(queue)
    assert all((-a.priority, a.id) < (-b.priority, b.id) for a, b in pairwise(order))


@given(queue_strategy, nodes_strategy)
def test_the_first_job_that_could_start_some_day_starts_on_an_empty_cluster(
    queue: list[Job], nodes: list[Node]
) -> None:
    decisions = decide(queue, [], nodes)

    first = next((d for d in decisions if not (isinstance(d, Wait) and d.never)), None)
    assert first is None or isinstance(first, Start)


@given(queue_strategy, nodes_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    queue: list[Job], nodes: list[Node], shuffle: random.Random
) -> None:
    decisions = decide(queue, [], nodes)
    shuffle.shuffle(queue)
    shuffle.shuffle(nodes)

    assert decide(queue, [], nodes) == decisions


@given(queue_strategy, queue_strategy, nodes_strategy)
def test_every_job_that_waits_has_a_reason(queue: list[Job], running: list[Job], nodes: list[Node]) -> None:
    for decision in decide(queue, [as_active(job, job.resources.min_workers) for job in running], nodes):
        assert isinstance(decision, Start) or decision.reason

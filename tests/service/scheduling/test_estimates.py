"""When jobs start, against a scheduler that is asked again after every end of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.jobs.lengths import Length
from service.jobs.sweep import SweepLimits
from service.scheduling import capacity, estimates
from service.scheduling.allocation import fitting
from service.scheduling.estimates import FIRST, Estimate, estimate
from service.scheduling.scheduler import Start, schedule
from tests.service.examples import make_job
from tests.service.scheduling.test_scheduler import node

SWEEPS = {"s" + "0" * 20: SweepLimits(max_running=1), "s" + "1" * 20: SweepLimits(max_running=2)}


def running(workers: int = 1) -> Job:
    return make_job(workers, state=State.RUNNING, granted=workers)


def known(**seconds: float) -> dict[str, Length]:
    return {job_id: Length(seconds=value) for job_id, value in seconds.items()}


def of(job: Job, seconds: float, *, at_most: bool = False) -> dict[str, Length]:
    return {job.id: Length(seconds=seconds, at_most=at_most)}


# Against the scheduler itself


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Job], list[Job], list[Node]]:
    """Jobs of fixed sizes that wait, others that run, and the machines."""
    sizes = st.sampled_from([1, 2, 4])
    nodes = [
        node(cpus=draw(sizes) * 2, gpus=draw(st.sampled_from([0, 1])), id=name, zone=draw(zones()))
        for name in "abc"[: draw(st.integers(1, 3))]
    ]

    def job(state: State) -> Job:
        workers, gpus = draw(st.integers(1, 3)), draw(st.sampled_from([0, 0, 0, 1]))
        labels: dict[str, Any] = {"node_labels": {"zone": draw(zones())}} if draw(st.booleans()) else {}
        granted = None if state is State.QUEUED else workers
        made = make_job(
            workers,
            cpus=draw(st.sampled_from([0.5, 1, 2])),
            gpus=gpus,
            priority=draw(st.integers(-1, 1)),
            state=state,
            granted=granted,
            **labels,
        )
        return replace(made, sweep_id=draw(st.sampled_from([None, None, *SWEEPS])))

    active: list[Job] = []
    for candidate in [job(State.RUNNING) for _ in range(draw(st.integers(0, 5)))]:
        machines = capacity.occupied(nodes, active)
        if fitting(machines)(candidate):
            active.append(candidate)
    return [job(State.QUEUED) for _ in range(draw(st.integers(1, 8)))], active, nodes


def zones() -> st.SearchStrategy[str]:
    return st.sampled_from(["north", "south"])


def replayed(
    queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], seconds: Mapping[str, float]
) -> dict[str, float]:
    """When each job starts, if `schedule` decides at the beginning and whenever a job has ended."""
    now, waiting, starts = 0.0, list(queue), dict[str, float]()
    holds = {job.id: (job, seconds[job.id]) for job in active}
    while True:
        decisions = schedule(waiting, [job for job, _ in holds.values()], nodes, now=now, sweeps=SWEEPS)
        for decision in decisions:
            if isinstance(decision, Start):
                job = next(job for job in waiting if job.id == decision.job_id)
                started = replace(job, state=State.RUNNING, workers=decision.workers)
                holds[job.id], starts[job.id] = (started, now + seconds[job.id]), now
        waiting = [job for job in waiting if job.id not in starts]
        if not holds:
            return starts
        now = min(end for _, end in holds.values())
        holds = {job_id: (job, end) for job_id, (job, end) in holds.items() if end > now}


@settings(deadline=None)
@given(situations(), st.data())
def test_with_exact_lengths_every_start_is_exact(
    situation: tuple[list[Job], list[Job], list[Node]], data: st.DataObject
) -> None:
    queue, active, nodes = situation
    seconds = {job.id: float(data.draw(st.integers(1, 20))) for job in [*queue, *active]}

    found = estimate(queue, active, nodes, lengths=known(**seconds), sweeps=SWEEPS)

    expected = replayed(queue, active, nodes, seconds)
    assert {job_id: each.seconds for job_id, each in found.items() if each.seconds is not None} == expected
    assert found.keys() == {job.id for job in queue}
    assert not any(each.at_latest for each in found.values())


# What it is because of


def test_the_head_starts_when_a_job_ends_and_those_behind_after_those_ahead() -> None:
    active, first, second, third = running(4), make_job(4), make_job(2), make_job(2)
    lengths = of(active, 720) | of(first, 60) | of(second, 1) | of(third, 1)

    found = estimate([first, second, third], [active], [node(cpus=4)], lengths=lengths)

    assert found[first.id] == Estimate(seconds=720, because=f"when job {active.id} ends")
    assert found[second.id] == Estimate(seconds=780, because="after 1 job ahead of it")
    assert found[third.id] == Estimate(seconds=780, because="after 1 job ahead of it")


def test_a_length_that_is_not_known_is_named() -> None:
    active, first, second = running(4), make_job(4), make_job(4)
    unknown = f"the length of job {active.id} is not known"

    found = estimate([first, second], [active], [node(cpus=4)], lengths={})
    assert found == {job.id: Estimate(seconds=None, because=unknown) for job in (first, second)}

    found = estimate([first, second], [active], [node(cpus=4)], lengths=of(active, 9))
    assert found[first.id].seconds == 9
    assert found[second.id] == Estimate(seconds=None, because=f"the length of job {first.id} is not known")


def test_after_a_limit_jobs_start_at_the_latest() -> None:
    active, exact, first, second = running(2), running(2), make_job(4), make_job(4)
    lengths = of(active, 3600, at_most=True) | of(exact, 10) | of(first, 60)

    found = estimate([first, second], [active, exact], [node(cpus=4)], lengths=lengths)

    because = f"when job {active.id} ends"
    assert found[first.id] == Estimate(seconds=3600, because=because, at_latest=True)
    assert found[second.id] == Estimate(seconds=3660, because="after 1 job ahead of it", at_latest=True)


def test_a_job_of_unknown_length_beside_may_end_earlier() -> None:
    unknown, active, head = running(2), running(2), make_job(2)

    found = estimate([head], [unknown, active], [node(cpus=4)], lengths=of(active, 30))

    assert found[head.id] == Estimate(seconds=30, because=f"when job {active.id} ends", at_latest=True)


def test_what_never_fits_is_held_or_is_paused_has_no_moment_and_blocks_nobody() -> None:
    active, large, held, last = running(4), make_job(9), make_job(1), make_job(1)
    paused = replace(make_job(1), sweep_id="s" + "2" * 20)

    found = estimate(
        [large, held, paused, last],
        [active],
        [node(cpus=4)],
        lengths=of(active, 5),
        held={held.id: "waits for MLflow: away"},
        sweeps={"s" + "2" * 20: SweepLimits(paused=True)},
    )

    assert found[large.id] == Estimate(seconds=None, because="it does not fit into the cluster")
    assert found[held.id] == Estimate(seconds=None, because="waits for MLflow: away")
    assert found[paused.id] == Estimate(seconds=None, because=f"sweep {paused.sweep_id} is paused")
    assert found[last.id].seconds == 5


def test_a_job_that_waits_after_a_failure_lets_others_pass_and_starts_then() -> None:
    failed, other = make_job(4), make_job(4)

    found = estimate([failed, other], [], [node(cpus=4)], lengths=of(other, 20), delays={failed.id: 60.0})

    assert found[other.id].seconds == 0
    assert found[failed.id] == Estimate(seconds=60, because="when its wait after a failure ends")


def test_a_job_that_stops_is_soon_gone() -> None:
    stopping, head = replace(running(4), state=State.PAUSING), make_job(4)

    found = estimate([head], [stopping], [node(cpus=4)], lengths=of(stopping, 900))

    assert found[head.id] == Estimate(
        seconds=estimates.SECONDS_TO_STOP, because=f"when job {stopping.id} stops"
    )


def test_a_job_that_shrinks_for_another_takes_longer() -> None:
    elastic = make_job({"min": 2, "max": 8}, state=State.RUNNING, granted=4)
    elastic = replace(elastic, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    head, last = make_job(2), make_job(3)
    lengths = of(elastic, 300) | of(head, 10_000)

    found = estimate([head, last], [elastic], [node(cpus=4)], lengths=lengths)

    assert found[head.id] == Estimate(seconds=0, because="when other jobs have made room for it")
    assert found[last.id].seconds == 10_000
    alone = estimate([head, make_job(2)], [elastic], [node(cpus=4)], lengths=lengths)
    assert [each.seconds for each in alone.values()] == [0, 600]


def test_only_the_head_of_a_long_queue_is_estimated() -> None:
    queue = [make_job(1) for _ in range(FIRST + 3)]

    found = estimate(queue, [], [node(cpus=4)], lengths={job.id: Length(seconds=1) for job in queue})

    assert set(found) == {job.id for job in queue[:FIRST]}
    assert found[queue[FIRST - 1].id].seconds == FIRST // 4 - 1


def test_a_replay_that_would_take_too_long_ends() -> None:
    nodes = [node(cpus=1, id=f"n{number:04}") for number in range(1_000)]
    active = [running() for _ in range(1_000)]
    queue = [make_job(1) for _ in range(FIRST)]
    lengths = {job.id: Length(seconds=number + 1.0) for number, job in enumerate([*active, *queue])}

    found = [*estimate(queue, active, nodes, lengths=lengths).values()]

    done = sum(each.seconds is not None for each in found)
    assert [each.seconds for each in found[:done]] == [number + 1.0 for number in range(done)]
    assert 50 < done < FIRST
    assert {each.because for each in found[done:]} == {f"more than {done} jobs ahead"}

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.jobs.job import Job, State, utc_now
from service.jobs.sweep import SweepLimits
from service.scheduling.scheduler import Decision, Start, Wait, schedule
from tests.service.examples import make_job
from tests.service.scheduling.test_scheduler import node

NOW = utc_now()
SWEEP = "s" + "0" * 20
OTHER = "s" + "1" * 20


def member(sweep: str | None = SWEEP, workers: int = 1, **changes: Any) -> Job:
    return replace(make_job(workers, **changes), sweep_id=sweep)


def running(sweep: str | None = SWEEP) -> Job:
    return member(sweep, state=State.RUNNING, granted=1)


def decide(
    queue: list[Job], active: list[Job], limits: dict[str, SweepLimits], cpus: float = 8
) -> dict[str, Decision]:
    decisions = schedule(queue, active, [node(cpus=cpus)], now=0.0, sweeps=limits)
    return {decision.job_id: decision for decision in decisions}


def test_jobs_beyond_the_limit_wait_and_let_others_pass() -> None:
    first, second, third, other = member(), member(), member(), member(None)

    decisions = decide(
        [first, second, third, other], [running()], {SWEEP: SweepLimits(max_running=2)}, cpus=8
    )

    assert decisions[first.id] == Start(job_id=first.id, workers=1)
    assert decisions[other.id] == Start(job_id=other.id, workers=1)
    reason = f"waits: 1 of at most 2 jobs of sweep {SWEEP} run, and others are first"
    assert decisions[second.id] == Wait(job_id=second.id, reason=reason)
    full = decide([third], [running(), running()], {SWEEP: SweepLimits(max_running=2)})
    assert full[third.id] == Wait(job_id=third.id, reason=f"waits: 2 of at most 2 jobs of sweep {SWEEP} run")


def test_a_paused_sweep_starts_nothing_and_blocks_nothing() -> None:
    held, other = member(workers=8), member(None, workers=8)

    decisions = decide([held, other], [], {SWEEP: SweepLimits(paused=True)})

    assert decisions[held.id] == Wait(job_id=held.id, reason=f"sweep {SWEEP} is paused")
    assert decisions[other.id] == Start(job_id=other.id, workers=8)


def test_a_job_that_never_fits_takes_no_place_of_its_sweep() -> None:
    huge, small = member(workers=100), member()

    decisions = decide([huge, small], [], {SWEEP: SweepLimits(max_running=1)})

    assert isinstance(decisions[small.id], Start)
    assert isinstance(wait := decisions[huge.id], Wait)
    assert wait.never


def test_a_preempted_job_comes_before_others_of_its_sweep() -> None:
    urgent = member(priority=5)
    preempted = replace(member(), preempted_at=NOW, attempt=1)

    decisions = decide([urgent, preempted], [], {SWEEP: SweepLimits(max_running=1)})

    assert isinstance(decisions[preempted.id], Start)
    assert isinstance(decisions[urgent.id], Wait)


_SWEEPS = st.sampled_from([None, SWEEP, OTHER])
_LIMITS = st.builds(SweepLimits, max_running=st.none() | st.integers(1, 4), paused=st.booleans())


@given(
    queue=st.lists(st.tuples(_SWEEPS, st.integers(1, 6), st.integers(-2, 2)), max_size=8),
    active=st.lists(_SWEEPS, max_size=4),
    limits=st.fixed_dictionaries({SWEEP: _LIMITS, OTHER: _LIMITS}),
)
def test_limits_hold_and_without_a_reason_of_theirs_nothing_changes(
    queue: list[tuple[str | None, int, int]], active: list[str | None], limits: dict[str, SweepLimits]
) -> None:
    waiting = [member(sweep, workers, priority=priority) for sweep, workers, priority in queue]
    at_work = [running(sweep) for sweep in active]

    decisions = decide(waiting, at_work, limits)

    assert set(decisions) == {job.id for job in waiting}
    started = [job for job in waiting if isinstance(decisions[job.id], Start)]
    before = Counter(job.sweep_id for job in at_work)
    starting = Counter(job.sweep_id for job in started)
    for sweep, limit in limits.items():
        if starting[sweep]:
            assert not limit.paused
            assert limit.max_running is None or before[sweep] + starting[sweep] <= limit.max_running
    held = [job for job in waiting if f"sweep {job.sweep_id}" in getattr(decisions[job.id], "reason", "")]
    without = decide([job for job in waiting if job not in held], at_work, {})
    assert without == {job_id: each for job_id, each in decisions.items() if job_id in without}

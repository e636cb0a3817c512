"""The limits of sweeps: which queued jobs may not start now, and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from service.jobs.job import Job
from service.jobs.sweep import SweepLimits
from service.scheduling.allocation import in_order


def held(
    queue: Sequence[Job],
    active: Sequence[Job],
    sweeps: Mapping[str, SweepLimits],
    *,
    fits_ever: Callable[[Job], bool],
) -> dict[str, str]:
    """Returns why each job that its sweep holds back has to wait, by job id.

    Of a sweep's queued jobs the first ones, in scheduling order, take the places that its running jobs leave;
    preempted ones come before all others, because they have begun. A job that never fits takes no place.
    """
    if not sweeps:
        return {}
    running = Counter(job.sweep_id for job in active)
    first: Counter[str | None] = Counter()
    reasons: dict[str, str] = {}
    for job in sorted(in_order(queue), key=lambda job: job.preempted_at is None):
        limits = sweeps.get(job.sweep_id) if job.sweep_id is not None else None
        if limits is None:
            continue
        if limits.paused:
            reasons[job.id] = f"sweep {job.sweep_id} is paused"
        elif limits.max_running is not None and fits_ever(job):
            if running[job.sweep_id] + first[job.sweep_id] < limits.max_running:
                first[job.sweep_id] += 1
            else:
                reasons[job.id] = _full(job.sweep_id, limits.max_running, running[job.sweep_id])
    return reasons


def _full(sweep_id: str | None, most: int, running: int) -> str:
    limit = f"of at most {most} job{'' if most == 1 else 's'} of sweep {sweep_id}"
    if running >= most:
        return f"waits: {running} {limit} run{'s' if running == 1 else ''}"
    return f"waits: {running} {limit} run, and others are first"

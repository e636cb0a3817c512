"""When a job that does not exist yet would start. Pure, but for the time of day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from service.backends.cluster import Node
from service.jobs.expected import ExpectedStart, expected_in
from service.jobs.job import Job, new_job, utc_now
from service.jobs.lengths import History, Succeeded, of_active, of_queued, ran_so_far
from service.jobs.sweep import SweepLimits
from service.scheduling.allocation import in_order
from service.scheduling.estimates import FIRST, TOO_FAR, estimate
from training.spec import Spec


def expected_start(
    spec: Spec,
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node],
    sweeps: Mapping[str, SweepLimits],
    ended: Iterable[Succeeded],
) -> ExpectedStart:
    """Returns when a job of this spec would start if it were submitted now.

    ended: the last jobs that succeeded.
    """
    now, history = utc_now(), History(ended)
    job = new_job(spec, created_at=now)
    first = in_order([*queue, job])[:FIRST]
    if job not in first:
        return ExpectedStart(at=None, because=TOO_FAR)
    history.set_running((each, ran_so_far(each, now)) for each in active)
    lengths = {each.id: of_active(each, ran_so_far(each, now), history) for each in active}
    lengths |= {each.id: of_queued(each, history) for each in first}
    found = estimate(
        first,
        active,
        nodes,
        lengths={job_id: length for job_id, length in lengths.items() if length is not None},
        delays={
            each.id: (each.not_before - now).total_seconds()
            for each in first
            if each.backoff_seconds and each.not_before is not None
        },
        sweeps=sweeps,
    )[job.id]
    return expected_in(found.seconds, found.because, now, at_latest=found.at_latest)

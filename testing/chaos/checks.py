"""What must be true after a run, whatever happened in it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from service.dispatcher.runs import END_STATUS
from service.jobs.job import Job, State
from testing.chaos.machines import Record, Start
from testing.chaos.plan import overlap


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known after a run.

    acknowledged: ids by key, as clients were told. jobs: the rows. keys: ids by key, as the database has
    them. cancelled: jobs with a cancel request. writes: of each scheduler's transaction, its number and the
    one in force. runs: of each run in the tracking server, its job and end status.
    """

    submissions: int
    acknowledged: Mapping[str, Collection[str]]
    jobs: Sequence[Job]
    keys: Mapping[str, str]
    cancelled: Collection[str]
    record: Record
    writes: Sequence[tuple[int, int]]
    runs: Mapping[str, tuple[str, str]]


def lost(evidence: Evidence) -> list[str]:
    """Jobs that are not there although they were acknowledged, never acknowledged, or ended in a state that
    their history does not explain.
    """
    there = {job.id for job in evidence.jobs}
    starts = _starts_by_job(evidence.record)
    missing = [
        f"{job_id} ({key}) was acknowledged and is not there"
        for key, job_ids in evidence.acknowledged.items()
        for job_id in job_ids
        if job_id not in there
    ]
    unanswered = evidence.submissions - len(evidence.acknowledged)
    silent = [f"{unanswered} submissions were never acknowledged"] if unanswered else []
    ended = [job for job in evidence.jobs if job.state.ended]
    unexplained = [
        f"{job.id}: {why}" for job in ended if (why := _unexplained(job, starts[job.id], evidence))
    ]
    return missing + silent + unexplained


def doubled(evidence: Evidence) -> list[str]:
    """Keys with two jobs, jobs without a key, and jobs that ran twice at once or did the same work again."""
    acknowledged = {key: set(ids) for key, ids in evidence.acknowledged.items()}
    several = [f"{key} has the jobs {sorted(ids)}" for key, ids in acknowledged.items() if len(ids) > 1]
    others = [
        f"{key} is job {job_id}, another one than was acknowledged"
        for key, job_id in evidence.keys.items()
        if acknowledged.get(key, {job_id}) != {job_id}
    ]
    keyless = len(evidence.jobs) - len(evidence.keys)
    more = [f"{keyless} jobs belong to no key"] if keyless else []
    at_once = [
        f"{job_id} ran twice at once: {starts}"
        for job_id, starts in _starts_by_job(evidence.record).items()
        if overlap([(start.begun, start.ended) for start in starts])
    ]
    return [*several, *others, *more, *at_once, *evidence.record.wrong]


def stuck(evidence: Evidence) -> list[str]:
    """Jobs that have not ended, attempts that hold their machines."""
    jobs = [f"{job.id} is {job.state}: {job.reason}" for job in evidence.jobs if not job.state.ended]
    return jobs + [f"attempt {name} is not released" for name in evidence.record.left]


def left_in_mlflow(evidence: Evidence) -> list[str]:
    """Runs that are not ended as their jobs are."""
    states = {job.id: job.state for job in evidence.jobs}
    return [
        f"run {run_id} of {job_id}, which is {states.get(job_id)}, is {status or 'running'}"
        for run_id, (job_id, status) in evidence.runs.items()
        if (state := states.get(job_id)) is None or (state.ended and status != END_STATUS[state])
    ]


def stale(evidence: Evidence) -> list[str]:
    """Writes and orders of a scheduler that did not hold the lease any more."""
    writes = [
        f"scheduler {number} wrote while {in_force or 'none'} was in force"
        for number, in_force in evidence.writes
        if number != in_force
    ]
    numbers = evidence.record.numbers
    orders = [
        f"an order of scheduler {later} was obeyed after one of {earlier}"
        for earlier, later in pairwise(numbers)
        if later < earlier
    ]
    return writes + orders


def _starts_by_job(record: Record) -> defaultdict[str, list[Start]]:
    starts = defaultdict[str, list[Start]](list)
    for start in record.starts:
        starts[start.job].append(start)
    return starts


def _unexplained(job: Job, starts: Sequence[Start], evidence: Evidence) -> str:
    """Returns why the job cannot have ended in its state, or ""."""
    finished = [start for start in starts if start.end == "finished"]
    if finished and job.state is not State.SUCCEEDED:
        return f"{finished[0].name} finished, and the job is {job.state}"
    if job.state is State.SUCCEEDED and not finished:
        return "it has succeeded, and no start has finished"
    if job.state is State.CANCELLED and job.id not in evidence.cancelled:
        return f"nobody cancelled it: {job.reason}"
    if job.state is State.FAILED and (not starts or starts[-1].end not in {"killed", "lost"}):
        return f"no rank of its last start failed: {job.reason}"
    failures = sum(start.end in {"killed", "lost"} for start in starts)
    if job.state is State.FAILED and failures <= job.spec["retries"]:
        return f"it failed after {failures} lost starts: {job.reason}"
    return ""

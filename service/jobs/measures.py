"""What a change of a job's state adds to the totals that operators see. Pure.

The totals only grow, so that Prometheus can compute rates from them. They are written in the transaction of
the change itself: nothing is counted twice, and nothing is lost by a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.jobs.failures import class_of
from service.jobs.job import ACTIVE, STOPPING, Job, State
from training.protocol import Failure

JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 12 * 3_600, 86_400, 3 * 86_400, 7 * 86_400)
"""Upper bounds of the buckets for waiting and running times."""
ROUND_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the buckets for rounds of the scheduler."""

WAITING, RUNNING, ENDS = "job_waiting_seconds", "job_running_seconds", "job_ends"
RESTARTS, DEVICE_SECONDS = "job_restarts", "device_seconds"
ROUNDS, ROUND_ERRORS = "scheduler_round_seconds", "scheduler_round_errors"
START_ERROR = "start_estimate_error_seconds"
HOSTS_JOINED, HOSTS_LOST = "hosts_joined", "hosts_lost"
"""Names of totals. Those of a histogram are stored with _bucket and _sum appended."""

LONGEST_VALUE = 80
"""Maximum length of a label's value; the rest is cut."""


@dataclass(frozen=True, kw_only=True)
class Addition:
    """A number to add to the total with this name and these labels."""

    name: str
    value: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)


def observed(name: str, value: float, bounds: Sequence[float], **labels: str) -> list[Addition]:
    """Returns what a value adds to a histogram: one to its bucket, and itself to the sum."""
    bound = next((f"{bound:g}" for bound in bounds if value <= bound), "+Inf")
    return [
        Addition(name=f"{name}_bucket", labels={**labels, "le": bound}),
        Addition(name=f"{name}_sum", value=value, labels=labels),
    ]


def failure_class(failure: Failure | None) -> str:
    """Returns the class of a failure; "none" if there was none."""
    return "none" if failure is None else class_of(failure)


def of_move(job: Job, to: State, changes: Mapping[str, Any], now: datetime) -> list[Addition]:
    """Returns what the move of `job` to another state adds. changes: the columns that it writes."""
    return [
        *_of_waiting(job, to, now),
        *_of_time(job, changes),
        *_of_retry(job, to, changes),
        *_of_end(job, to, changes),
    ]


def of_restart(job: Job, changes: Mapping[str, Any]) -> list[Addition]:
    """Returns what a restart in place adds."""
    restart = Addition(name=RESTARTS, labels={"class": failure_class(changes.get("last_failure"))})
    return [restart, *_of_time(job, changes)]


def _of_waiting(job: Job, to: State, now: datetime) -> Iterator[Addition]:
    if to is State.STARTING and job.attempt == 0:
        yield from observed(WAITING, max((now - job.created_at).total_seconds(), 0.0), JOB_SECONDS)


def _of_time(job: Job, changes: Mapping[str, Any]) -> Iterator[Addition]:
    """The time of the start that has ended now, on all of its devices."""
    seconds = changes.get("ran_seconds", job.ran_seconds) - job.ran_seconds
    if seconds <= 0 or not job.workers:
        return
    gpus, cpus = job.resources.gpus_per_worker, job.resources.cpus_per_worker
    yield Addition(
        name=DEVICE_SECONDS,
        value=seconds * job.workers * (gpus or cpus),
        labels={"device": "gpu" if gpus else "cpu", "user": _user(job), "experiment": _experiment(job)},
    )


def _of_retry(job: Job, to: State, changes: Mapping[str, Any]) -> Iterator[Addition]:
    if to is State.PREEMPTING:
        yield Addition(name=RESTARTS, labels={"class": "preempted"})
    elif to is State.QUEUED and job.state in ACTIVE - STOPPING:  # lost, whether it uses a retry or not
        yield Addition(name=RESTARTS, labels={"class": failure_class(changes.get("last_failure"))})


def _of_end(job: Job, to: State, changes: Mapping[str, Any]) -> Iterator[Addition]:
    if not to.ended:
        return
    failure = changes.get("last_failure") if to is State.FAILED else None
    yield Addition(name=ENDS, labels={"state": to, "class": failure_class(failure)})
    ran = changes.get("ran_seconds", job.ran_seconds)
    if ran > 0:
        yield from observed(RUNNING, ran, JOB_SECONDS, state=to)


def _user(job: Job) -> str:
    user = getattr(job, "user", None) or (job.spec.get("source") or {}).get("user")
    return str(user or "")[:LONGEST_VALUE]


def _experiment(job: Job) -> str:
    return str(job.spec["tracking"]["experiment"] or "")[:LONGEST_VALUE]

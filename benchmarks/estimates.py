"""How good the estimates of starts are: a queue of small jobs of varied lengths, watched until they start.

The estimates are those that a user reads in `GET /v1/queue`, once a second.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from benchmarks import jobs
from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.servers import embedded_stack
from service.client import Client, Job

JOBS, QUICK_JOBS = 24, 6
STEPS = (30, 60, 120, 240)
"""Numbers of steps of which each job has one."""
SEED = 0
EVERY_SECONDS = 1.0
LONGEST_SECONDS = 1800.0
FIRST, EVERY, LAST = "first estimate", "all estimates", "last estimate"


@dataclass(frozen=True, kw_only=True)
class Read:
    """An estimate as it was read. left: the seconds until the start that it says."""

    read_at: datetime
    left: float

    def error(self, start: datetime) -> float:
        """Returns by how many seconds it was wrong."""
        return abs((start - self.read_at).total_seconds() - self.left)

    def relative_error(self, start: datetime) -> float:
        """Returns its error as a part of the time that the job still waited."""
        return self.error(start) / max((start - self.read_at).total_seconds(), EVERY_SECONDS)


def measure(options: Options) -> Result:
    number = QUICK_JOBS if options.quick else JOBS
    with progress("estimates", 1) as shown:
        shown.doing("starting the service")
        with embedded_stack() as stack, Client(stack.api_url) as client:
            shown.doing(f"running {number} jobs")
            ended, reads = _watched(client, number)
            starts = _starts(client, ended)
            shown.doing("ending it")
    return _result(ended, starts, reads)


def _watched(client: Client, number: int) -> tuple[list[Job], Mapping[str, list[Read]]]:
    """Runs the jobs; returns them as they ended, and what was read about each while it waited."""
    lengths = random.Random(SEED).choices(STEPS, k=number)
    submitted = [client.submit(_spec(steps)).id for steps in lengths]
    reads: defaultdict[str, list[Read]] = defaultdict(list)
    deadline = time.monotonic() + LONGEST_SECONDS
    while any(not client.job(job_id).ended for job_id in submitted):
        if time.monotonic() > deadline:
            raise RuntimeError("the jobs have not ended")
        for job in client.queue():
            start, now = job.expected_start, datetime.now(UTC)
            if start is not None and start.at is not None and not start.at_latest:
                reads[job.id].append(Read(read_at=now, left=(start.at - now).total_seconds()))
        time.sleep(EVERY_SECONDS)
    ended = [client.job(job_id) for job_id in submitted]
    if failed := [job for job in ended if job.state != "succeeded"]:
        raise RuntimeError(f"job {failed[0].id} is {failed[0].state}: {failed[0].reason}")
    return ended, reads


def _spec(steps: int) -> Any:
    return jobs.digits(
        "name=estimated",
        "resources.workers=1",
        f"training.max_steps={steps}",
        "training.max_epochs=-1",
        "tracking.experiment=estimates",
    )


def _starts(client: Client, ended: Sequence[Job]) -> dict[str, datetime]:
    """Returns when the scheduler has launched each job."""
    return {
        job.id: next(event.at for event in client.events(job.id) if event.state == "starting")
        for job in ended
    }


def _result(ended: Sequence[Job], starts: Mapping[str, datetime], reads: Mapping[str, list[Read]]) -> Result:
    pairs: dict[str, list[tuple[Read, datetime]]] = {FIRST: [], EVERY: [], LAST: []}
    for job_id, start in starts.items():
        before = [read for read in reads.get(job_id, ()) if read.read_at < start]
        if before:
            pairs[FIRST].append((before[0], start))
            pairs[LAST].append((before[-1], start))
            pairs[EVERY] += [(read, start) for read in before]
    waits = [(starts[job.id] - job.created_at).total_seconds() for job in ended]
    samples: dict[str, dict[str, list[float]]] = {"error, s": {}, "error, part of the waiting time": {}}
    for which, found in pairs.items():
        if found:
            errors, relative = samples.values()
            errors[which] = [read.error(start) for read, start in found]
            relative[which] = [read.relative_error(start) for read, start in found]
    rows = [
        (measure, which, f"{median(values):.2f}", f"{_ninetieth(values):.2f}", str(len(values)))
        for measure, contestants in samples.items()
        for which, values in contestants.items()
    ]
    return Result(
        title="Estimates of starts",
        columns=("measure", "of", "median", "90th percentile", "number"),
        rows=rows,
        samples=samples,
        notes=[
            f"{len(ended)} jobs of recipes/digits.yaml with one worker of 1 CPU and "
            f"{', '.join(map(str, STEPS[:-1]))} or {STEPS[-1]} steps, drawn with seed {SEED}, all "
            "submitted at once under one name. No job of this name has run before, so the first estimates "
            "come when the first jobs train.",
            f"GET /v1/queue is read every {EVERY_SECONDS:g} s; an estimate of a start at the latest does "
            f"not count. {len(pairs[FIRST])} of {len(ended)} jobs had an estimate before they started; jobs "
            f"waited {median(waits):.0f} s in the median and {max(waits):.0f} s at most.",
            "A start is the moment at which the scheduler launches the job. The error as a part of the "
            "waiting time: of the time from the reading to the start, taken as at least "
            f"{EVERY_SECONDS:g} s.",
        ],
    )


def _ninetieth(values: Sequence[float]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]

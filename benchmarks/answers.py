"""Response times of the API while jobs train, and while MLflow is stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from statistics import median

import httpx
import psutil

from benchmarks import jobs, processes
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import Stack, embedded_stack
from benchmarks.trials import Contestant, in_turns, runs
from service.client import Client

JOBS, CPUS = 4, 0.5
REQUESTS, QUICK_REQUESTS = 300, 30
OURS, WITHOUT = "ours", "while MLflow is stopped"
MEDIAN, WORST = "GET /v1/jobs/{id}, median, ms", "GET /v1/jobs/{id}, worst, ms"
NOTES = (
    f"{JOBS} jobs of recipes/digits.yaml with one worker of {CPUS:g} CPUs each train without end. One client "
    "on the same cores requests their documents in turns, {requests} times a run.",
    f"{WITHOUT}: SIGSTOP was sent to all its processes, so it accepts connections and answers none. "
    "Contestants run in turns, after an uncounted warm-up of each (none with --quick).",
)


def measure(options: Options) -> Result:
    requests = QUICK_REQUESTS if options.quick else REQUESTS
    with progress("answers", runs([OURS, WITHOUT], options)) as shown:
        shown.doing("starting the service")
        with embedded_stack() as stack, _training(stack, shown.doing) as ids:
            contestants: dict[str, Contestant] = {
                OURS: lambda: _asked(stack, ids, requests),
                WITHOUT: lambda: _asked_while_stopped(stack, ids, requests),
            }
            found = in_turns(shown, contestants, options)
            shown.doing("ending it")
    samples = {
        f"{prefix}{measure}": {OURS: found[measure][who]}
        for who, prefix in ((OURS, ""), (WITHOUT, f"{WITHOUT}: "))
        for measure in (MEDIAN, WORST)
    }
    notes = [note.format(requests=requests) for note in NOTES]
    return comparison("Answers", samples, reference=None, notes=notes)


@contextmanager
def _training(stack: Stack, doing: Callable[[str], None]) -> Iterator[list[str]]:
    """Yields the ids of the jobs."""
    resources = f"resources={{workers: 1, cpus_per_worker: {CPUS}}}"
    with Client(stack.api_url) as client:
        spec = jobs.digits(jobs.ENDLESS, resources, "tracking.experiment=answers")
        ids = [client.submit(spec).id for _ in range(JOBS)]
        try:
            for number, job_id in enumerate(ids, start=1):
                jobs.until_it_trains(client, job_id)
                doing(f"{number} of {JOBS} jobs train")
            yield ids
        finally:
            for job_id in ids:
                jobs.end(client, job_id)


def _asked_while_stopped(stack: Stack, ids: list[str], requests: int) -> Mapping[str, float]:
    mlflow = processes.by_kind(processes.look(stack.roots()))["MLflow"]
    with _stopped([process.pid for process in mlflow]):
        return _asked(stack, ids, requests)


@contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    try:
        for pid in pids:
            psutil.Process(pid).send_signal(signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGCONT)


def _asked(stack: Stack, ids: list[str], requests: int) -> Mapping[str, float]:
    # No certificates for http: loading them would take longer than many requests.
    with httpx.Client(
        base_url=stack.api_url, auth=stack.auth, timeout=60.0, trust_env=False, verify=False
    ) as client:
        times = [_milliseconds(client, f"/v1/jobs/{job_id}") for job_id in islice(cycle(ids), requests)]
    return {MEDIAN: median(times), WORST: max(times)}


def _milliseconds(client: httpx.Client, path: str) -> float:
    begun = time.perf_counter()
    client.get(path).raise_for_status()
    return 1000 * (time.perf_counter() - begun)

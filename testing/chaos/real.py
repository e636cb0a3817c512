"""The part on a real stack: `syncbn up` with its Ray, MLflow and host agent, whose jobs really train.

All jobs train the same network from the same seed on one or two workers, so whatever hits them, those that
succeed have the same loss in the end. Whether a job trained twice at once is seen by that alone here.
"""

from __future__ import annotations

import enum
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from service.client import Client, ClientError, Job
from service.client.retry import Retry
from service.embedded.processes import marked, sweep
from service.ports import free_port
from testing.chaos.clients import Clients, commanding

_STEPS = 30
_RETRIES = 100
_KEY = "chaos"
_SECONDS_TO_START = 240.0
_SECONDS_TO_CALM = 300.0
_LIKE_ROUNDING = 1e-3
_END_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class RealFault(enum.StrEnum):
    """A kind of fault; its value: what it does, and the words on the command line of the process."""

    KILL_UP = "`syncbn up`, which is the API, is killed"
    KILL_SCHEDULER = "the scheduler is killed"
    KILL_AGENT = "the host agent is killed"
    KILL_RANK = "a rank is killed"
    STOP_SCHEDULER = "the scheduler is stopped and continued"
    STOP_NODE = "Ray's node is stopped and continued"
    STOP_MLFLOW = "MLflow is stopped and continued"


_WORDS = {
    RealFault.KILL_SCHEDULER: ("service.dispatcher.process",),
    RealFault.STOP_SCHEDULER: ("service.dispatcher.process",),
    RealFault.KILL_AGENT: ("ray::", "HostAgent"),
    RealFault.STOP_NODE: ("raylet/raylet",),
    RealFault.STOP_MLFLOW: ("mlflow",),
}


_STOPS = {RealFault.STOP_SCHEDULER, RealFault.STOP_NODE, RealFault.STOP_MLFLOW}


@dataclass(frozen=True, kw_only=True)
class RealResult:
    """What came of a run on a real stack."""

    seed: int
    faults: Counter[RealFault]
    clients: Clients
    jobs: Sequence[Job]
    runs: Mapping[str, tuple[str, str]]
    left: Sequence[str]
    seconds: float

    @property
    def rows(self) -> list[tuple[str, object]]:
        states = Counter(job.state for job in self.jobs)
        return [
            ("seed", self.seed),
            ("seconds", round(self.seconds)),
            *((f"fault: {kind}", count) for kind, count in sorted(self.faults.items())),
            *((f"command: {verb}", count) for verb, count in sorted(self.clients.commands.items())),
            ("requests to submit", self.clients.sent),
            ("of them without an answer", self.clients.unanswered),
            ("jobs acknowledged", len(self.clients.jobs)),
            ("jobs", len(self.jobs)),
            *((f"jobs {state}", count) for state, count in sorted(states.items())),
            ("attempts", sum(job.attempt for job in self.jobs)),
            ("failures that cost a start", sum(job.failures for job in self.jobs)),
        ]

    @property
    def findings(self) -> dict[str, list[str]]:
        """Everything that is wrong, by the column of the table."""
        jobs, acknowledged = {job.id: job for job in self.jobs}, self.clients.jobs
        several = [f"{key} has the jobs {sorted(ids)}" for key, ids in acknowledged.items() if len(ids) > 1]
        known = {job_id for ids in acknowledged.values() for job_id in ids}
        unended = [f"{job.id} is {job.state}: {job.reason}" for job in self.jobs if not job.ended]
        return {
            "lost": [f"{job_id} is not there" for job_id in known - jobs.keys()]
            + [f"{job.id} is {job.state}: {job.reason}" for job in self.jobs if self._is_unexplained(job)],
            "doubled": several + [f"{job_id} belongs to no key" for job_id in jobs.keys() - known],
            "other losses": self._other_losses(),
            "stuck": unended + [f"process {what} is left" for what in self.left],
            "left in MLflow": [
                f"run {run_id} of {job_id} is {status}"
                for run_id, (job_id, status) in self.runs.items()
                if (job := jobs.get(job_id)) is None or _END_STATUS.get(job.state, status) != status
            ],
            "wrong answers": [f"{count}x {what}" for what, count in self.clients.wrong.items()],
        }

    @property
    def good(self) -> bool:
        return not any(self.findings.values())

    def _is_unexplained(self, job: Job) -> bool:
        if job.state == "succeeded":
            return job.progress is None or job.progress.step != _STEPS
        return job.state == "failed" or (job.state == "cancelled" and job.id not in self.clients.cancelled)

    def _other_losses(self) -> list[str]:
        losses = {job.id: job.metrics.get("train_loss") for job in self.jobs if job.state == "succeeded"}
        usual = statistics.median([loss or math.nan for loss in losses.values()] or [math.nan])
        return [
            f"{job_id} ended with a loss of {loss}, and others with {usual}"
            for job_id, loss in losses.items()
            if loss is None or not math.isclose(loss, usual, rel_tol=_LIKE_ROUNDING)
        ]


class RealStack:
    """A `syncbn up` on a folder, which is started again when it has been killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self._mlflow_port = folder, free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it unless it runs; does not wait."""
        if self._up is not None and self._up.poll() is None:
            return
        syncbn = Path(sys.executable).with_name("syncbn")
        ports = ["--port", str(self.port), "--mlflow-port", str(self._mlflow_port)]
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("SYNCBN_", "RAY_", "MLFLOW_"))}
        variables = inherited | {"SYNCBN_API_KEY": _KEY, "OMP_NUM_THREADS": "1"}
        with (self.folder / "up.log").open("ab") as log:
            command = [str(syncbn), "up", "--data-dir", str(self.folder), *ports]
            self._up = subprocess.Popen(command, env=variables, stdout=log, stderr=log)

    def wait(self) -> None:
        """Blocks until it is ready."""
        retry = Retry(_SECONDS_TO_START)
        with Client(self.url, _KEY) as client:
            while True:
                try:
                    client.ready()
                except ClientError as error:
                    retry.back_off(error)
                else:
                    return

    def hit(self, kind: RealFault, chance: Random) -> list[psutil.Process]:
        """Kills or stops what the fault is about; returns the processes that it hit, if any is there."""
        if kind is RealFault.KILL_UP:
            assert self._up is not None
            hit = psutil.Process(self._up.pid)
            self._up.kill()
            self._up.wait()
            return [hit]
        if kind is RealFault.KILL_RANK:
            ranks = self.ranks()
            found = [chance.choice(ranks)] if ranks else []
        else:
            found = [each for each in marked(self.folder) if _is(each, *_WORDS[kind])]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.suspend() if kind in _STOPS else process.kill()
        return found

    def ranks(self) -> list[psutil.Process]:
        """Returns the ranks, which are forked from a server below the host agent."""
        with suppress(psutil.NoSuchProcess):
            return [
                rank
                for agent in marked(self.folder)
                if _is(agent, *_WORDS[RealFault.KILL_AGENT])
                for server in agent.children(recursive=True)
                if _is(server, "multiprocessing.forkserver")
                for rank in server.children()
            ]
        return []

    def runs(self) -> dict[str, tuple[str, str]]:
        """Returns the job and status of every run in MLflow."""
        url = f"http://127.0.0.1:{self._mlflow_port}/api/2.0/mlflow/"
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as mlflow:
            found = mlflow.post("experiments/search", json={"max_results": 100}).raise_for_status().json()
            ids = [each["experiment_id"] for each in found["experiments"]]
            body = {"experiment_ids": ids, "max_results": 10_000}
            runs = mlflow.post("runs/search", json=body).raise_for_status().json().get("runs", [])
        return {
            run["info"]["run_id"]: (tags["syncbn.job"], run["info"]["status"])
            for run in runs
            if "syncbn.job" in (tags := {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])})
        }

    def end(self) -> None:
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._up.wait(120)
            self._up.kill()
        sweep(self.folder)


def run_real(folder: Path, *, seed: int, jobs: int, seconds: float, every: float) -> RealResult:
    """Blocks until all jobs have been submitted and have ended. every: seconds between two faults."""
    began, stack = time.monotonic(), RealStack(folder)
    clients = Clients([stack.url], seed, _spec)
    try:
        stack.start()
        stack.wait()
        clients.submit(jobs, sends=3, seconds=seconds)
        _wait_for_ranks(stack)  # faults before there are any would hit nothing that trains
        with commanding(clients, seed, every=seconds / jobs / 2):
            hit = _let_happen(stack, clients, seed, seconds, every)
        ended = _calm(stack, clients)
        left = [f"{rank.pid}" for rank in stack.ranks()]
        runs = stack.runs()
    finally:
        clients.stop()
        stack.end()
    seconds = time.monotonic() - began
    return RealResult(
        seed=seed, faults=hit, clients=clients, jobs=ended, runs=runs, left=left, seconds=seconds
    )


def _wait_for_ranks(stack: RealStack) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not stack.ranks() and time.monotonic() < deadline:
        time.sleep(0.2)


def real_faults(seed: int) -> Iterator[tuple[RealFault, float, Random]]:
    """Yields faults without end: what, for how many seconds, and what chooses its target. Pure."""
    chance = Random(f"real faults {seed}")
    while True:
        for kind in chance.sample(list(RealFault), len(RealFault)):
            yield kind, chance.uniform(2.0, 8.0), chance


def _let_happen(
    stack: RealStack, clients: Clients, seed: int, seconds: float, every: float
) -> Counter[RealFault]:
    begun, hit = time.monotonic(), Counter[RealFault]()
    for kind, lasts, chance in real_faults(seed):
        time.sleep(every)
        if time.monotonic() > begun + seconds and clients.have_submitted():
            return hit
        found = stack.hit(kind, chance)
        with _continued(found if kind in _STOPS else [], lasts):
            hit[kind] += bool(found)
        stack.start()
    raise AssertionError


@contextmanager
def _continued(stopped: Sequence[psutil.Process], seconds: float) -> Iterator[None]:
    """Lets stopped processes go on after these seconds."""
    try:
        yield
        if stopped:
            time.sleep(seconds)
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _calm(stack: RealStack, clients: Clients) -> list[Job]:
    """Waits until every job has ended and is archived, or nothing has changed for some minutes."""
    seen, deadline, jobs = "", time.monotonic() + _SECONDS_TO_CALM, list[Job]()
    with Client(stack.url, _KEY) as client:
        while time.monotonic() < deadline:
            time.sleep(1.0)
            stack.start()
            try:
                jobs = list(client.jobs())
                running = "RUNNING" in {status for _, status in stack.runs().values()}
                clients.resume_all([job.id for job in jobs if job.state == "paused"])
            except (ClientError, httpx.HTTPError):
                continue
            if all(job.ended for job in jobs) and not running and not stack.ranks():
                break
            now = str([(job.id, job.state, job.attempt, job.progress) for job in jobs])
            if now != seen:
                seen, deadline = now, time.monotonic() + _SECONDS_TO_CALM
    return jobs


def _is(process: psutil.Process, *words: str) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return all(word in line for word in words)


def _spec(number: int, seed: int) -> dict[str, Any]:
    random = Random(f"real spec {seed} {number}")
    return {
        "name": f"chaos-{number}",
        "model": {"class_path": "training.models.ConvNet", "init_args": {"widths": [8, 16]}},
        "data": {"class_path": "training.data.Digits"},
        "training": {"global_batch_size": 64, "max_steps": _STEPS, "checkpoint": {"every_steps": 10}},
        "resources": {
            "workers": random.choice((1, 2, {"min": 1, "max": 2})),
            "cpus_per_worker": 0.5,
        },
        "retries": _RETRIES,
    }

"""Memory on the head: of Ray's own processes and of what each running job has there. Real jobs, real Ray."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

from benchmarks.capacity import rows
from benchmarks.progress import Progress
from benchmarks.result import Result
from benchmarks.servers import Stack, embedded_stack
from service.client import Client
from service.processes import marked
from service.ray_jobs import RayJobs
from training.spec import load_yaml, override

RUNNING, QUICK_RUNNING = (1, 2, 4), (1,)
SECONDS_TO_TRAIN = 480.0
REST_SECONDS = 5.0  # for what only starts a job to end
QUESTIONS = 50
ON_THE_HEAD = {
    "training.attempt": "driver",
    "ray::JobSupervisor": "its supervisor",
    "ray::TrainController": "Ray Train's controller",
    "ray::PlacementGroupCleaner": "Ray Train's cleaner",
    "ray::SynchronizationActor": "Ray Train's meeting point",
    "ray::DatasetManager": "Ray Train's data manager",
}
"""What each running job has there: what stands in the command line, and a name."""
OTHERS = {
    "ray::RayTrainWorker": "worker",
    "ray::_AutoscalingCoordinatorActor": "Ray's autoscaling coordinator",
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "dashboard": "dashboard",
    "ray::DashboardAgent": "agents",
    "ray::RuntimeEnvAgent": "agents",
    "ray::IDLE": "idle workers",
    "mlflow": "MLflow",
}
SHELL = "/bin/sh -c"
NOTES = (
    "`syncbn up`, and on it jobs of recipes/digits.yaml with one worker of 0.1 CPUs that train without end. "
    "Memory in MiB: what is a process's own (USS), and with its share of what it has in common with others "
    "(PSS): PSS adds up, so a machine needs the sum. Medians over the jobs.",
    "On the head: the driver, its supervisor, and of Ray Train what it puts beside the driver. A worker's "
    "memory is that of the machine it is on, in a cluster not the head.",
    f"Answers: {QUESTIONS} questions, one after the other, while all jobs run on the same two cores.",
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """In MiB."""

    uss: float
    pss: float


def runs(*, quick: bool) -> int:
    return 1 + len(QUICK_RUNNING if quick else RUNNING)


def measure(shown: Progress, *, quick: bool) -> list[Result]:
    memory: list[tuple[str, ...]] = []
    with embedded_stack() as stack, Client(stack.api_url) as client:
        shown.done("the stack is up")
        _add(memory, 0, _processes(stack))
        jobs: list[str] = []
        for wanted in QUICK_RUNNING if quick else RUNNING:
            shown.doing(f"{wanted} jobs train")
            jobs += [client.submit(_spec()).id for _ in range(wanted - len(jobs))]
            _until_all_train(client, jobs)
            time.sleep(REST_SECONDS)
            _add(memory, wanted, _processes(stack))
            shown.done(f"{wanted} jobs train")
        answers = _answers(stack, client, jobs)
        shown.doing("ending the stack")
    return [
        Result(
            title="Memory",
            columns=(
                "jobs that run",
                "process",
                "count",
                "USS each, MiB",
                "PSS each, MiB",
                "PSS in all, MiB",
            ),
            rows=memory,
            notes=NOTES[:2],
        ),
        Result(title="Answers", columns=("what", "median, ms", "most, ms"), rows=answers, notes=NOTES[2:]),
    ]


def _spec() -> Any:
    changes = [
        "training.max_epochs=100000",
        "resources={workers: 1, cpus_per_worker: 0.1}",
        "tracking.experiment=capacity",
    ]
    return override(load_yaml(rows.RECIPE.read_text()), changes)


def _until_all_train(client: Client, jobs: list[str]) -> None:
    deadline = time.monotonic() + SECONDS_TO_TRAIN
    for id in jobs:
        while (job := client.job(id)).progress is None:
            if job.finished_at is not None or time.monotonic() > deadline:
                raise RuntimeError(f"job {id} does not train: {job.state}, {job.reason}")
            time.sleep(0.5)


def _processes(stack: Stack) -> Mapping[str, list[Memory]]:
    """By what they are: the memory of each process of the stack but that of the service itself."""
    found: dict[str, list[Memory]] = defaultdict(list)
    for process in _below(marked(stack.folder)):
        try:
            memory, command = process.memory_full_info(), " ".join(process.cmdline())
        except psutil.Error:  # gone
            continue
        found[_name(command)].append(Memory(uss=memory.uss / 2**20, pss=memory.pss / 2**20))
    return found


def _below(processes: Iterable[psutil.Process]) -> Iterable[psutil.Process]:
    """Them and their descendants: a process that gives itself a long title loses what marks it."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return found.values()


def _name(command: str) -> str:
    if command.startswith(SHELL):  # of the driver: a megabyte
        return "other"
    known = (name for part, name in (ON_THE_HEAD | OTHERS).items() if part in command)
    return next(known, "other")


def _add(table: list[tuple[str, ...]], running: int, processes: Mapping[str, list[Memory]]) -> None:
    for name in dict.fromkeys([*ON_THE_HEAD.values(), *OTHERS.values(), "other"]):
        if each := processes.get(name):
            row = (median(m.uss for m in each), median(m.pss for m in each), sum(m.pss for m in each))
            table.append((str(running), name, str(len(each)), *(f"{mib:.0f}" for mib in row)))
    if running:
        own = [memory for name in ON_THE_HEAD.values() for memory in processes[name]]
        uss, pss = sum(m.uss for m in own) / running, sum(m.pss for m in own) / running
        row = (uss, pss, pss * running)
        table.append(
            (str(running), "all that a job has on the head", str(running), *(f"{m:.0f}" for m in row))
        )


def _answers(stack: Stack, client: Client, jobs: list[str]) -> list[tuple[str, ...]]:
    ray = RayJobs(stack.ray_url, stack.ray_token)
    questions: dict[str, Callable[[], object]] = {
        "Ray: the state of an attempt, as each round asks for each job": lambda: ray.status(f"{jobs[0]}-1"),
        "Ray: its machines, as each round asks once": ray.nodes,
        "GET /v1/jobs/{id} of a job that trains": lambda: client.job(jobs[0]),
    }
    try:
        return [(what, *_times(ask)) for what, ask in questions.items()]
    finally:
        ray.close()


def _times(ask: Callable[[], object]) -> tuple[str, str]:
    times = []
    for _ in range(QUESTIONS):
        begun = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - begun))
    return f"{median(times):.1f}", f"{max(times):.1f}"

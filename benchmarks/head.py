"""Memory and CPU of an idle stack, and of a running job without its ranks.

The peers are bare Ray and, with `--before`, an earlier version.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks import jobs, processes
from benchmarks.peers.bare_ray import ROOT, BareRay, bare_ray
from benchmarks.processes import FORK_SERVER, RANK, SUPERVISOR, Seen
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import embedded_stack
from benchmarks.trials import BEFORE, EARLIER, Contestant, in_turns, runs
from service.client import Client

PEER = ROOT / "benchmarks" / "peers" / "ray_ddp.py"
OURS, BARE = "ours", "bare Ray"
WORKERS, STEPS, FOREVER = 2, 300, 10**9
IDLE_SECONDS, QUICK_IDLE_SECONDS = 30.0, 3.0
REST_SECONDS = 10.0  # lets processes that only start or end a job finish
IDLE, IDLE_CPU = "memory of an idle stack, MiB", "CPU of an idle stack, % of a core"
A_RANK, BESIDE = "memory of a rank, MiB", "memory of a running job without its ranks, MiB"
ADDED = "memory that a running job adds to the machine, including its ranks, MiB"
NOTES = (
    "Each run starts a new stack and first runs recipes/digits.yaml to its end. Then the stack idles for "
    "{seconds:g} s, in which CPU is counted (user and system, of all its processes). Then the recipe trains "
    f"without end on {WORKERS} workers.",
    "Memory is PSS: a process's private memory and its share of shared pages, so that the sum is what a "
    "machine needs.",
    "Without its ranks: the increase of all other processes (PSS), and the private memory of the job's "
    "supervisor (USS). Pages that ranks and supervisor share with the fork server existed before, so a job "
    "adds less than the sum of its ranks' PSS.",
    f"{OURS} and {BEFORE}: API, scheduler, Ray and MLflow. {BARE}: only Ray with its dashboard, on which "
    "Ray Jobs and TorchTrainer train the same (benchmarks/peers/ray_ddp.py).",
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running stack.

    roots: its processes; all others are their descendants. train: runs the recipe until it ends. training: a
    context in which the recipe trains without end.
    """

    roots: Callable[[], Sequence[psutil.Process]]
    train: Callable[[], object]
    training: Callable[[], AbstractContextManager[object]]


def measure(options: Options) -> Result:
    seconds = QUICK_IDLE_SECONDS if options.quick else IDLE_SECONDS
    idle: dict[str, list[Seen]] = {}
    stacks: dict[str, Callable[[], AbstractContextManager[Running]]] = {OURS: _service, BARE: _bare}
    if options.before is not None:
        stacks[BEFORE] = partial(_service, options.before)
    contestants: dict[str, Contestant] = {
        name: partial(_measured, stack, seconds, name, idle) for name, stack in stacks.items()
    }
    # No warm-up, because each run starts a new stack.
    with progress("head", runs(contestants, options, warm_up=False)) as shown:
        samples = in_turns(shown, contestants, options, warm_up=False)
    notes = [note.format(seconds=seconds) for note in NOTES] + [EARLIER] * (BEFORE in stacks)
    whole = comparison("The head", samples, reference=BARE, notes=notes)
    parts = [_table(name, found) for name, found in idle.items()]
    return Result(**{**vars(whole), "parts": parts})


def _measured(
    stack: Callable[[], AbstractContextManager[Running]],
    seconds: float,
    name: str,
    idle: dict[str, list[Seen]],
) -> Mapping[str, float]:
    with stack() as running:
        running.train()
        time.sleep(REST_SECONDS)
        begun = time.monotonic()
        before = processes.look(running.roots())
        time.sleep(seconds)
        idle[name] = without = processes.look(running.roots())
        busy = processes.cpu(without) - processes.cpu(before)
        share = 100 * busy / (time.monotonic() - begun)
        with running.training():
            time.sleep(REST_SECONDS)
            with_it = processes.look(running.roots())
    ranks = processes.by_kind(with_it)[RANK]
    return {
        IDLE: processes.pss(without),
        IDLE_CPU: share,
        A_RANK: median(rank.pss for rank in ranks),
        BESIDE: beside_ranks(with_it) - beside_ranks(without),
        ADDED: processes.pss(with_it) - processes.pss(without),
    }


def beside_ranks(found: Sequence[Seen]) -> float:
    """Returns the memory, in MiB, of all processes that are no ranks and share no pages with ranks."""
    kinds = processes.by_kind(found)
    others = {kind: each for kind, each in kinds.items() if kind not in {RANK, SUPERVISOR, FORK_SERVER}}
    return sum(map(processes.pss, others.values())) + processes.uss(kinds.get(SUPERVISOR, []))


def _table(name: str, found: Sequence[Seen]) -> Result:
    rows = [
        (
            kind,
            str(len(each)),
            f"{processes.uss(each):.0f}",
            f"{processes.pss(each):.0f}",
        )
        for kind, each in sorted(
            processes.by_kind(found).items(), key=lambda item: processes.pss(item[1]), reverse=True
        )
    ]
    columns = ("process", "count", "USS, MiB", "PSS, MiB")
    return Result(title=f"An idle stack: {name}", columns=columns, rows=rows)


@contextmanager
def _service(checkout: Path | None = None) -> Iterator[Running]:
    with embedded_stack(checkout) as stack, Client(stack.api_url) as client:

        @contextmanager
        def training() -> Iterator[None]:
            job = client.submit(jobs.digits(f"resources.workers={WORKERS}", jobs.ENDLESS))
            try:
                jobs.until_it_trains(client, job.id)
                yield
            finally:
                jobs.end(client, job.id)

        def train() -> None:
            job = client.submit(jobs.digits(f"resources.workers={WORKERS}"))
            jobs.until_it_succeeds(client, job.id)

        yield Running(roots=stack.roots, train=train, training=training)


@contextmanager
def _bare() -> Iterator[Running]:
    with bare_ray() as ray:

        @contextmanager
        def training() -> Iterator[None]:
            name = _submit(ray, FOREVER)
            try:
                ray.wait_for_word(name, "first_step")
                yield
            finally:
                ray.stop(name)

        yield Running(roots=ray.roots, train=lambda: ray.wait(_submit(ray, STEPS)), training=training)


def _submit(ray: BareRay, steps: int) -> str:
    options = f"--steps {steps} --workers {WORKERS} --storage {ray.folder / 'peer'}"
    return ray.submit(f"{sys.executable} {PEER} {options}")

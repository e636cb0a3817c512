"""Recovery times: from a rank's death until its step is repeated, and from a command to its effect.

The peer of the first is Ray Train's restart; the commands are pause, resume and resize.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import jobs, stamps
from benchmarks.peers.bare_ray import BareRay, bare_ray
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import Stack, embedded_stack
from benchmarks.stamps import Stamp
from benchmarks.trials import Contestant, in_turns, runs
from benchmarks.uploaded import stamped
from service.client import Client

WORKERS, STEPS, DIES_AT, EVERY, BATCH = 2, 40, 25, 10, 64
LONG = 300
"""Steps of the job that gets commands: more than it ever does."""
TRAINED = 5
"""Steps between two commands."""
OURS, PEER, COMMANDS = "ours", "Ray Train's restart", "commands"
AGAIN, NEW = (
    "SIGKILL of a rank until its step is repeated, s",
    "SIGKILL of a rank until the first new step, s",
)
PAUSED, RESUMED = "pause until the workers are released, s", "resume until the next step, s"
SHRUNK, GROWN = (
    "resize from 2 workers to 1, until the first step, s",
    "resize from 1 worker to 2, until the first step, s",
)
NOTES = (
    f"ResNet-18, {stamped.WIDTH} channels wide, Fashion-MNIST, {WORKERS} workers, global batch {BATCH}; a "
    f"checkpoint every {EVERY} steps. In step {DIES_AT} rank 1 kills itself with SIGKILL.",
    "Until rank 0's first forward pass after that, which repeats step "
    f"{DIES_AT - DIES_AT % EVERY + 1}; and until its first forward pass of step {DIES_AT + 1}, which is new.",
    f"{PEER}: TorchTrainer with max_failures, checkpoints by ray.train.report, no Lightning "
    "(benchmarks/peers/ray_restart.py), on a separate Ray that runs beside the service. Contestants run in "
    "turns, after a warm-up run of each (none with --quick).",
    "Commands: from the request until polling every 0.1 s returns `paused`, or until the first forward pass "
    "with the new number of workers. A resize is a checkpoint of the running attempt, a new placement and a "
    "start. Ray Train has no such commands.",
)


def measure(options: Options) -> Result:
    saves: list[float] = []
    with progress("recovery", runs([OURS, PEER, COMMANDS], options)) as shown:
        shown.doing("starting the service and Ray")
        with embedded_stack() as stack, bare_ray() as ray, Client(stack.api_url) as client:
            service = _Service(stack, client)
            contestants: dict[str, Contestant] = {
                OURS: lambda: _after_death(service.killed()),
                PEER: partial(_peer, ray, count()),
                COMMANDS: lambda: service.commanded(saves),
            }
            samples = dict(in_turns(shown, contestants, options))
            shown.doing("ending them")
    for measured in (PAUSED, RESUMED, SHRUNK, GROWN):
        samples[measured] = {OURS: samples[measured][COMMANDS]}
    cost = f"A checkpoint takes {1000 * median(saves):.0f} ms of this: it makes its step that much longer."
    return comparison("Recovery", samples, reference=PEER, notes=[*NOTES, cost])


def _after_death(path: Path) -> Mapping[str, float]:
    ((_, death, _),) = stamps.read(path.with_suffix(".died"))
    after = [stamp for stamp in stamps.read(path) if stamp.seconds > death]
    again = next(stamp for stamp in after if stamp.step < DIES_AT)
    new = next(stamp for stamp in after if stamp.step > DIES_AT)
    return {AGAIN: again.seconds - death, NEW: new.seconds - death}


class _Service:
    """Runs jobs whose steps are stamped."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._folder, self._client = stack.folder, client
        self._code = jobs.upload(client)
        self._numbers = count()

    def killed(self) -> Path:
        """Runs a job that loses a rank; returns the path of its stamps."""
        path = self._path()
        job = self._client.submit(self._spec(path, WORKERS, STEPS, die_at=DIES_AT))
        jobs.until_it_succeeds(self._client, job.id)
        return path

    def commanded(self, saves: list[float]) -> Mapping[str, float]:
        """Pauses, resumes and resizes a job; appends the cost of its checkpoints to `saves`."""
        path = self._path()
        job = self._client.submit(self._spec(path, {"min": 1, "max": WORKERS}, LONG))
        try:
            self._trained(job.id, path, steps=2 * EVERY + 1)
            begun = time.monotonic()
            self._client.pause(job.id)
            jobs.until(self._client, job.id, lambda job: job.state == "paused")
            measured = {PAUSED: time.monotonic() - begun}
            measured[RESUMED] = self._seconds_to_step(job.id, path, self._client.resume, WORKERS)
            for measure, workers in ((SHRUNK, 1), (GROWN, WORKERS)):
                self._trained(job.id, path, steps=TRAINED)
                resize = partial(self._client.resize, workers=workers)
                measured[measure] = self._seconds_to_step(job.id, path, resize, workers)
        finally:
            jobs.end(self._client, job.id)
        seconds = stamps.seconds_by_step(stamps.read(path), after=TRAINED)
        saves.append(stamps.seconds_of_a_save(seconds, every=EVERY))
        return measured

    def _seconds_to_step(
        self, job_id: str, path: Path, command: Callable[[str], object], workers: int
    ) -> float:
        begun = time.monotonic()
        command(job_id)
        found: list[Stamp] = []

        def has_begun(_job: object) -> bool:
            found.extend(filter(None, [stamps.first_after(stamps.read(path), begun, workers=workers)]))
            return bool(found)

        jobs.until(self._client, job_id, has_begun)
        return found[0].seconds - begun

    def _trained(self, job_id: str, path: Path, *, steps: int) -> None:
        """Blocks until `steps` more steps have begun and the job is running."""
        before = len(stamps.read(path))
        jobs.until(
            self._client,
            job_id,
            lambda job: job.state == "running" and len(stamps.read(path)) >= before + steps,
        )

    def _path(self) -> Path:
        return self._folder / f"stamps-{next(self._numbers)}"

    def _spec(self, path: Path, workers: Any, steps: int, **more: Any) -> Mapping[str, Any]:
        return {
            "model": {"class_path": "stamped.Stamped", "init_args": {"path": str(path), **more}},
            "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": BATCH * steps}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
            "training": {
                "global_batch_size": BATCH,
                "max_steps": steps,
                "checkpoint": {"every_steps": EVERY, "every_minutes": None},
            },
            "resources": {"workers": workers, "cpus_per_worker": 1},
            "tracking": {"experiment": "recovery"},
            "code": self._code,
        }


def _peer(ray: BareRay, numbers: Iterator[int]) -> Mapping[str, float]:
    folder = ray.folder / f"peer-{next(numbers)}"
    folder.mkdir()
    config = {
        "stamps": str(folder / "stamps"),
        "storage": str(folder),
        "die_at": DIES_AT,
        "every": EVERY,
        "steps": STEPS,
        "samples": BATCH * STEPS,
        "global_batch_size": BATCH,
        "workers": WORKERS,
    }
    ray.wait(ray.submit(f"{sys.executable} -m benchmarks.peers.ray_restart '{json.dumps(config)}'"))
    return _after_death(folder / "stamps")

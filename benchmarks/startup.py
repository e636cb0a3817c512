"""Seconds from a job's submission to its first training step and to its end: the service, and bare Ray.

Both run the same network on the same data on the same Ray, in turns.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import Stack, embedded_stack
from service.client import Client
from training.spec import load_yaml, override

RECIPE = Path(__file__).parent.parent / "training" / "recipes" / "digits.yaml"
PEER = Path(__file__).parent / "peers" / "ray_ddp.py"
WORKERS = 2
STEPS = 20  # one epoch
POLL_SECONDS = 0.1
REST_SECONDS = 5.0  # between two runs, for the processes of the last one to go
LONGEST_SECONDS = 300.0

NOTES = (
    f"{WORKERS} workers of 1 CPU, {STEPS} steps (one epoch) of the ConvNet of recipes/digits.yaml, "
    "global batch 64.",
    "The first step's end is stamped by rank 0: in the service's runs it is the timestamp of the first "
    "train_loss in MLflow, in the peer's a printed time.time().",
    f"The end is when asking every {POLL_SECONDS} s says so: state succeeded in the service, SUCCEEDED in "
    "Ray Jobs.",
    "The service's runs also synchronize BatchNorm, write metrics to MLflow, validate, save a checkpoint, "
    "test, and log the model and its curves; the peer (benchmarks/peers/ray_ddp.py) only trains.",
    "In turns on one stack, after a warm-up run of each that is not counted (none with --quick).",
)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds since the submission."""

    first_step: float
    end: float

    def __str__(self) -> str:
        return f"first step after {self.first_step:.1f} s, end after {self.end:.1f} s"


def measure(options: Options) -> Result:
    contestants: dict[str, Callable[[Stack], Times]] = {"service": run_service, "bare Ray": run_peer}
    warm_ups = 0 if options.quick else 1
    runs = (warm_ups + options.repeats) * len(contestants)
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with progress("startup", runs) as shown:
        shown.doing("starting the stack")
        with embedded_stack() as stack:
            for repeat, (name, run) in product(range(-warm_ups, options.repeats), contestants.items()):
                shown.doing(name)
                times = run(stack)
                shown.done(f"{name}{' (warm-up)' if repeat < 0 else ''}: {times}")
                if repeat >= 0:
                    samples["submit to first step, s"][name].append(times.first_step)
                    samples["submit to end, s"][name].append(times.end)
                time.sleep(REST_SECONDS)
            shown.doing("ending the stack")
    return comparison("Start-up of a small job", samples, reference="bare Ray", notes=NOTES)


def run_service(stack: Stack) -> Times:
    """A job of the service, to its end. Raises RuntimeError when it does not succeed."""
    with Client(stack.api_url) as client:
        submitted = time.time()
        job = client.submit(_spec())
        job = client.wait(job.id, timeout=LONGEST_SECONDS, poll=POLL_SECONDS)
        end = time.time()
        if job.state != "succeeded":
            raise RuntimeError(f"the service's job {job.state}: {job.reason}")
        first = min(client.metrics(job.id, ["train_loss"]), key=lambda point: point.step)
    return Times(first_step=first.timestamp / 1000 - submitted, end=end - submitted)


def _spec() -> Any:
    return override(
        load_yaml(RECIPE.read_text()),
        [
            "training.max_epochs=null",
            f"training.max_steps={STEPS}",
            f"resources.workers={WORKERS}",
            "tracking.experiment=startup",
        ],
    )


def run_peer(stack: Stack) -> Times:
    """A bare Ray job, to its end. Raises RuntimeError when it does not succeed."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(stack.ray_url, headers={"Authorization": f"Bearer {stack.ray_token}"})
    options = f"--steps {STEPS} --workers {WORKERS} --storage {stack.folder / 'peer'}"
    submitted = time.time()
    name = client.submit_job(entrypoint=f"python {PEER} {options}")
    status = _wait_for_end(client, name)
    end = time.time()
    output = client.get_job_logs(name)
    first = re.search(r"first_step (\d+\.\d+)", output)
    if status != "SUCCEEDED" or first is None:
        raise RuntimeError(f"the peer's job {status}; its log ends:\n{output[-2000:]}")
    return Times(first_step=float(first[1]) - submitted, end=end - submitted)


def _wait_for_end(client: Any, name: str) -> str:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (status := client.get_job_status(name)).is_terminal():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the peer's job is still {status} after {LONGEST_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    return str(status.value)

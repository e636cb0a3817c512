"""Seconds from a job's submission to its first training step and to its end, for the service and bare Ray.

Both run the same network on the same data with the same batches, in turns.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import jobs
from benchmarks.peers.bare_ray import ROOT, BareRay, bare_ray
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import SYNCBN, Stack, embedded_stack, environment, folder_of_our_own, seconds_of
from benchmarks.trials import Contestant, in_turns, runs
from service.client import Client

PEER = ROOT / "benchmarks" / "peers" / "ray_ddp.py"
WORKERS, STEPS = 2, 300
OURS, BARE, SHELL = "ours", "bare Ray", "syncbn train"
FIRST_STEP, END, FROM_SHELL = "submit to first step, s", "submit to end, s", "from its start to its exit, s"
NOTES = (
    f"recipes/digits.yaml unchanged: {WORKERS} workers of 1 CPU, {STEPS} steps, global batch 64. The service "
    "also synchronizes BatchNorm, writes each step's metrics to MLflow, validates, saves checkpoints, tests, "
    f"and logs model and curves. {BARE}: only the same network, data and steps with Ray Jobs and "
    "TorchTrainer (benchmarks/peers/ray_ddp.py), on a separate Ray that runs beside the service.",
    "Rank 0 stamps the end of the first step: the service by the timestamp of the first train_loss in "
    f"MLflow, the peer by a printed time.time(). The end is found by polling every {jobs.POLL_SECONDS} s: "
    "state succeeded in the service, SUCCEEDED in Ray Jobs.",
    f"{SHELL}: the same recipe without a service, until the command exits; nothing runs before it.",
    "Contestants run in turns, after an uncounted warm-up run of each (none with --quick).",
)


def measure(options: Options) -> Result:
    contestants: dict[str, Contestant] = {}
    with progress("startup", runs([OURS, BARE, SHELL], options)) as shown:
        shown.doing("starting the service and Ray")
        with embedded_stack() as stack, bare_ray() as ray:
            contestants = {
                OURS: lambda: run_service(stack),
                BARE: lambda: run_peer(ray),
                SHELL: run_from_shell,
            }
            samples = in_turns(shown, contestants, options)
            shown.doing("ending them")
    return comparison("Start-up of a small job", samples, reference=BARE, notes=NOTES)


def run_service(stack: Stack) -> Mapping[str, float]:
    """Runs a job of the service until it ends."""
    with Client(stack.api_url) as client:
        submitted = time.time()
        job = jobs.until_it_succeeds(client, client.submit(_spec()).id)
        end = time.time()
        first = min(client.metrics(job.id, ["train_loss"]), key=lambda point: point.step)
    return {FIRST_STEP: first.timestamp / 1000 - submitted, END: end - submitted}


def _spec() -> Any:
    return jobs.digits(f"resources.workers={WORKERS}", "tracking.experiment=startup")


def run_peer(ray: BareRay) -> Mapping[str, float]:
    """Runs a bare Ray job until it ends."""
    options = f"--steps {STEPS} --workers {WORKERS} --storage {ray.folder / 'peer'}"
    submitted = time.time()
    name = ray.submit(f"{sys.executable} {PEER} {options}")
    ray.wait(name)
    end = time.time()
    output = ray.log(name)
    first = re.search(r"first_step (\d+\.\d+)", output)
    if first is None:
        raise RuntimeError(f"the peer's job printed no first step; its log ends:\n{output[-2000:]}")
    return {FIRST_STEP: float(first[1]) - submitted, END: end - submitted}


def run_from_shell() -> Mapping[str, float]:
    with folder_of_our_own() as folder:
        command = [SYNCBN, "train", str(jobs.RECIPE), "--output", str(folder / "output")]
        return {FROM_SHELL: seconds_of(command, folder, environment())}

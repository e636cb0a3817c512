"""A job with much output: completeness of its log, its cost, and the time to read the last lines."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from statistics import median
from typing import NamedTuple

import httpx

from benchmarks import jobs, stamps
from benchmarks.peers.bare_ray import ROOT, BareRay, bare_ray
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import Stack, embedded_stack
from benchmarks.trials import Contestant, in_turns, runs
from benchmarks.uploaded.printing import LINE_BYTES, line
from service.client import Client

PEER = ROOT / "benchmarks" / "peers" / "ray_ddp.py"
STEPS, QUICK_STEPS = 250, 20
LINES = 4_000  # per step
TAIL, TAILS, PEER_TAILS = 100, 50, 3
OURS, FILE, BARE = "ours", "into a file", "bare Ray"
TRAINING, MISSING = "training, s", "printed lines missing from the log, %"
TAIL_TIME = f"last {TAIL} lines, median, ms"
NOTES = (
    "recipes/digits.yaml on one worker, {steps} steps, each of which prints "
    f"{LINES:,} lines of {LINE_BYTES} bytes: {{megabytes:.0f}} MB. Training: from the start of the first "
    "step to the start of the last.",
    f"{FILE}: our same training, but it writes the same lines, also flushed one by one, into its own file.",
    f"{BARE}: one worker of TorchTrainer that prints the same in each step of the same network "
    "(benchmarks/peers/ray_ddp.py), with deduplication and print patch off; the log of its job in Ray Jobs. "
    "Its training is a different one and is not timed.",
    "Missing: counted in the API's answer after the job has ended, without other lines. Ours is 0.00 only if "
    "the SHA-256 of these lines equals that of the printed ones.",
    f"Last {TAIL} lines: GET /v1/jobs/{{{{id}}}}/logs?tail={TAIL}, {TAILS} times, after the job has ended. "
    f"Ray Jobs only returns the whole log: get_job_logs, {PEER_TAILS} times.",
)


def measure(options: Options) -> Result:
    steps = QUICK_STEPS if options.quick else STEPS
    with progress("logs", runs([OURS, FILE, BARE], options)) as shown:
        shown.doing("starting the service and Ray")
        with embedded_stack() as stack, bare_ray() as ray, Client(stack.api_url) as client:
            numbers = count()
            trained = partial(_trained, stack, client, jobs.upload(client), steps, numbers)
            contestants: dict[str, Contestant] = {
                OURS: lambda: _printed(stack, trained(), steps),
                FILE: lambda: {TRAINING: trained(into_file=True).seconds},
                BARE: lambda: _peer(ray, steps),
            }
            samples = in_turns(shown, contestants, options)
            shown.doing("ending them")
    notes = [note.format(steps=steps, megabytes=steps * LINES * LINE_BYTES / 1e6) for note in NOTES]
    return comparison("Jobs with much output", samples, reference=FILE, notes=notes)


class _Trained(NamedTuple):
    job_id: str
    seconds: float


def _trained(
    stack: Stack, client: Client, code: str, steps: int, numbers: Iterator[int], *, into_file: bool = False
) -> _Trained:
    """Runs a job and returns its id and the duration of its training."""
    number = next(numbers)
    path, file = stack.folder / f"stamps-{number}", stack.folder / f"printed-{number}"
    arguments = {"stamps": str(path), "lines": LINES, "path": str(file) if into_file else None}
    spec = jobs.digits("training.max_epochs=null", f"training.max_steps={steps}", "resources.workers=1")
    model = {"class_path": "printing.Printing", "init_args": arguments}
    job = jobs.until_it_succeeds(client, client.submit({**spec, "model": model, "code": code}).id)
    file.unlink(missing_ok=True)
    made = stamps.read(path)
    return _Trained(job.id, made[-1].seconds - made[0].seconds)


def _printed(stack: Stack, trained: _Trained, steps: int) -> Mapping[str, float]:
    path = f"/v1/jobs/{trained.job_id}/logs"
    with httpx.Client(base_url=stack.api_url, auth=stack.auth, timeout=120.0, trust_env=False) as http:
        with http.stream("GET", path) as answer:
            answer.raise_for_status()
            missing = share_missing(whole_lines(answer.iter_bytes()), steps * LINES)
        tails = [
            _milliseconds(lambda: http.get(path, params={"tail": TAIL}).raise_for_status())
            for _ in range(TAILS)
        ]
    return {TRAINING: trained.seconds, MISSING: 100 * missing, TAIL_TIME: median(tails)}


def _peer(ray: BareRay, steps: int) -> Mapping[str, float]:
    options = f"--steps {steps} --workers 1 --lines {LINES} --storage {ray.folder / 'peer'}"
    name = ray.submit(f"{sys.executable} {PEER} {options}")
    ray.wait(name)
    found = len(set(re.findall(r"printed (\d{9}) \.+", ray.log(name))))
    tails = [_milliseconds(lambda: ray.log(name)) for _ in range(PEER_TAILS)]
    return {MISSING: 100 * (1 - found / (steps * LINES)), TAIL_TIME: median(tails)}


def whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields each line with its newline; skips text after the last newline."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (each + b"\n" for each in lines)


def share_missing(lines: Iterable[bytes], printed: int) -> float:
    """Returns the fraction of the `printed` lines that is missing. Raises RuntimeError if none is missing but
    the bytes differ.
    """
    digest, found = hashlib.sha256(), 0
    for each in lines:
        if each.startswith(b"printed "):
            digest.update(each)
            found += 1
    expected = hashlib.sha256(b"".join(line(number).encode() for number in range(printed)))
    if found == printed and digest.digest() != expected.digest():
        raise RuntimeError("the log has as many lines as were printed, but others")
    return 1 - found / printed


def _milliseconds(ask: Callable[[], object]) -> float:
    begun = time.perf_counter()
    ask()
    return 1000 * (time.perf_counter() - begun)

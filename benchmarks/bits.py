"""Time of a step and memory with `training.reproducible: bits`, beside the usual mode, on 1 and 2 workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import stamps
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.uploaded import stamped

STEPS, QUICK_STEPS, WARM_UP = 40, 14, 8
LONGEST_SECONDS = 600
BATCH = 64
HERE = Path(__file__).parents[1]
CURVE, BITS = "curve", "bits"
NOTES = (
    f"ResNet-18, {stamped.WIDTH} channels wide, Fashion-MNIST, global batch {BATCH}, float32, SGD with "
    "momentum; processes of one thread under torchrun, joined by gloo. curve: the usual mode; bits: "
    "`training.reproducible: bits`, with the default of 4 shards.",
    f"Milliseconds a step: the median of rank 0, by the start times of its forward passes, without {WARM_UP} "
    "warm-up steps. Memory: the peak of rank 0's resident set. Contestants run in turns.",
)


def measure(options: Options) -> Result:
    steps = QUICK_STEPS if options.quick else STEPS
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    contests = [(workers, mode) for workers in (1, 2) for mode in (CURVE, BITS)]
    with (
        progress("bits", len(contests) * options.repeats) as shown,
        tempfile.TemporaryDirectory(prefix="bits-") as folder,
    ):
        for repeat in range(options.repeats):
            for workers, mode in contests:
                what = f"{mode}, {workers} workers"
                shown.doing(what)
                where = Path(folder) / f"{repeat}-{workers}-{mode}"
                milliseconds, mebibytes = _run(mode, workers, steps, where)
                samples[f"ms a step, workers: {workers}"][mode].append(milliseconds)
                samples[f"peak memory, MiB, workers: {workers}"][mode].append(mebibytes)
                shown.done(f"{what}: {milliseconds:.0f} ms a step, {mebibytes:.0f} MiB")
    return comparison("Training to the last bit", samples, reference=CURVE, notes=NOTES)


def _run(mode: str, workers: int, steps: int, folder: Path) -> tuple[float, float]:
    """Returns the milliseconds of a step, and the peak memory in MiB."""
    folder.mkdir()
    path = folder / "stamps"
    spec: dict[str, Any] = {
        "model": {"class_path": "benchmarks.uploaded.stamped.Stamped", "init_args": {"path": str(path)}},
        "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": BATCH * steps}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "training": {"global_batch_size": BATCH, "max_steps": steps, "reproducible": mode},
    }
    train(spec, workers, folder)
    # A step has a forward pass for each shard; it begins with the first.
    first = {stamp.step: stamp for stamp in reversed(stamps.read(path))}
    seconds = stamps.seconds_by_step([first[step] for step in sorted(first)], after=WARM_UP)
    return 1000 * median(seconds.values()), int((folder / "peak").read_text()) / 1024


def train(spec: dict[str, Any], workers: int, folder: Path, who: str = "ours") -> None:
    """Trains a spec under torchrun. who: see `torchrun_rank`.

    Raises RuntimeError, with the end of what was printed, if that fails.
    """
    script = HERE / "benchmarks" / "peers" / "torchrun_rank.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), who, json.dumps(spec), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{folder.name} failed:\n{done.stderr[-3000:]}")

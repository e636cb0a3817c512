"""Time of a step with Dropout that draws by sample, beside torch's own draws, on 1 and 2 workers."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import stamps
from benchmarks.bits import train
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison

STEPS, QUICK_STEPS, WARM_UP = 300, 60, 20
BATCH = 64
OWN, BY_SAMPLE = "torch's own draws", "draws by sample"
WHO = {OWN: "own-draws", BY_SAMPLE: "ours"}
NOTES = (
    "An MLP 784-128-64-10 with BatchNorm, and Dropout of 0.3 behind both hidden layers, on Fashion-MNIST: "
    f"global batch {BATCH}, float32, SGD; the usual mode, in processes of one thread under torchrun, joined "
    "by gloo. Its steps are short, so that what drawing costs shows.",
    f"Milliseconds a step: the median of rank 0, by the start times of its forward passes, without {WARM_UP} "
    "warm-up steps. Contestants run in turns.",
)


def measure(options: Options) -> Result:
    steps = QUICK_STEPS if options.quick else STEPS
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    contests = [(workers, how) for workers in (1, 2) for how in WHO]
    with (
        progress("noise", len(contests) * options.repeats) as shown,
        tempfile.TemporaryDirectory(prefix="noise-") as folder,
    ):
        for repeat in range(options.repeats):
            for workers, how in contests:
                what = f"{how}, {workers} workers"
                shown.doing(what)
                milliseconds = _run(how, workers, steps, Path(folder) / f"{repeat}-{workers}-{WHO[how]}")
                samples[f"ms a step, workers: {workers}"][how].append(milliseconds)
                shown.done(f"{what}: {milliseconds:.1f} ms a step")
    return comparison("Drawing by sample", samples, reference=OWN, notes=NOTES)


def _run(how: str, workers: int, steps: int, folder: Path) -> float:
    """Returns the milliseconds of a step."""
    folder.mkdir()
    path = folder / "stamps"
    spec: dict[str, Any] = {
        "model": {
            "class_path": "benchmarks.uploaded.dropped.StampedDropped",
            "init_args": {"path": str(path)},
        },
        "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": BATCH * steps}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
        "training": {"global_batch_size": BATCH, "max_steps": steps},
    }
    train(spec, workers, folder, WHO[how])
    return 1000 * median(stamps.seconds_by_step(stamps.read(path), after=WARM_UP).values())

"""Accuracy of a small network with Dropout over seeds: `training.reproducible: bits` and the usual mode."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.bits import BITS, CURVE, train
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison

SEEDS, STEPS, QUICK_STEPS = 5, 160, 40
BATCH, TRAINED, TESTED = 50, 2000, 2000
MODES = CURVE, BITS
NOTES = (
    f"An MLP of 128 and 64 with BatchNorm and Dropout on {TRAINED} images of Fashion-MNIST, {STEPS} steps "
    f"with a global batch of {BATCH}, float32, SGD with momentum, on a worker; accuracy on {TESTED} other "
    f"images in percent, over {SEEDS} seeds a repeat. The modes draw other random numbers for Dropout.",
)


def measure(options: Options) -> Result:
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds = 1 if options.quick else SEEDS * options.repeats
    with (
        progress("bits_accuracy", len(MODES) * seeds) as shown,
        tempfile.TemporaryDirectory(prefix="accuracy-") as folder,
    ):
        for seed in range(seeds):
            for mode in MODES:
                shown.doing(f"{mode}, seed {seed}")
                where = Path(folder) / f"{seed}-{mode}"
                accuracy = _accuracy(mode, seed, QUICK_STEPS if options.quick else STEPS, where)
                samples["accuracy, %"][mode].append(100 * accuracy)
                shown.done(f"{mode}, seed {seed}: {accuracy:.3f}")
    return comparison("Accuracy to the last bit", samples, reference=CURVE, notes=NOTES)


def _accuracy(mode: str, seed: int, steps: int, folder: Path) -> float:
    folder.mkdir()
    spec: dict[str, Any] = {
        "model": {"class_path": "benchmarks.uploaded.dropped.Dropped"},
        "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": TRAINED}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "training": {
            "global_batch_size": BATCH,
            "eval_batch_size": TESTED,
            "seed": seed,
            "reproducible": mode,
        }
        | {"max_steps": steps, "max_epochs": steps * BATCH // TRAINED + 1},
    }
    train(spec, 1, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float([row["val_accuracy"] for row in rows if "val_accuracy" in row][-1])

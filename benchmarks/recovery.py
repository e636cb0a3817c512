"""Seconds from a worker's death to the next step, ours and by Ray Train's own restart."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import stamped
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison

WORKERS, STEPS, DIES_AT, EVERY, BATCH = 2, 40, 25, 10, 64
OURS, PEER = "ours", "Ray Train's restart"
NOTES = (
    f"ResNet-18, {stamped.WIDTH} channels wide, Fashion-MNIST, {WORKERS} workers, global batch {BATCH}; a "
    f"checkpoint every {EVERY} steps; in step {DIES_AT} rank 1 ends itself with SIGKILL.",
    f"To the first forward pass of rank 0 afterwards, which is step {DIES_AT - DIES_AT % EVERY + 1}'s, made "
    f"again; and to that of step {DIES_AT + 1}, which is new.",
    f"{PEER}: TorchTrainer with max_failures, checkpoints by ray.train.report, no Lightning "
    "(benchmarks/peers/ray_restart.py). Ours starts a new TorchTrainer, verifies checksums and imports "
    "Lightning. The same Ray for both, in turns, a warm-up run of each before (none with --quick).",
)


def measure(options: Options) -> Result:
    from training.local import local_ray

    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    contestants = {OURS: _ours, PEER: _peer}
    warm_ups = 0 if options.quick else 1
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with (
        progress("recovery", (warm_ups + options.repeats) * len(contestants)) as shown,
        tempfile.TemporaryDirectory(prefix="recovery-") as folder,
        local_ray(Path(__file__).parents[1]),
    ):
        for repeat in range(-warm_ups, options.repeats):
            for name, run in contestants.items():
                shown.doing(name)
                where = Path(folder) / f"{repeat}-{name.split()[0]}"
                where.mkdir()
                run(where)
                again, new = _times(where / "stamps")
                shown.done(f"{name}{' (warm-up)' if repeat < 0 else ''}: {again:.1f} s, {new:.1f} s")
                if repeat >= 0:
                    samples["death to first step made again, s"][name].append(again)
                    samples["death to first new step, s"][name].append(new)
    return comparison("Recovery from a worker's death", samples, reference=PEER, notes=NOTES)


def _times(stamps: Path) -> tuple[float, float]:
    ((_, death),) = stamped.read(stamps.with_suffix(".died"))
    after = [(step, seconds - death) for step, seconds in stamped.read(stamps) if seconds > death]
    begun = [seconds for step, seconds in after if step < DIES_AT]
    new = [seconds for step, seconds in after if step > DIES_AT]
    return begun[0], new[0]


def _ours(folder: Path) -> None:
    from training.folder import RunFolder
    from training.run import run
    from training.spec import parse_spec
    from training.worker import Destination

    arguments = {"path": str(folder / "stamps"), "die_at": DIES_AT}
    checkpoint = {"every_steps": EVERY, "every_minutes": None}
    spec: dict[str, Any] = {
        "model": {"class_path": "benchmarks.stamped.Stamped", "init_args": arguments},
        "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": BATCH * STEPS}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "training": {"global_batch_size": BATCH, "max_steps": STEPS, "checkpoint": checkpoint},
        "resources": {"workers": WORKERS, "cpus_per_worker": 1},
    }
    run(
        parse_spec(spec),
        workers=WORKERS,
        destination=Destination(output=str(folder), curves_only=True),
        folder=RunFolder(path=folder / "run"),
        retries=3,
    )


def _peer(folder: Path) -> None:
    from benchmarks.peers.ray_restart import run

    config = {
        "stamps": str(folder / "stamps"),
        "die_at": DIES_AT,
        "every": EVERY,
        "steps": STEPS,
        "samples": BATCH * STEPS,
        "global_batch_size": BATCH,
    }
    run(config, workers=WORKERS, storage=folder)

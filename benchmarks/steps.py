"""Steps per second on 1 and 2 workers: ours, with checkpoints, with MLflow, and plain DDP under torchrun.

With `--before`, also of an earlier version.
"""

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

from mlflow import MlflowClient

from benchmarks import stamps
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import mlflow_server
from benchmarks.uploaded import stamped

STEPS, QUICK_STEPS, WARM_UP = 60, 24, 10
EVERY = 10  # steps between two checkpoints, in contests with checkpoints
LONGEST_SECONDS = 600
HERE = Path(__file__).parents[1]
PLAIN, OURS, SAVING, TRACKED = "plain DDP, BatchNorm", "ours", "ours, with checkpoints", "ours, in MLflow"
UNSYNCHRONIZED, BY_GLOO = "ours, but BatchNorm", "ours, all sums by gloo"
EARLIER = "ours, earlier version"
NOTES = (
    f"ResNet-18, {stamped.WIDTH} channels wide (0.7 million parameters), Fashion-MNIST, global batch 64, "
    "float32, SGD with momentum; processes of one thread under torchrun, joined by gloo.",
    "Steps per second: of rank 0, by the start times of its forward passes, without {warm_up} warm-up steps; "
    "contestants run in turns.",
    f"{PLAIN}: DistributedDataParallel, DistributedSampler and a loop (benchmarks/peers/torchrun_rank.py), "
    "without synchronization of BatchNorm, without metrics.",
    f"{OURS}: synchronized BatchNorm, the global loss read at each step, train_loss and learning_rate of "
    f"each in metrics.jsonl, and training accuracy. {TRACKED}: the same, also logged to an MLflow server.",
    f"{UNSYNCHRONIZED}: separates the cost of synchronization, 40 sums a step, from the rest.",
    f"{BY_GLOO}: ranks do not add in shared memory.",
    "A checkpoint's time: the median step with one minus the median step without one.",
)


def measure(options: Options) -> Result:
    steps = QUICK_STEPS if options.quick else STEPS
    contests = [(1, PLAIN), (1, OURS), (2, PLAIN), (2, UNSYNCHRONIZED), (2, OURS), (2, BY_GLOO)]
    contests += [(2, SAVING), (2, TRACKED)]
    if options.before is not None:
        contests += [(1, EARLIER), (2, EARLIER)]
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    saves: list[float] = []
    with (
        progress("steps", len(contests) * options.repeats) as shown,
        tempfile.TemporaryDirectory(prefix="steps-") as folder,
        mlflow_server() as uri,
    ):
        client = MlflowClient(tracking_uri=uri)
        experiment = client.create_experiment("steps")
        for repeat in range(options.repeats):
            for workers, name in contests:
                shown.doing(f"{name}, {workers} workers")
                mlflow = [uri, client.create_run(experiment).info.run_id] if name == TRACKED else []
                where = Path(folder) / f"{repeat}-{workers}-{contests.index((workers, name))}"
                seconds = _run(name, workers, steps, where, mlflow, options.before)
                samples[f"steps per second, workers: {workers}"][name].append(1 / median(seconds.values()))
                if name == SAVING:
                    saves.append(stamps.seconds_of_a_save(seconds, every=EVERY))
                shown.done(f"{name}, {workers} workers: {1 / median(seconds.values()):.2f} steps/s")
    notes = [note.format(warm_up=WARM_UP) for note in NOTES]
    cost = median(saves)
    notes.append(
        f"A checkpoint takes {1000 * cost:.0f} ms (median; from {1000 * min(saves):.0f} to "
        f"{1000 * max(saves):.0f}): {100 * cost / 60:.2f} % of the time at one a minute."
    )
    return comparison("Steps per second", samples, reference=PLAIN, notes=notes)


def _run(
    name: str, workers: int, steps: int, folder: Path, mlflow: list[str], before: Path | None
) -> dict[int, float]:
    """Returns the seconds from the start of each step to the start of the next."""
    source = before if name == EARLIER and before else HERE
    script = source / "benchmarks" / "peers" / "torchrun_rank.py"
    folder.mkdir()
    path = folder / "stamps"
    checkpoint = {"every_steps": EVERY if name == SAVING else None, "every_minutes": None}
    spec: dict[str, Any] = {
        "model": {"class_path": "benchmarks.uploaded.stamped.Stamped", "init_args": {"path": str(path)}},
        "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": 64 * steps}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "norm": {"kind": "keep" if name == UNSYNCHRONIZED else "sync_batch_norm"},
        "training": {"global_batch_size": 64, "max_steps": steps, "checkpoint": checkpoint},
    }
    who = "plain" if name == PLAIN else "ours"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), who, json.dumps(spec), str(folder), *mlflow],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
        | ({"SYNC_BN_SHARED_MEMORY": "0"} if name == BY_GLOO else {}),
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{name} on {workers} workers failed:\n{done.stderr[-3000:]}")
    return stamps.seconds_by_step(stamps.read(path), after=WARM_UP)

"""Steps per second with every step's metrics in MLflow: the service's tracker, no tracker, a naive one.

One process in a group of one rank, so that only the tracker differs, with a real MLflow server.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from mlflow import MlflowClient

from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import mlflow_server
from training.callbacks.global_loss import GlobalLoss
from training.callbacks.logger import RunLogger
from training.callbacks.progress import ProgressReporter
from training.callbacks.share_counts import ShareCounts
from training.callbacks.stop_vote import StopVote
from training.loading.batches import share_loader
from training.model.instantiate import construct
from training.model.supervised import as_lightning_module
from training.spec import Spec, flat, load_yaml, parse_spec
from training.tracking.mlflow_run import DiscardedRun
from training.tracking.mlflow_tracker import MlflowTracker
from training.tracking.tracker import NullTracker, Tracker

RECIPE = Path(__file__).parent.parent / "training" / "recipes" / "digits.yaml"
SECONDS, QUICK_SECONDS = 10.0, 2.0
WARM_UP_STEPS = 5

NONE, OURS, NAIVE = "no tracking", "service's tracker", "a call per metric"
NOTES = (
    "The ConvNet of recipes/digits.yaml, batches of 64, one thread, {seconds:g} s a run after "
    f"{WARM_UP_STEPS} warm-up steps; only training, no validation.",
    "train_loss and learning_rate at every step, train_accuracy at every epoch.",
    "a call per metric: MlflowClient.log_metric, synchronously, for each metric of each step.",
    "The wait at the end lasts until the server has everything: it occurs once a run, whatever its length.",
    "The server runs on the same cores as the training.",
)


class LogMetric(NullTracker):
    """The naive peer: sends one request for each metric, and the training waits for it."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._client, self._run_id = MlflowClient(tracking_uri=uri), run_id

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        for name, value in metrics.items():
            self._client.log_metric(self._run_id, name, value, step=step)


class Pace(pl.Callback):
    """Stops the training `seconds` after the warm-up and holds the steps per second."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps_per_second = 0.0
        self._begun = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        now, steps = time.perf_counter(), trainer.global_step - WARM_UP_STEPS
        if steps == 0:
            self._begun = now
        elif steps > 0 and now - self._begun >= self.seconds:
            self.steps_per_second = steps / (now - self._begun)
            trainer.should_stop = True


def measure(options: Options) -> Result:
    seconds = QUICK_SECONDS if options.quick else SECONDS
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with progress("tracking", 3 * options.repeats) as shown:
        shown.doing("starting MLflow")
        with (
            mlflow_server() as uri,
            tempfile.TemporaryDirectory(prefix="tracking-") as folder,
            _one_rank(),
            _quiet(),
        ):
            trackers = _trackers(uri, Path(folder))
            _train(NullTracker(), QUICK_SECONDS)  # warms up: the first training of a process is slower
            for _, (name, tracker) in product(range(options.repeats), trackers.items()):
                shown.doing(name)
                pace, wait = _train(tracker(), seconds)
                shown.done(f"{name}: {pace:.1f} steps/s, {wait:.2f} s at the end")
                samples["steps per second"][name].append(pace)
                samples["wait at the end, s"][name].append(wait)
            shown.doing("ending MLflow")
    notes = [note.format(seconds=seconds) for note in NOTES]
    took = {name: 1000 / median(paces) for name, paces in samples["steps per second"].items()}
    cost = took[OURS] - took[NONE]
    notes.append(f"The service's tracker costs {cost:.2f} ms a step: {cost / 2:.2f} % of one of 200 ms.")
    return comparison("Tracking every step in MLflow", samples, reference=NONE, notes=notes)


def _trackers(uri: str, folder: Path) -> dict[str, Callable[[], Tracker]]:
    """Returns factories of trackers, each with its own run."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tracking")

    def run_id() -> str:
        return str(client.create_run(experiment).info.run_id)

    def ours() -> Tracker:
        own = run_id()
        return MlflowTracker(uri, own, params=flat(_spec()), tags={}, spool=folder / own)

    return {
        NONE: NullTracker,
        OURS: ours,
        NAIVE: lambda: LogMetric(uri, run_id()),
    }


def _train(tracker: Tracker, seconds: float) -> tuple[float, float]:
    """Returns the steps per second and the seconds that closing the tracker takes."""
    spec, pace = _spec(), Pace(seconds)
    pl.seed_everything(spec.training.seed, verbose=False)
    module = as_lightning_module(construct(spec.trained()[0], "model"), spec)
    module.log = partial(module.log, sync_dist=True)  # type: ignore[method-assign]
    try:
        with redirect_stdout(io.StringIO()):  # the lines that `ProgressReporter` prints
            _trainer(tracker, pace).fit(module, train_dataloaders=_loader(spec))
    finally:
        begun = time.perf_counter()
        tracker.close()
    return pace.steps_per_second, time.perf_counter() - begun


def _trainer(tracker: Tracker, pace: Pace) -> pl.Trainer:
    """Returns a trainer like a worker's (`training.rank.trainer`), with one rank and without checkpoints."""
    share = ShareCounts()
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        callbacks=[
            share,
            GlobalLoss(tracker, StopVote(), share, ahead=list),
            ProgressReporter(tracker),
            pace,
        ],
        logger=RunLogger(tracker, DiscardedRun(), {}, Path()),
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _loader(spec: Spec) -> Any:
    assert spec.data is not None
    data = construct(spec.data, "data")
    data.setup("fit")
    settings = spec.training
    assert settings.global_batch_size is not None
    return share_loader(
        data.train_dataloader(),
        batch_size=settings.global_batch_size,
        rank=0,
        world_size=1,
        seed=settings.seed,
    )


def _spec() -> Spec:
    return parse_spec(load_yaml(RECIPE.read_text()))


@contextmanager
def _one_rank() -> Iterator[None]:
    """Initialises a gloo group of this process alone, with one thread, like a worker with one CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.NamedTemporaryFile(prefix="syncbn-bench-") as meeting_place:
            dist.init_process_group("gloo", f"file://{meeting_place.name}", rank=0, world_size=1)
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's tips, which would break the progress bar."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Skipping val loop.*")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        try:
            yield
        finally:
            logger.setLevel(before)

"""The driver: one spec, on the Ray that is there, until it succeeds or cannot.

This module imports neither lightning nor the model: the workers do, while the driver waits.
"""

from __future__ import annotations

import os
from typing import Any

from training.failures import RankFailed, TrainingError
from training.spec import Spec
from training.worker import Destination, train

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# How often the controller looks at its workers; the default of 2 s delays reports and the end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# The watcher of spot instances is a process of its own; nothing here listens to it.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Workers print to their log as it is; otherwise Ray Train logs every printed line a second time.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

WORKER_ENVIRONMENT = {
    # A worker asks MLflow again by itself; the library's own retries would block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class WorkersLost(TrainingError):
    """Workers died more often than the spec's retries allow."""


def run(spec: Spec, *, workers: int, destination: Destination, storage: str, name: str, retries: int) -> None:
    """Runs `spec` on `workers` workers; blocks until the end.

    Checkpoints go to `storage`/`name`; a run of that name that was interrupted goes on from its last
    checkpoint. Workers that die are started again, at most `retries` times.
    Raises RankFailed for an exception of the training itself (never retried: it would come again), and
    WorkersLost.
    """
    from ray.train import WorkerGroupError

    for failures in range(retries + 1):
        try:
            _trainer(spec, workers, destination, storage, name).fit()
            return
        except WorkerGroupError as error:
            cause = _cause(error.worker_failures)
            if isinstance(cause, RankFailed) and not cause.lost_peer:
                raise cause from None
            print(f"lost a worker ({failures} of {retries} retries used): {cause}", flush=True)  # noqa: T201
            last = cause
    raise WorkersLost(f"workers were lost {retries + 1} times, more than retries: {retries} allows; {last}")


def _trainer(spec: Spec, workers: int, destination: Destination, storage: str, name: str) -> Any:
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": spec.resources.cpus_per_worker}
    if spec.resources.gpus_per_worker:
        resources["GPU"] = spec.resources.gpus_per_worker
    return TorchTrainer(
        train,
        train_loop_config={"spec": spec.model_dump_json(exclude_unset=True), "destination": destination},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(spec.resources.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name, storage_path=storage, checkpoint_config=CheckpointConfig(num_to_keep=2)
        ),
    )


def _cause(failures: dict[int, Exception]) -> Exception:
    """The failure that the others followed from: a rank's own exception first, the earliest of several."""
    causes = [_unwrapped(error) for _, error in sorted(failures.items())]
    own = [error for error in causes if isinstance(error, RankFailed) and not error.lost_peer]
    dead = [error for error in causes if not isinstance(error, RankFailed)]
    return min(own, key=lambda error: error.when) if own else (dead or causes)[0]


def _unwrapped(error: Exception) -> Exception:
    """Ray carries a user's exception in one of its own."""
    inner = getattr(error, "_base_exc", None)
    return inner if isinstance(inner, RankFailed) else error

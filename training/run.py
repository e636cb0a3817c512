"""The driver: one spec, on the Ray that is there, until it succeeds or cannot.

This module imports neither lightning nor the model: the workers do, while the driver waits.
"""

from __future__ import annotations

import os
from typing import Any

from training.failures import Hung, NodesLost, RankFailed, TrainingError, WorkersLost
from training.folder import RunFolder
from training.hang_folder import clear
from training.hangs import hang_report
from training.spec import Spec
from training.worker import Destination, train

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# How often the controller looks at its workers; the default of 2 s delays reports and the end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# How long it waits for its places before the driver looks which machines are left; then it waits again.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
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


FINAL = frozenset({"BuildError", "NonFiniteLoss"})
"""Exceptions that would come again."""


def run(spec: Spec, *, workers: int, destination: Destination, folder: RunFolder, retries: int) -> bool:
    """Runs `spec` on `workers` workers; blocks until the end. False: it stopped because it was asked to.

    A run that has a checkpoint in `folder` goes on from that. What fails is started again from the last
    checkpoint, at most `retries` times in all, and only while there are machines for as many workers.

    Raises RankFailed for an exception of the training itself that would come again (it is of a kind that
    does, or came at the same step before), Hung, WorkersLost, and NodesLost.
    """
    from ray.train import ControllerError, WorkerGroupError

    restarts: list[str] = []
    before: RankFailed | None = None
    while True:
        clear(folder.hang)
        try:
            _trainer(spec, workers, destination, folder, restarts).fit()
            return not folder.stopped.exists()
        except ControllerError as error:
            print(f"the workers could not be started: {_last_line(error)}", flush=True)  # noqa: T201
        except WorkerGroupError as error:
            failure = _failure(error, folder)
            if isinstance(failure, RankFailed) and not failure.lost_peer:
                _unless_it_comes_again(failure, before)
                before = failure
            if len(restarts) == retries:
                raise _out_of_retries(failure, retries) from None
            restarts.append(str(failure).partition("\n")[0])
            print(_restarting(failure, len(restarts), retries), flush=True)  # noqa: T201 (the log of the job)
        if folder.stop_request.exists():
            return False
        _unless_machines_are_gone(spec, workers)


def _trainer(
    spec: Spec, workers: int, destination: Destination, folder: RunFolder, restarts: list[str]
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": spec.resources.cpus_per_worker}
    if spec.resources.gpus_per_worker:
        resources["GPU"] = spec.resources.gpus_per_worker
    return TorchTrainer(
        train,
        train_loop_config={
            "spec": spec.model_dump_json(exclude_unset=True),
            "destination": destination,
            "folder": folder,
            "restarts": restarts,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(spec.resources.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=folder.path.name,
            storage_path=str(folder.path.parent),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _failure(error: Any, folder: RunFolder) -> TrainingError:
    """What it was: an exception, ranks that hung and ended themselves, or a worker that is gone."""
    cause = _cause(error.worker_failures)
    hang = hang_report(folder.hang)
    if hang is not None and not (isinstance(cause, RankFailed) and not cause.lost_peer):
        return Hung(hang.rank, hang.step, hang.message)
    return cause if isinstance(cause, TrainingError) else WorkersLost(_first_line(cause))


def _unless_it_comes_again(failure: RankFailed, before: RankFailed | None) -> None:
    if failure.type_name in FINAL:
        raise failure from None
    if before is not None and (before.type_name, before.step) == (failure.type_name, failure.step):
        where = f"at step {failure.step}" if failure.step else "before the first step"
        raise failure.saying(
            f"{failure.message}\n(It came twice {where}, the second time from the last checkpoint on: it is "
            "not tried again.)"
        ) from None


def _out_of_retries(failure: TrainingError, retries: int) -> TrainingError:
    if isinstance(failure, RankFailed) and not failure.lost_peer:
        return failure
    spent = f"retries: {retries} are used up; " if retries else "retries: 0; "
    if isinstance(failure, Hung):
        return Hung(failure.rank, failure.step, f"{spent}{failure.message}")
    return WorkersLost(f"workers were lost {retries + 1} times, {spent}{_first_line(failure)}")


def _restarting(failure: TrainingError, number: int, retries: int) -> str:
    return f"{failure}\nstarting again from the last checkpoint ({number} of {retries} retries used)"


def _unless_machines_are_gone(spec: Spec, workers: int) -> None:
    """Raises NodesLost where the machines that are alive cannot hold the workers any more."""
    import ray

    resources = spec.resources
    place = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            here = has.get("CPU", 0.0) / resources.cpus_per_worker
            if resources.gpus_per_worker:
                here = min(here, has.get("GPU", 0.0) / resources.gpus_per_worker)
            place += int(here + 1e-9)
    if place < workers:
        error = NodesLost(f"of {workers} workers, the machines that are left have place for {place}")
        print(error, flush=True)  # noqa: T201 (the log of the job)
        raise error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


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
